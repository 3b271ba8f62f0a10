"""Part a: losses, gradients (R1's too) and samples against the processor's float32; goldens."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.engine.engine import parameter_lists, updating_only
from models.objective import Example
from tests.gpu.cases import (
    MovedDraws,
    build_sampler,
    computing_in,
    one_gpu_run,
    recipe_names,
    same_example,
    wake,
)
from tests.gpu.device import Device, float32_mode
from tests.gpu.ledger import Outcome, Task

BOUNDS = {"float32": (1e-4, 1e-3), "tf32": (5e-3, 3e-2), "bfloat16": (3e-2, 1.5e-1)}
"""Largest relative errors of a loss, and of gradients or images (their L2 norm), by arithmetic.

Summation order moves float32 by some 1e-6; TF32 has 10 bits of mantissa, bfloat16 has 7, and the
errors of some hundred layers add up to 30 times their last bit.
"""
SAMPLER_STEPS = 4
"""The schedule is that of fewer steps: the processor has to keep up."""

Weights = dict[str, dict[str, Tensor]]


def tasks(debug: bool) -> list[Task]:
    names = recipe_names(debug)
    checks = [Task("a", f"losses/{name}", partial(check_losses, name)) for name in names]
    checks += [Task("a", f"samples/{name}", partial(check_samples, name)) for name in names]
    return [*checks, Task("a", "goldens", check_goldens)]


def check_losses(name: str, device: Device, work: Path) -> Outcome:
    """Compare the losses and gradients of all networks, on one micro-batch."""
    del work
    config = one_gpu_run(name)
    plain = computing_in(config, "float32")
    weights, outcome = fresh_weights(plain), Outcome()
    expected = losses_and_gradients(plain, weights, torch.device("cpu"))
    for arithmetic, objective in arithmetics(config).items():
        loss_bound, gradient_bound = BOUNDS[arithmetic]
        with float32_mode(arithmetic == "tf32"):
            got = losses_and_gradients(objective, weights, device.torch_device)
        for network, (loss, gradient) in got.items():
            true_loss, true_gradient = expected[network]
            what = f"{arithmetic}/{network}"
            outcome.bound(f"{what}/loss", relative(loss, true_loss), loss_bound)
            outcome.bound(f"{what}/gradient", relative(gradient, true_gradient), gradient_bound)
    return outcome


def check_samples(name: str, device: Device, work: Path) -> Outcome:
    """Compare an image that a sampler draws, with few steps and the same draws."""
    del work
    config = one_gpu_run(name)
    plain = computing_in(config, "float32")
    weights, outcome = fresh_weights(plain), Outcome()
    expected = drawn(plain, weights, torch.device("cpu"))
    for arithmetic, objective in arithmetics(config).items():
        with float32_mode(arithmetic == "tf32"):
            image = drawn(objective, weights, device.torch_device)
        outcome.bound(arithmetic, relative(image, expected), BOUNDS[arithmetic][1])
    return outcome


def arithmetics(config: Any) -> dict[str, Any]:
    """Return the objective by the arithmetic to check it in."""
    plain = computing_in(config, "float32")
    return {"float32": plain, "tf32": plain, "bfloat16": computing_in(config, "bfloat16")}


def fresh_weights(config: Any) -> Weights:
    torch.manual_seed(0)
    networks = config.build().build_networks()
    return {name: wake(network).state_dict() for name, network in networks.items()}


def load(config: Any, weights: Weights, device: torch.device) -> dict[str, nn.Module]:
    with torch.device(device):  # initial weights are drawn where they are fast
        networks: dict[str, nn.Module] = config.build().build_networks()
    for name, network in networks.items():
        network.load_state_dict(weights[name])
    return {name: network.to(device) for name, network in networks.items()}


def losses_and_gradients(
    config: Any, weights: Weights, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each network's loss and gradient, flat, on the processor in float32."""
    objective = config.build()
    networks = load(config, weights, device)
    example: Example = same_example(
        objective, config.label_dim, max(objective.batch_multiple, 2), device
    )
    step = getattr(config, "r1_interval", 1)  # one with R1, and without the metrics of step 0
    found = {}
    for name, loss_fn in objective.losses().items():
        with updating_only(name, parameter_lists(networks)):
            loss, _ = loss_fn(networks, example, step)
            loss.backward()
        grads = [p.grad for p in networks[name].parameters() if p.grad is not None]
        flat = torch.cat([grad.detach().float().cpu().view(-1) for grad in grads])
        found[name] = loss.detach().float().cpu(), flat
        networks[name].zero_grad(set_to_none=True)
    return found


def drawn(config: Any, weights: Weights, device: torch.device) -> Tensor:
    """Return one image of a sampler of few steps."""
    if hasattr(config, "sampling"):
        config = replace(config, sampling=replace(config.sampling, steps=SAMPLER_STEPS))
    network = load(config, weights, device)[config.build().sampled_network]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few steps start where training had no level
        sampler = build_sampler(config, network)
    draws = MovedDraws([3], device)
    labels = torch.tensor([0], device=device) if config.label_dim else None
    with torch.inference_mode():
        image: Tensor = sampler.generate(draws, labels)
    return image.float().cpu()


def relative(got: Tensor, expected: Tensor) -> float:
    """Return the L2 norm of the difference, relative to the expected tensor's; NaN stays."""
    return float((got - expected).norm() / expected.norm())


def check_goldens(device: Device, work: Path) -> Outcome:
    """Run the goldens' tests with all tensors on the device, at their own tolerances.

    Streams of random numbers, initial weights and files are those of the processor.
    """
    tests = ["tests/models/rdm/test_goldens.py", "tests/models/wavediff/test_goldens.py"]
    options = ["-q", "-p", "no:cacheprovider", "-rfE", f"--device={device.torch_device.type}"]
    few = "block_noise or dct_blur or patchify"
    options += ["-k", few if device.debug else "not (seeded or container or ckpt or init_stats)"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (work / "goldens.txt").write_text(done.stdout + done.stderr)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|errors?)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
    if not counts:
        failed.append(f"pytest ended with {done.returncode}: {done.stderr[-300:]}")
    return Outcome({**counts}, failed)
