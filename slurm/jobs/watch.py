"""Has the snapshots of a run evaluated while it trains: `reconcile` after each new one.

    python -m slurm.jobs.watch RUN_DIR

The batch script runs it on the node itself, where sbatch is, and ends it by SIGTERM; then it looks
a last time. Whatever it misses, another caller of `reconcile` submits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from slurm.jobs.interpreter import code_variables, outside_environment, slurm_command
from slurm.jobs.records import JobDir

INTERVAL = 5.0
"""Seconds between looks."""
LONGEST_INTERVAL = 600.0
"""Seconds between looks while Slurm does not answer, or nodes may not submit."""


def watch(run_dir: Path, ended: threading.Event) -> None:
    """Call `reconcile` after each new snapshot until the end, and then once more if one is new."""
    parent, reconciled, interval = os.getppid(), 0, INTERVAL
    while True:
        last = ended.wait(interval) or os.getppid() != parent
        newest = _newest_snapshot(run_dir)
        if newest > reconciled and _reconcile(run_dir):
            reconciled, interval = newest, INTERVAL
        elif newest > reconciled:
            interval = min(2 * interval, LONGEST_INTERVAL)
        if last:
            return


def _newest_snapshot(run_dir: Path) -> int:
    """Return the images seen of the newest one, 0 without any, or without a schedule."""
    if not (run_dir / "evaluation" / "plan.json").exists():
        return 0
    markers = run_dir.glob("snapshots/[0-9]*/snapshot.json")
    return max((int(marker.parent.name) for marker in markers), default=0)


def _reconcile(run_dir: Path) -> bool:
    """Submit due evaluations; returns whether that worked."""
    command = slurm_command("reconcile", str(run_dir))
    environment = outside_environment() | code_variables()
    try:
        with open(JobDir(run_dir).records_dir / "reconcile.log", "a") as log:
            return subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                timeout=120, check=False,
            ).returncode == 0  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"slurm: no evaluation of {run_dir.name} submitted: {error}", file=sys.stderr)
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch a run until SIGTERM; returns the exit code."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    [run_dir] = sys.argv[1:] if arguments is None else arguments
    watch(Path(run_dir), ended)
    return 0


if __name__ == "__main__":
    sys.exit(main())
