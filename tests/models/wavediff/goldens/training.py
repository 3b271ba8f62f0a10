"""Checks of recorded training, its schedules, and the checkpoints that it wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dist_train.config import ConstantEma, CosineSchedule
from models.convert.wavediff_files import read_official
from tests.golden_file import readme_of
from tests.models.wavediff.goldens.arrays import Arrays
from tests.models.wavediff.goldens.replay import ReplayedRun


def check_training(arrays: Arrays, name: str) -> None:
    ReplayedRun(arrays, torch.float64).check()
    ReplayedRun(arrays, torch.float32).check()


def adam_of(arrays: Arrays) -> dict[str, Any]:
    """Return the settings of Adam in ema_lr.npz: the README has them, the file does not."""
    text = readme_of(arrays.path, arrays.path.name) if arrays.path else ""
    numbers = r"Adam lr ([\d.e+-]+), betas ([\d.]+)/([\d.]+), eps ([\d.e+-]+)"
    found = re.search(numbers, text)
    rate, beta1, beta2, eps = map(float, found.groups() if found else (1e-2, 0.5, 0.9, 1e-8))
    return {"lr": rate, "betas": (beta1, beta2), "eps": eps}


def check_ema_and_rates(arrays: Arrays, name: str) -> None:
    for case in arrays.cases(r"ema\d+_"):
        ema = ConstantEma(decay=case.number("decay"))
        names = [key for key in case.names() if key.endswith("_init")]
        weights = [nn.Parameter(case.tensor(key)) for key in names]
        adam = torch.optim.Adam(weights, **adam_of(arrays))
        average = [weight.detach().clone() for weight in weights]
        steps = 1 + max(int(m[1]) for key in case.names() if (m := re.match(r"s(\d+)_", key)))
        for step in range(steps):
            for index, weight in enumerate(weights):
                weight.grad = case.tensor(f"s{step}_g{index}")
            adam.step()
            for index, (mean, weight) in enumerate(zip(average, weights, strict=True)):
                mean.lerp_(weight.detach(), 1 - ema.beta(step, 1))
                case.check(f"s{step}_p{index}", weight, 2e-6)
                case.check(f"s{step}_ema{index}", mean, 2e-6)
    for case in arrays.cases(r"lr\d+_"):
        base, epochs, minimum = case.numpy("params").tolist()
        schedule = CosineSchedule(epochs=int(epochs), epoch_images=1, minimum=minimum)
        wanted = case.numpy("values")[: int(epochs) + 1]  # the loop's epochs; it goes no further
        found = [schedule.rate(base, epoch) for epoch in range(len(wanted))]
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12 * base)


def check_checkpoints(checkpoint_dir: Path) -> None:
    """The files that the official loop wrote in the float32 run of a train_* file next to them."""
    trained = [Arrays.load(path) for path in sorted(checkpoint_dir.parent.glob("train_*.npz"))]
    covered = re.compile(r"netG_\d+\.pth|content\.pth|README.*")
    files = sorted(checkpoint_dir.iterdir())
    assert files
    for path in files:
        assert covered.fullmatch(path.name), f"{path.name} is of an uncovered kind"
        if path.suffix != ".pth":
            continue
        for averaged in (True, False):
            file = read_official(path, averaged=averaged)
            norms = np.array([float(w.double().norm()) for w in file.weights.values()])
            key = "ema_norms_f32" if file.averaged else "G/param_norms_f32"
            candidates = [
                arrays.numpy(name)
                for arrays in trained
                if same_names(arrays, file)
                for name in arrays.names()
                if name.endswith(key)  # of whichever step the file was written after
            ]
            close = [np.allclose(norms, wanted, rtol=2e-5, atol=1e-7) for wanted in candidates]
            assert any(close), f"{path.name} (averaged={averaged}) fits no train_*.npz"


def same_names(arrays: Arrays, file) -> bool:
    return arrays.numpy("param_order_G").tolist() == list(file.weights)
