"""Numbers of the official WaveDiff code, reproduced (README.md in the goldens directory).

Files are found by their prefix, cases and parameters are read from the files, and a file or array
that no check covers fails. The committed files are a part of the public set; all of it, or another
set of the same layout, is checked by `pytest tests/models/wavediff/test_goldens.py --goldens DIR`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.wavediff.goldens.arrays import Arrays
from tests.models.wavediff.goldens.blocks import check_blocks
from tests.models.wavediff.goldens.networks import (
    check_discriminators,
    check_generators,
    check_initial_weights,
)
from tests.models.wavediff.goldens.process import (
    check_diffusion,
    check_dwt,
    check_forward_and_posterior,
    check_patchify,
    check_sampling_loop,
    official_coefficients,
)
from tests.models.wavediff.goldens.training import (
    check_checkpoints,
    check_ema_and_rates,
    check_training,
)

DOCUMENTS = ("README.md", "ARRAYS.tsv", "README.txt")

CHECKS = {
    "dwt_": check_dwt,
    "diffusion_coeffs": check_diffusion,
    "qsample_posterior": check_forward_and_posterior,
    "sampling_loop": check_sampling_loop,
    "patchify": check_patchify,
    "blocks": check_blocks,
    "gen_": check_generators,
    "disc_": check_discriminators,
    "train_": check_training,
    "ema_lr": check_ema_and_rates,
    "init_stats": check_initial_weights,
    "ckpt_": check_checkpoints,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    golden_dir = metafunc.config.getoption("--goldens") / "wavediff"
    files = sorted(path.name for path in golden_dir.iterdir() if path.name not in DOCUMENTS)
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", files)


def test_golden(name: str, goldens_dir: Path) -> None:
    checks = [check for prefix, check in CHECKS.items() if name.startswith(prefix)]
    assert len(checks) == 1, f"{name} is of an uncovered kind"
    path = goldens_dir / "wavediff" / name
    if path.is_dir():
        check_checkpoints(path)
        return
    assert path.suffix == ".npz", f"{name} is of an uncovered kind"
    arrays = Arrays.load(path)
    with official_coefficients(path.with_name("diffusion_coeffs.npz")):
        checks[0](arrays, name)
    arrays.check_all_read()


def test_there_are_goldens(goldens_dir: Path) -> None:
    assert list((goldens_dir / "wavediff").glob("*.npz"))
