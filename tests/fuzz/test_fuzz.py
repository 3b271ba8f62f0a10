"""Mutations of fixed seeds: each file is rejected by name, skipped by name, or read the same.

More are tried by hand: `python -m tests.fuzz --count 50000 --first 10000`.
"""

from __future__ import annotations

import subprocess
import sys

from tests.paths import ROOT

MUTATIONS = 2000


def test_mutations_lead_to_no_escape() -> None:
    command = [sys.executable, "-m", "tests.fuzz", f"--count={MUTATIONS}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
