"""Jobs on this machine one after another: `--cluster local` of workflows and sweeps.

Each is a job as `--cluster local` starts it, with its record and its logs. The command waits for
it, and when it is stopped it stops the job first; the same command continues from there.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from models.command_line import EXIT_PREEMPTED, EXIT_UNEXPECTED
from slurm.jobs import local
from slurm.jobs.exit_reason import exit_reason, log_of
from slurm.jobs.jobs import Job, TrainJob
from slurm.jobs.records import JobDir, JobRecord
from slurm.slurm_cli import SlurmError
from slurm.submit.launcher import Submission, submit

POLL_SECONDS = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(SlurmError):
    """The command was asked to stop, and has stopped its job."""

    exit_code = EXIT_PREEMPTED


class JobsFailedError(SlurmError):
    """Jobs failed; the message says where their logs are."""

    exit_code = EXIT_UNEXPECTED


def run_in_order(submission: Submission) -> list[str]:
    """Run the jobs of a submission that are not finished, and wait for each.

    Returns:
        Those that failed, with the reason and the log.

    Raises:
        SlurmError: One of them runs already, as an earlier command was killed.
        StoppedError: This process was asked to stop.
    """
    failed = []
    for number, job in enumerate(submission.jobs, 1):
        if job.finished():
            continue
        share = f" {number} of {len(submission.jobs)}" if len(submission.jobs) > 1 else ""
        record = _run(job, submission, f"{submission.name}{share}")
        if not job.finished():
            jobs = JobDir(_root(job, submission))
            why = exit_reason(jobs, record, record.job_id) or "it ended without a result"
            failed.append(f"{submission.name}{share}: {why}; see {log_of(record, record.job_id)}")
    return failed


def _run(job: Job, submission: Submission, name: str) -> JobRecord:
    """Run a job, which people know by `name`; returns its record when it has ended."""
    root = _root(job, submission)
    for record in JobDir(root).records():
        same = record.cluster == "local" and record.name == submission.name
        if same and local.runs(record.job_id):
            raise SlurmError(
                f"{submission.name} runs already, as job {record.job_id}: wait for it, or"
                f" `relaywave slurm cancel {root}` first"
            )
    alone = replace(
        submission,
        kind="train" if isinstance(job, TrainJob) else submission.kind,
        root=root,
        jobs=[job],
        resources=replace(submission.resources, dependency=""),
    )
    started = time.monotonic()
    with _noting_signals() as asked:
        record = submit(alone)
        print(f"{name}: job {record.job_id}, logs in {record.logs}", flush=True)
        told = False
        while local.runs(record.job_id):
            if asked and not told:
                told = local.stop(JobDir(root), record.job_id)
            time.sleep(POLL_SECONDS)
    if asked and not job.finished():
        raise StoppedError("stopped when asked to; the same command continues")
    print(f"{name}: ended after {time.monotonic() - started:.0f} s", flush=True)
    return record


def _root(job: Job, submission: Submission) -> Path:
    """Return the directory of a job's records: a run's own."""
    return job.run_dir if isinstance(job, TrainJob) else submission.root


@contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """Collect the signals that would end this process."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, _: asked.append(number))
              for number in SIGNALS}  # fmt: skip
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
