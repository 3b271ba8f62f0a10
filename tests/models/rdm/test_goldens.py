"""Numbers of the official implementation: every array of every file in <goldens>/rdm.

Files are matched to checks by the start of their names, cases and parameters are read from the
files. A file that no check knows, and an array that a check has skipped, fail. Regenerate the
files with the official code as their README describes; they are inputs here, never outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden_file import Golden
from tests.models.rdm.goldens.networks import check_container, check_layers, check_unet
from tests.models.rdm.goldens.process import (
    check_alpha_t,
    check_augment,
    check_block_noise,
    check_dct,
    check_dct_blur,
    check_loss_blur,
    check_loss_edm,
)
from tests.models.rdm.goldens.samplers import (
    check_pipeline,
    check_postprocess,
    check_sampler_edm,
    check_sampler_relay,
    check_seeded_noise,
)
from tests.models.rdm.goldens.training import check_schedules, check_train_step

CONTAINERS = (".pkl", ".pt")
DOCUMENTS = ("README.md", "ARRAYS.tsv", "README.txt")

CHECKS: dict[str, Callable[[Golden], None]] = {
    "dct_blur": check_dct_blur,
    "dct": check_dct,
    "block_noise": check_block_noise,
    "alpha_t": check_alpha_t,
    "loss_edm": check_loss_edm,
    "loss_blur": check_loss_blur,
    "sampler_edm": check_sampler_edm,
    "sampler_relay": check_sampler_relay,
    "pipeline": check_pipeline,
    "postprocess": check_postprocess,
    "seeded_noise": check_seeded_noise,
    "schedules": check_schedules,
    "layers": check_layers,
    "unet": check_unet,
    "train_step": check_train_step,
    "augment": check_augment,
    "container": check_container,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    directory = Path(metafunc.config.getoption("--goldens")) / "rdm"
    files = sorted(path for path in directory.glob("*") if path.name not in DOCUMENTS)
    if "golden_path" in metafunc.fixturenames:
        metafunc.parametrize("golden_path", files, ids=[path.name for path in files])


def test_golden(golden_path: Path) -> None:
    if golden_path.suffix in CONTAINERS:
        expected = list(golden_path.parent.glob("container_expected*.npz"))
        assert golden_path.name.startswith("container_")
        assert expected, "a container without expected values"
        return
    assert golden_path.suffix == ".npz", f"{golden_path.name} is of a kind that no check covers"
    matches = [kind for kind in CHECKS if golden_path.stem.startswith(kind)]
    assert matches, f"{golden_path.name} is of a kind that no check covers"
    golden = Golden(golden_path)
    CHECKS[max(matches, key=len)](golden)
    golden.assert_all_used()


def test_there_are_goldens(goldens_dir: Path) -> None:
    assert list((goldens_dir / "rdm").glob("*.npz"))
