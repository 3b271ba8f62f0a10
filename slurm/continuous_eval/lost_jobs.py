"""Submitting training again that could not be requeued from its node: `reconcile` on a login node.

The end of the batch script has noted that the job is to run again, and why it could not be requeued
(slurm/jobs/batch_end.py); or the batch script was killed before it could settle the end. Each such
job is followed by one job, however many callers there are.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from slurm.continuous_eval.leases import create
from slurm.jobs.exit_reason import exit_states
from slurm.jobs.hosts import unfit_hosts
from slurm.jobs.jobs import TrainJob
from slurm.jobs.records import JobDir, JobRecord, images_saved
from slurm.jobs.requeue import CONTINUES, LOST, decide, history, starts_of
from slurm.site import Site
from slurm.slurm_cli import QueuedJob
from slurm.submit.code_copy import check_code
from slurm.submit.launcher import Submission

KILLED = frozenset(
    {"FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "PREEMPTED", "BOOT_FAIL", "DEADLINE"}
)
"""How a job ends, by sacct, whose batch script was killed before it could settle the end."""
SETTLED = frozenset({"end", "crash", "signal", LOST})


def lost_job(run_dir: Path, queue: Mapping[str, QueuedJob]) -> JobRecord | None:
    """Return the newest training job of a run if it was lost: it is to run again, and will not."""
    jobs = JobDir(run_dir)
    records = [record for record in jobs.records() if record.kind == "train"]
    if not records or records[-1].queued(queue) or TrainJob(run_dir).finished():
        return None
    record = records[-1]
    events = [note["event"] for note in jobs.attempts(record.job_id)]
    last = next((e for e in reversed(events) if e in ("start", *SETTLED)), "")
    if last == "start" and _note_killed(jobs, record):
        return record
    return record if last == LOST and events[-1] == LOST else None


def _note_killed(jobs: JobDir, record: JobRecord) -> bool:
    """Note a job that ended without a word; returns whether it is to run again.

    It counts as a crash: whatever killed its batch script may do so again.
    """
    state, _ = exit_states([record]).get(record.job_id, ("", ""))
    if state not in KILLED:
        return False
    notes = history(jobs, record.job_id)
    restart = max(int(note.get("restart", 0)) for note in notes if note["job"] == record.job_id)
    images_seen = images_saved(jobs.root)
    *earlier, last = starts_of(notes, images_seen)
    decision = decide(earlier, last.saved, "crash", record.policy)
    why = f"its batch script was killed ({state}); {decision.why}"
    jobs.note(record.job_id, "crash", restart=restart, images_seen=images_seen, why=why,
              requeue=decision.requeue)  # fmt: skip
    if decision.requeue:
        jobs.note(record.job_id, LOST, restart=restart, why=why, delay=decision.delay)
    return decision.requeue


def claim_lost(
    run_dir: Path, queue: Mapping[str, QueuedJob], site: Site
) -> tuple[JobRecord, Submission] | None:
    """Return a lost job and what follows it, if this caller is the one to submit that.

    Raises:
        ConfigError: The code that the job ran is gone or was changed.
    """
    record = lost_job(run_dir, queue)
    if record is None:
        return None
    check_code(Path(record.code))
    jobs = JobDir(run_dir)
    claim = jobs.records_dir / f"{record.job_id}.again"
    if not create(claim, {"time": time.time()}):
        return None
    note = jobs.attempts(record.job_id)[-1]
    unfit = unfit_hosts(history(jobs, record.job_id), site.exclude_after)
    excluded = ",".join([*filter(None, [record.resources.exclude]), *unfit])
    wait = max(0, int(note.get("delay", 0)) - int(time.time() - note["time"]))
    begin = f"now+{wait}" if wait else ""
    return record, Submission(
        kind="train", name=record.name, root=run_dir, jobs=[TrainJob(run_dir, record.policy)],
        resources=dataclasses.replace(
            record.resources, dependency="", begin=begin, exclude=excluded
        ),
        site=site, code=Path(record.code), cwd=Path(record.cwd),
    )  # fmt: skip


def note_successor(run_dir: Path, lost: JobRecord, record: JobRecord) -> str:
    """Note which job a new one continues, whose starts count on; returns a line for the user."""
    JobDir(run_dir).note(record.job_id, CONTINUES, of=lost.job_id)
    return f"job {lost.job_id} could not be requeued from its node; submitted as {record.job_id}"
