"""A real Slurm for the tests of this directory: four nodes on this machine, see `up`.

It starts when the first test needs it, and ends with the last test of the directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from slurm.jobs.interpreter import SOURCE
from tests.slurm.project import make_foreign_modules

HERE = Path(__file__).parent
PROGRAMS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sbatch")
SITE = """\
shared = ["{root}"]
signal_seconds = 20
[environment]
OMP_NUM_THREADS = "1"
RES_OPTIONS = "timeout:1 attempts:1"
"""
"""The names of its nodes do not resolve, which no rank shall wait for long to hear."""
_untested: list[str] = []


def why_not() -> str:
    """Return why Slurm cannot be started here, "" if it can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if os.geteuid() != 0:
        return "starting Slurm needs root"
    return f"{', '.join(missing)} not installed (see tests/slurm/cluster/up)" if missing else ""


@pytest.fixture(scope="package")
def cluster() -> Iterator[Path]:
    """Start Slurm; yields a directory that its nodes see, with the site profile `site.toml`.

    Everything is submitted from a directory whose modules are called as ours. Other users may enter
    the directory, unlike those of pytest.
    """
    reason = why_not()
    if reason and os.environ.get("CI"):
        pytest.fail(f"continuous integration must test on a real Slurm, but {reason}")
    if reason:
        _untested.append(reason)
        pytest.skip(f"REAL SLURM NOT TESTED: {reason}")
    root = Path(tempfile.mkdtemp(prefix="relaywave-slurm-"))
    root.chmod(0o755)
    state = root / "slurm"
    before = {
        name: os.environ.get(name)
        for name in ("SLURM_CONF", "PATH", "RELAYWAVE_SITE", "PYTHONPATH")
    }
    try:
        subprocess.run([HERE / "up", state], check=True, stdout=subprocess.DEVNULL)
        (root / "site.toml").write_text(SITE.format(root=root))
        os.environ["SLURM_CONF"] = str(state / "slurm.conf")
        os.environ["RELAYWAVE_SITE"] = str(root / "site.toml")
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        os.environ["PYTHONPATH"] = str(SOURCE)
        with chdir(make_foreign_modules(root / "foreign")):
            yield root
    finally:
        subprocess.run([HERE / "down", state], check=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(root)


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly at the end that the most important tests of the layer did not run."""
    for reason in _untested:
        terminalreporter.section("REAL SLURM NOT TESTED", red=True, bold=True)
        terminalreporter.line(f"Nothing was launched on a real Slurm, because {reason}.")
