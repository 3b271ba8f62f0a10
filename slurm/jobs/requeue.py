"""Whether a training job that stopped is run again, decided from what it noted about its starts.

At a signal (time limit, preemption, `scancel --signal`) the ranks save, and submitit's own handler
requeues the job. Crashes (a killed rank, out of memory, a lost connection) are handled by the last
lines of the batch script, which call this module:

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

from models import command_line
from models.command_line import EXIT_DIVERGED, EXIT_REJECTED, EXIT_STALLED, say
from slurm.jobs.exit_reason import reason_in_logs
from slurm.jobs.ranks import own_job_id
from slurm.jobs.records import JobDir, images_saved
from slurm.resources import Policy
from slurm.slurm_cli import SlurmError, describe, run_slurm

FINAL = frozenset({0, EXIT_REJECTED, EXIT_DIVERGED, EXIT_STALLED})
"""Exit codes that another start would not change."""


@dataclass(frozen=True)
class Decision:
    """Whether to run again, why, and after how many seconds."""

    requeue: bool
    why: str
    delay: int = 0


def decide(
    attempts: Sequence[Mapping[str, Any]], images_seen: int, policy: Policy, *, crashed: bool
) -> Decision:
    """Decide whether a job runs again.

    Args:
        attempts: Its noted starts and ends, oldest first.
        images_seen: Images seen of its newest checkpoint.
        policy: The limits.
        crashed: Whether it ended without a signal.
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


def may_requeue(job_id: str, patience: float = 900.0) -> bool:
    """Whether we may requeue this start of a job: it is running, or its time was just up.

    Not if it was cancelled, or Slurm has requeued it already. Waits for slurmctld to answer, as it
    may be restarting.

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


def restore_time_limit(jobs: JobDir, job_id: str) -> None:
    """Give a requeued job its full time limit again, which Slurm may have shortened (`--time-min`).

    Otherwise every later start would have the short one.
    """
    records = [r for r in jobs.records() if r.job_id == job_id and r.resources.min_minutes]
    with suppress(SlurmError):  # it was cancelled instead, or slurmctld is down
        for record in records:
            limit = f"TimeLimit={record.resources.minutes}"
            run_slurm(["scontrol", "update", f"JobId={job_id}", limit])


def main(arguments: Sequence[str] | None = None) -> int:
    """Decide at the end of a batch script; returns the job's exit code."""
    return command_line.run(lambda: _end(_parser().parse_args(arguments)))


def _end(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it at the requeue below
    jobs, job_id = JobDir(options.run_dir), own_job_id()
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    attempts = jobs.attempts(job_id)
    exits = {a["rank"]: a["code"] for a in attempts if _ended(a, restart)}
    final = [code for code in exits.values() if code in FINAL and code]
    if final or options.code == 0:
        return int(final[0]) if final else 0
    starts = [a for a in attempts if a["event"] == "start" and a.get("restart") == restart]
    if starts and len(exits) == starts[-1].get("ranks") and not any(exits.values()):
        print(f"exit code {options.code}, but all ranks had finished", file=sys.stderr)
        return 0
    if not may_requeue(job_id):
        return int(options.code)
    images_seen = images_saved(options.run_dir)
    decision = decide(attempts, images_seen, policy_of(options), crashed=True)
    jobs.note(job_id, "crash", restart=restart, images_seen=images_seen, code=options.code,
              requeue=decision.requeue, why=decision.why,
              said=reason_in_logs(jobs.records_dir, job_id))  # fmt: skip
    if not decision.requeue:
        say(decision.why, "not run again")
        return EXIT_STALLED
    again = f" in {decision.delay} s" if decision.delay else ""
    print(f"exit code {options.code}: {decision.why}; runs again{again}", file=sys.stderr)
    run_slurm(["scontrol", "requeue", job_id])
    restore_time_limit(jobs, job_id)
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
    add_policy_options(parser)
    return parser


def policy_of(args: argparse.Namespace) -> Policy:
    """Return the limits that a parsed command line sets."""
    return Policy(args.max_stalled, args.max_crashes, args.backoff_seconds)


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the limits."""
    default = Policy()
    parser.add_argument(
        "--max-stalled",
        type=int,
        default=default.max_stalled,
        help=f"stop after this many starts that save nothing new ({default.max_stalled})",
    )
    parser.add_argument(
        "--max-crashes",
        type=int,
        default=default.max_crashes,
        help=f"stop after this many crashes ({default.max_crashes})",
    )
    parser.add_argument(
        "--backoff-seconds",
        type=int,
        default=default.backoff_seconds,
        help=f"wait after a crash, doubling with each ({default.backoff_seconds})",
    )


if __name__ == "__main__":
    sys.exit(main())
