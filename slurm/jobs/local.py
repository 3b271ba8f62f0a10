"""Jobs that are processes of this machine (`--cluster local`): whether they run, stopping them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from slurm.jobs.records import JobDir

CANCELLED = "cancel"
"""Event of a job's notes: it was asked to end for good, and not for another start."""


def runs(job_id: str) -> bool:
    """Whether the process of a job runs."""
    try:
        return b"submitit" in Path("/proc", job_id, "cmdline").read_bytes()
    except OSError:  # ended, also while it was looked at
        return False


def stop(jobs: JobDir, job_id: str) -> bool:
    """Ask a job to save and end; returns whether it still ran."""
    if not runs(job_id):
        return False
    jobs.note(job_id, CANCELLED)
    os.kill(int(job_id), signal.SIGTERM)  # submitit's controller passes it on to the ranks
    return True


def cancelled(jobs: JobDir, job_id: str) -> bool:
    """Whether a job was asked to end for good."""
    return any(attempt["event"] == CANCELLED for attempt in jobs.attempts(job_id))
