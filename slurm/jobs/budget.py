"""The budget of a run in GPU-hours: what its starts have used, by their notes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from slurm.jobs.records import JobDir
from slurm.resources import Policy

BUDGET = "budget"
"""Event: the budget `gpu_hours` was found used up while the job ran."""


def gpu_hours(jobs: JobDir, running: str = "") -> float:
    """Return the GPU-hours of all starts of a run; a rank counts as one GPU.

    A start whose end nobody noted, as of a lost node, counts until its last note.

    Args:
        jobs: The run's jobs.
        running: The job that trains now, or has just ended: its last start counts until now.
    """
    ids = [i for record in jobs.records() if record.kind == "train" for i in record.task_ids]
    return sum(_gpu_seconds(jobs.attempts(job_id), job_id == running) for job_id in ids) / 3600


def _gpu_seconds(attempts: Sequence[Mapping[str, Any]], is_running: bool) -> float:
    seconds, numbers = 0.0, [n for n, a in enumerate(attempts) if a["event"] == "start"]
    for begin, end in zip(numbers, [*numbers[1:], len(attempts)], strict=False):
        notes = attempts[begin:end]
        until = notes[-1]["time"]
        if is_running and end == len(attempts) and notes[-1]["event"] in ("start", BUDGET):
            until = time.time()
        seconds += (until - notes[0]["time"]) * notes[0].get("ranks", 1)
    return seconds


def budget_problem(policy: Policy, spent: float) -> str:
    """Return what is to be said of a budget that is used up, "" if there is something left."""
    if not policy.gpu_hours or spent < policy.gpu_hours:
        return ""
    return f"its budget of {policy.gpu_hours:g} GPU-hours is used up ({spent:.2f})"
