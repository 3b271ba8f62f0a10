"""Where no Slurm can be started its tests say so loudly, and continuous integration fails."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.paths import ROOT


@pytest.mark.parametrize(
    ("ci", "code", "message"),
    [("", 0, "Nothing was launched on a real Slurm, because sbatch not installed"),
     ("1", 1, "continuous integration must test on a real Slurm, but sbatch not installed")],
)  # fmt: skip
def test_a_machine_without_slurm(ci: str, code: int, message: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "doctor",
               "tests/slurm/cluster/test_watching.py"]  # fmt: skip
    environment = {**os.environ, "PATH": "/nowhere", "CI": ci}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout
    text = done.stdout.replace("munged, mariadbd, slurmdbd, slurmctld, slurmd, sbatch", "sbatch")
    assert ("REAL SLURM NOT TESTED" in text) == (not ci)
    assert message in text or "starting Slurm needs root" in text
