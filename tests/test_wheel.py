"""The command as users install it, used in a directory that holds packages of their own.

A wheel and an editable install are made of a copy of the product, each in its own environment.
What relaywave depends on is lent to them by the environment of the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import relaywave
from tests.paths import ROOT
from tests.slurm.project import make_foreign_modules

PRODUCT = ("relaywave.py", "pyproject.toml", "README.md", "LICENSE", *relaywave.USES)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
OFFLINE = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what wheels are made of, without what earlier builds left."""
    copy = tmp_path_factory.mktemp("source")
    for name in PRODUCT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    _succeed(*PIP, "wheel", *OFFLINE, "--wheel-dir", str(directory), str(source))
    (file,) = directory.glob("relaywave-*.whl")
    return file


@pytest.fixture(scope="module", params=["wheel", "editable"])
def environment(
    request: pytest.FixtureRequest,
    source: Path,
    wheel: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a virtual environment with relaywave in it."""
    directory = tmp_path_factory.mktemp(request.param)
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin/python"
    packages = _succeed(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    # Only what it names is taken from there: further .pth files, such as that of an editable
    # install of this checkout, are not read.
    lent = Path(packages.strip()) / "lent.pth"
    lent.write_text(f"{sysconfig.get_path('purelib')}\n")
    what = [str(wheel)] if request.param == "wheel" else ["--editable", str(source)]
    _succeed(*PIP, "--python", str(python), "install", *OFFLINE, *what)
    return directory


def _run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    hidden = ("PYTHONPATH", "PYTHONSAFEPATH", "RANK", "WORLD_SIZE")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


def _succeed(*command: str, cwd: Path | None = None) -> str:
    done = _run(*command, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_product_and_nothing_else(source: Path, wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    product = {
        str(path.relative_to(source))
        for name in ("relaywave.py", *relaywave.USES)
        for path in [source / name, *(source / name).rglob("*")]
        if path.is_file()
    }
    assert held == product
    assert {f"{name}/py.typed" for name in relaywave.USES} <= held
    assert not [name for name in held if "test" in name]


@pytest.mark.distributed
@pytest.mark.slow
def test_the_command_works_beside_packages_of_the_user(
    environment: Path, source: Path, tmp_path: Path
) -> None:
    foreign = make_foreign_modules(tmp_path / "project")
    command = str(environment / "bin/relaywave")
    python = str(environment / "bin/python")

    def relay(arguments: str) -> str:
        return _succeed(command, *arguments.split(), cwd=foreign)

    code = "import relaywave, models, slurm; print(relaywave.HERE, models.__file__, slurm.__file__)"
    here, *files = _succeed(python, "-P", "-c", code, cwd=foreign).split()
    place = source if "editable" in environment.name else environment
    assert all(Path(file).is_relative_to(here) for file in files)
    assert Path(here).is_relative_to(place)
    assert relay("--version") == f"relaywave {relaywave.version()}\n"
    assert "rdm_imagenet256" in relay("train list")
    relay("data pack photographs set --resolution 16 --limit 8 --workers 2")
    assert relay("data info set").startswith("set: ")
    relay("train rdm_debug_edm16 --run-dir run --ranks 2 total_images=64")
    snapshot = max((foreign / "run/snapshots").glob("[0-9]*"))
    relay(f"eval sample {snapshot} --out samples --seeds 0-3 --batch-size 2 --ranks 2")
    assert len(list((foreign / "samples").rglob("*.png"))) == 4
    assert "finished" in relay("train status run")
    done = _run(python, "-m", "dist_train", "list", cwd=foreign)
    assert done.returncode == 2
    assert "models hides relaywave's package models; use `relaywave train`" in done.stderr
