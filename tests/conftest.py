"""Options and fixtures that all tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

    The user's own settings (site profile, list of weights files) are not read, and nothing is
    written into the user's cache.
    """
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ["RELAYWAVE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.pop("RELAYWAVE_WEIGHTS", None)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(tmp_path_factory.mktemp("torch_extensions"))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Return a headless browser. Debian's packages: chromium, chromium-driver."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("chromium and chromium-driver are not installed (test.sh does it, with root)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_page_load_timeout(120)
    opened.set_script_timeout(120)
    yield opened
    opened.quit()
