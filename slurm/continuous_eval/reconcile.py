"""Which evaluations of a run are due, and their submission.

Every committed snapshot is evaluated by every protocol that wants it. Those that have neither a
result nor a live attempt are submitted as one throttled array. Several callers may run at once
(the batch script after a snapshot, a Slurm job every few minutes, scrontab, a user); see leases.py.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from models.safe_files.documents import DocumentError
from slurm.continuous_eval.leases import Work
from slurm.continuous_eval.lost_jobs import claim_lost, note_successor
from slurm.continuous_eval.panels import log_results
from slurm.continuous_eval.results import mark_best, prune, stop_early
from slurm.continuous_eval.schedule import (
    EvalJob,
    EvaluationSchedule,
    read_schedule,
    snapshots,
    total_images,
)
from slurm.jobs.exit_reason import reason_in_logs
from slurm.jobs.jobs import STOP, run_noted, the_same_again
from slurm.jobs.ranks import Task, this_task
from slurm.jobs.records import JobDir, JobRecord
from slurm.jobs.requeue import was_lost
from slurm.resources import Resources
from slurm.site import Site
from slurm.slurm_cli import queued
from slurm.submit.elastic import resize_waiting
from slurm.submit.launcher import Submission, submit
from slurm.submit.sbatch_options import changed, requested_by

Submit = Callable[[Submission], JobRecord]


@dataclass
class Report:
    """What a call of `reconcile` found and did: counts and titles of evaluations."""

    wanted: int = 0
    done: int = 0
    alive: int = 0
    waiting: int = 0
    submitted: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    best: int | None = None

    def __str__(self) -> str:
        text = f"{self.done} of {self.wanted} evaluations done, {self.alive} in the queue"
        if self.submitted:
            text += f", {len(self.submitted)} submitted"
        if self.waiting:
            text += f", {self.waiting} waiting to be tried again"
        if self.failed:
            text += f", GIVEN UP: {'; '.join(self.failed)}"
        if self.skipped:
            text += f", SKIPPED: {'; '.join(self.skipped)}"
        return text + (f"; best snapshot {self.best:,} images" if self.best is not None else "")


def reconcile(run_dir: Path, site: Site, submit_jobs: Submit = submit) -> Report:
    """Submit the due evaluations of a run, and apply what follows from its results.

    Raises:
        ConfigError: The run has no schedule, or it does not parse.
        SlurmError: Slurm does not answer; nothing was claimed.
    """
    schedule, report = required_schedule(run_dir), Report()
    jobs = [job for job in due(run_dir, schedule, report) if job.work.claim(job.attempt)]
    if jobs:
        record = submit_jobs(submission_of(jobs, run_dir, schedule, site))
        for job, job_id in zip(jobs, record.task_ids, strict=True):
            job.work.submitted(job.attempt, job_id)
        report.submitted = [job.title for job in jobs]
    report.best = mark_best(run_dir, schedule)
    log_results(run_dir)
    stop_early(run_dir, schedule, report.best)
    prune(run_dir, schedule, total_images(run_dir), report.best)
    return report


def required_schedule(run_dir: Path) -> EvaluationSchedule:
    """Return the schedule of a run. Raises ValueError if it has none."""
    schedule = read_schedule(run_dir)
    if schedule is None:
        raise ValueError(f"{run_dir} has no evaluation schedule; give one with --plan FILE")
    return schedule


def due(run_dir: Path, schedule: EvaluationSchedule, report: Report) -> list[EvalJob]:
    """Return the attempts to submit now; counts all evaluations in the report."""
    queue = JobDir(run_dir).own(queued())  # before results are looked for: see Work.alive
    total = total_images(run_dir)
    wanted = (
        EvalJob(Work(run_dir, images, protocol.name), protocol, 0)
        for images in snapshots(run_dir)
        for protocol in schedule.protocols
        if protocol.wants(images, total)
    )
    found = (_next_or_skip(job, schedule, queue, report) for job in wanted)
    return [job for job in found if job is not None]


def _next_or_skip(
    job: EvalJob, schedule: EvaluationSchedule, queue: Collection[str], report: Report
) -> EvalJob | None:
    """Return the attempt that is due, if any; none if the evaluation's claims are damaged."""
    try:
        return _next(job, schedule, queue, report)
    except (DocumentError, OSError) as error:
        report.skipped.append(f"{job.title} ({error})")
        return None


def _next(
    job: EvalJob, schedule: EvaluationSchedule, queue: Collection[str], report: Report
) -> EvalJob | None:
    """Count one evaluation, and return the attempt at it that is due, if any."""
    report.wanted += 1
    work, last = job.work, job.work.attempts
    failures = work.failures if last else 0
    if work.result.exists():
        report.done += 1
    elif last and work.alive(
        last, queue, schedule.claim_seconds, lambda: JobDir(work.run_dir).own(queued())
    ):
        report.alive += 1
    elif work.result.exists():  # it ended in the meantime
        report.done += 1
    elif failures >= schedule.max_attempts:
        report.failed.append(f"{job.title} ({_last_failure(work, failures, work.job_of(last))})")
    elif failures and time.time() < work.ended(last) + schedule.backoff_seconds * 2 ** (
        failures - 1
    ):
        report.waiting += 1
    else:
        return dataclasses.replace(job, attempt=last + 1)
    return None


def _last_failure(work: Work, failures: int, job_id: str) -> str:
    why = reason_in_logs(JobDir(work.run_dir).records_dir, job_id)
    return f"tried {failures} times, last as {job_id}{f': {why}' if why else ''}"


def submission_of(
    jobs: Sequence[EvalJob], run_dir: Path, schedule: EvaluationSchedule, site: Site
) -> Submission:
    """Return attempts as one throttled array of low priority."""
    asked = _requested(run_dir, schedule)
    resources = dataclasses.replace(
        asked,
        partition=asked.partition or site.evaluation_partition,
        qos=asked.qos or site.evaluation_qos,
        nice=asked.nice or 100,
    )
    return Submission(
        kind="eval", name=f"eval-{run_dir.name}", root=run_dir, jobs=jobs,
        resources=resources, site=site,
    )  # fmt: skip


def _requested(run_dir: Path, schedule: EvaluationSchedule) -> Resources:
    """Return what evaluations request: as scheduled, above `SBATCH_*` of the user's shell.

    Without either, as within jobs, they are charged to the account of the run.
    """
    silent = vars(Resources())
    sizes = ("nodes", "tasks_per_node", "gpus_per_node")  # what these are is no default
    said = {name: value for name, value in vars(schedule.resources).items()
            if name in sizes or value != silent[name]}  # fmt: skip
    asked = changed(requested_by([]), said)
    trained = [r for r in JobDir(run_dir).records() if r.kind == "train" and r.cluster == "slurm"]
    account = asked.account or (trained[-1].resources.account if trained else "")
    return dataclasses.replace(asked, account=account)


def maintain(run_dir: Path, site: Site, submit_jobs: Submit = submit) -> list[str]:
    """Do all that is due for a run: evaluation, fewer nodes, jobs that were lost.

    Returns lines for the user.

    Raises:
        ValueError: It is not elastic, has no evaluation schedule, and no job of it was ever lost.
    """
    queue, jobs = queued(), JobDir(run_dir)
    messages = resize_waiting(run_dir, queue)
    if claimed := claim_lost(run_dir, queue, site):
        lost, submission = claimed
        messages.append(note_successor(run_dir, lost, submit_jobs(submission)))
    waits = any(r.resources.fallback_nodes or was_lost(jobs, r.job_id) for r in jobs.records())
    if read_schedule(run_dir) is not None or not (waits or messages):
        messages.append(str(reconcile(run_dir, site, submit_jobs)))
    return messages or ["nothing to do"]


@dataclass(frozen=True)
class ReconcileJob:
    """Reconcile runs now and, by submitting itself again, every few minutes until all is done.

    Attributes:
        runs: Run directories.
        minutes: Time between calls.
        site: The site profile.
        resources: What each call requests.
        name: Job name; Slurm runs one job of the name at a time.
    """

    NEEDS_SLURM: ClassVar[bool] = True

    runs: tuple[Path, ...]
    minutes: int
    site: Site
    resources: Resources
    name: str

    @property
    def title(self) -> str:
        """What it does, for people."""
        return f"reconcile every {self.minutes} minutes"

    def finished(self) -> bool:
        """Whether all runs have ended and are evaluated."""
        return all(self._finished(run_dir) for run_dir in self.runs)

    def __call__(self) -> str:
        """Submit the next call, then do this one, so that a failure does not end the series."""
        if self.finished():
            return "finished"
        run_noted(this_task(), self._submit_and_maintain)
        return "continues"

    def checkpoint(self) -> object:
        """Return what submitit starts again on this machine: the same."""
        return the_same_again(self)

    def _submit_and_maintain(self, task: Task) -> None:
        others = (job for job_id, job in queued().items() if job_id != task.job_id)
        if not any(job.name == self.name for job in others):  # else an earlier start has done it
            submit(self.submission(begin=f"now+{self.minutes}minutes"))
        for run_dir in self.runs:
            for message in maintain(run_dir, self.site):
                print(f"{run_dir.name}: {message}", flush=True)

    def submission(self, begin: str = "") -> Submission:
        """Return the submission of a call."""
        resources = dataclasses.replace(self.resources, begin=begin, dependency="singleton")
        return Submission(
            kind="reconcile", name=self.name, root=self.runs[0], jobs=[self],
            resources=resources, site=self.site,
        )  # fmt: skip

    def _finished(self, run_dir: Path) -> bool:
        schedule, total = read_schedule(run_dir), total_images(run_dir)
        stopped = (JobDir(run_dir).slurm_dir / STOP).exists()
        existing = snapshots(run_dir)
        if schedule is None or not (stopped or (existing and existing[-1] >= total)):
            return schedule is None
        wanted = (
            Work(run_dir, images, protocol.name)
            for images in existing
            for protocol in schedule.protocols
            if protocol.wants(images, total)
        )
        return all(work.result.exists() or _given_up(work, schedule) for work in wanted)


def _given_up(work: Work, schedule: EvaluationSchedule) -> bool:
    try:
        return work.failures >= schedule.max_attempts
    except (DocumentError, OSError):  # what cannot be read may be alive
        return False
