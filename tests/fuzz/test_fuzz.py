"""Mutations of fixed seeds: each file is rejected by name, skipped by name, or read the same.

All subjects are fuzzed by hand: `python -m tests.fuzz`. Those that are not here still have
escapes, most of them FIFOs in the place of files, which their readers wait for.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.paths import ROOT

CLEAN = ("packed.info", "packed.check")
MUTATIONS = 30


@pytest.mark.parametrize("subject", CLEAN)
def test_mutations_lead_to_no_escape(subject: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz", f"--subject={subject}"]
    done = subprocess.run(
        [*command, f"--count={MUTATIONS}", "--processes=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
