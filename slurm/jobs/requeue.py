"""Whether a training job that stopped is run again, decided from what it noted about its starts.

Signals (time limit, preemption, `scancel --signal`) come with the state saved, and the job goes
back to the queue by submitit's own handler. What ends without a word (a killed rank, out of memory,
a lost connection) is seen by the batch script, whose last lines call this module:

    python -m slurm.jobs.requeue RUN_DIR EXIT_CODE
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.jobs.exit_reason import last_words
from slurm.jobs.ranks import own_job_id
from slurm.jobs.records import JobFolder, images_saved
from slurm.resources import Policy
from slurm.slurm_cli import SlurmError, describe, run_slurm

EXIT_REFUSED, EXIT_DIVERGED, EXIT_STALLED, EXIT_PREEMPTED = 2, 3, 4, 75
FINAL = frozenset({0, EXIT_REFUSED, EXIT_DIVERGED, EXIT_STALLED})
"""Exit codes that another start would not change."""


@dataclass(frozen=True)
class Decision:
    """The outcome: run again after a delay in seconds, or not, and why."""

    requeue: bool
    why: str
    delay: int = 0


def decide(
    attempts: Sequence[Mapping[str, Any]], images_seen: int, policy: Policy, *, crashed: bool
) -> Decision:
    """Decide about a job from its notes.

    Args:
        attempts: What it noted, oldest first.
        images_seen: Progress that is saved now.
        policy: The limits.
        crashed: Whether it ended without being asked to.
    """
    stalled = 0
    for attempt in reversed([a for a in attempts if a["event"] == "start"]):
        if attempt["images_seen"] < images_seen:
            break
        stalled += 1
    if stalled >= policy.max_stalled:
        return Decision(
            False, f"{stalled} starts in a row saved nothing beyond {images_seen:,} images"
        )
    if not crashed:
        return Decision(True, "asked to stop")
    crashes = sum(1 for attempt in attempts if attempt["event"] == "crash")
    if crashes >= policy.max_crashes:
        return Decision(False, f"it crashed {crashes + 1} times")
    delay = policy.backoff_seconds * 2 ** max(stalled - 1, 0)
    return Decision(True, "it crashed", min(delay, 3600))


def goes_on(job_id: str, patience: float = 900.0) -> bool:
    """Whether this very start may still be requeued by us: it is running, or its time was just up.

    It may not if it was cancelled, or is requeued by Slurm already. Waits for slurmctld to answer,
    as it may be starting again.

    Raises:
        SlurmError: It did not answer for `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            job = describe(job_id)
        except SlurmError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2.0)
            continue
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        ours = job.get("JobState") == "RUNNING" or job.get("Reason") == "TimeLimit"
        return ours and job.get("Restarts") == restarts


def ask_for_whole_time(folder: JobFolder, job_id: str) -> None:
    """Undo in a job that was requeued that Slurm has shortened its time limit (`--time-min`).

    Slurm keeps the short limit else, and every later start would have that only.
    """
    records = [r for r in folder.records() if r.job_id == job_id and r.resources.min_minutes]
    with suppress(SlurmError):  # it was cancelled instead, or slurmctld is away
        for record in records:
            limit = f"TimeLimit={record.resources.minutes}"
            run_slurm(["scontrol", "update", f"JobId={job_id}", limit])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the end of a batch script; returns the job's exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes with the requeue that is asked for here
    folder, job_id = JobFolder(options.run_dir), own_job_id()
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    attempts = folder.attempts(job_id)
    exits = {a["rank"]: a["code"] for a in attempts if _ended(a, restart)}
    final = [code for code in exits.values() if code in FINAL and code]
    if final or options.code == 0:
        return int(final[0]) if final else 0
    starts = [a for a in attempts if a["event"] == "start" and a["restart"] == restart]
    if starts and list(exits.values()) == [0] * starts[-1]["ranks"]:
        print(f"exit code {options.code}, but all ranks had finished", file=sys.stderr)
        return 0
    if not goes_on(job_id):
        return int(options.code)
    policy = Policy(options.max_stalled, options.max_crashes, options.backoff_seconds)
    images_seen = images_saved(options.run_dir)
    decision = decide(attempts, images_seen, policy, crashed=True)
    folder.note(job_id, "crash", restart=restart, images_seen=images_seen, code=options.code,
                requeue=decision.requeue, why=decision.why,
                said=last_words(folder.jobs, job_id))  # fmt: skip
    if not decision.requeue:
        print(f"not run again: {decision.why}", file=sys.stderr, flush=True)
        return EXIT_STALLED
    again = f" in {decision.delay} s" if decision.delay else ""
    print(f"exit code {options.code}: {decision.why}; runs again{again}", file=sys.stderr)
    run_slurm(["scontrol", "requeue", job_id])
    ask_for_whole_time(folder, job_id)
    if decision.delay:
        run_slurm(["scontrol", "update", f"JobId={job_id}", f"StartTime=now+{decision.delay}"])
    return int(options.code)


def _ended(attempt: Mapping[str, Any], restart: int) -> bool:
    return (attempt["event"], attempt.get("restart")) == ("exit", restart)


def epilogue(python: str, run_dir: str, policy: Policy) -> list[str]:
    """Return the lines of the batch script that follow the job's command."""
    return [
        f"{python} -m slurm.jobs.requeue {run_dir} $?"
        f" --max-stalled {policy.max_stalled} --max-crashes {policy.max_crashes}"
        f" --backoff-seconds {policy.backoff_seconds}",
        "exit $?",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slurm.jobs.requeue", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("code", type=int, help="exit code of the job's command")
    add_policy(parser)
    return parser


def add_policy(parser: argparse._ActionsContainer) -> None:
    """Add the options of the limits."""
    usual = Policy()
    parser.add_argument(
        "--max-stalled",
        type=int,
        default=usual.max_stalled,
        help=f"stop after this many starts that save nothing new ({usual.max_stalled})",
    )
    parser.add_argument(
        "--max-crashes",
        type=int,
        default=usual.max_crashes,
        help=f"stop after this many crashes ({usual.max_crashes})",
    )
    parser.add_argument(
        "--backoff-seconds",
        type=int,
        default=usual.backoff_seconds,
        help=f"wait after a crash, doubling with each ({usual.backoff_seconds})",
    )


if __name__ == "__main__":
    sys.exit(main())
