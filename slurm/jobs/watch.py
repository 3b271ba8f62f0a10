"""Looks after a run while it trains: `reconcile` after each new snapshot, and its budget.

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

from models.command_line import say
from models.config_io import ConfigError
from slurm.jobs.budget import BUDGET, budget_problem, gpu_hours
from slurm.jobs.interpreter import code_variables, outside_environment, slurm_command
from slurm.jobs.notify import notify
from slurm.jobs.ranks import own_job_id
from slurm.jobs.records import JobDir
from slurm.resources import Policy
from slurm.site import read_site
from slurm.slurm_cli import SlurmError, run_slurm

INTERVAL = 5.0
"""Seconds between looks."""
LONGEST_INTERVAL = 600.0
"""Seconds between looks while Slurm does not answer, or nodes may not submit."""


def watch(run_dir: Path, ended: threading.Event) -> None:
    """Call `reconcile` after each new snapshot until the end, and then once more if one is new.

    When the run's budget is used up, it is asked to stop, or people are told.
    """
    parent, reconciled, interval = os.getppid(), 0, INTERVAL
    policy = None
    while True:
        last = ended.wait(interval) or os.getppid() != parent
        policy = policy or _policy(run_dir)
        if policy and policy.gpu_hours and not last and _is_over_budget(run_dir, policy):
            policy = Policy()  # once
        newest = _newest_snapshot(run_dir)
        if newest > reconciled and _reconcile(run_dir):
            reconciled, interval = newest, INTERVAL
        elif newest > reconciled:
            interval = min(2 * interval, LONGEST_INTERVAL)
        if last:
            return


def _policy(run_dir: Path) -> Policy | None:
    """Return the limits of the job that trains a run here; without Slurm it has none.

    None while its record is not written: it may have started before that.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return Policy()
    job_id = own_job_id()
    records = (r for r in JobDir(run_dir).records() if r.job_id == job_id)
    return next((record.policy for record in records), None)


def _is_over_budget(run_dir: Path, policy: Policy) -> bool:
    """Ask the job to save and end, or tell people, if its budget is used up; returns whether."""
    jobs, job_id = JobDir(run_dir), own_job_id()
    problem = budget_problem(policy, gpu_hours(jobs, job_id))
    if not problem:
        return False
    if any(note["event"] == BUDGET and note.get("gpu_hours") == policy.gpu_hours
           for note in jobs.attempts(job_id)):  # fmt: skip
        return True  # in an earlier start
    jobs.note(job_id, BUDGET, gpu_hours=policy.gpu_hours, why=problem)
    try:
        if policy.budget_warns:
            notify(read_site(), "budget", run_dir, f"job {job_id}: {problem}; it continues")
        else:
            run_slurm(["scancel", "--signal=USR2", job_id])
    except (SlurmError, ConfigError) as error:
        say(f"{problem}: {error}", "note")
    return True


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
