"""Options and fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

COMMITTED_GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        type=Path,
        default=COMMITTED_GOLDENS,
        help="folder with rdm/, wavediff/ and evaluation/: numbers of the official implementations",
    )
    parser.addoption(
        "--device",
        default="cpu",
        help="where tensors are made unless a test says so; tests/gpu runs goldens with cuda",
    )


@pytest.fixture(scope="session")
def goldens_dir(request: pytest.FixtureRequest) -> Path:
    return request.config.getoption("--goldens")


@pytest.fixture(scope="session", autouse=True)
def _device(request: pytest.FixtureRequest) -> None:
    """Make all tensors on another device, in full float32, if asked to."""
    device = request.config.getoption("--device")
    if device != "cpu":
        torch.set_default_device(device)
        torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One thread per process, no shared build cache (a killed build leaves a lock in it).

    The user's own settings (site profile, list of weights files) are not read.
    """
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ.pop("RELAYWAVE_WEIGHTS", None)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(tmp_path_factory.mktemp("torch_extensions"))
