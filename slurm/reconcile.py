"""`python -m slurm reconcile RUNS`: scheduled evaluation, brought to the wanted state.

Wanted are committed snapshots x protocols; missing is what has neither a result nor a live attempt;
the missing are submitted as one throttled array. Anyone may call it at any time, also several at
once: rank 0 after a snapshot, a Slurm job every few minutes, scrontab, a user. See `slurm.leases`.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slurm.cluster import Site
from slurm.elastic import shrink_waiting
from slurm.evaluation_plan import (
    EvalJob,
    EvaluationPlan,
    read_plan,
    snapshots,
    total_images,
)
from slurm.folder import JobFolder, JobRecord, write_json
from slurm.jobs import STOP
from slurm.launcher import Submission, submit
from slurm.leases import Work
from slurm.queue import queued, run_slurm
from slurm.resources import Resources
from slurm.results import mirror, values

Submit = Callable[[Submission], JobRecord]


@dataclass
class Report:
    """What a call of `reconcile` found and did, in numbers and names of evaluations."""

    wanted: int = 0
    done: int = 0
    alive: int = 0
    waiting: int = 0
    submitted: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    best: int | None = None

    def __str__(self) -> str:
        text = f"{self.done} of {self.wanted} evaluations done, {self.alive} in the queue"
        if self.submitted:
            text += f", {len(self.submitted)} submitted"
        if self.waiting:
            text += f", {self.waiting} waiting to be tried again"
        if self.failed:
            text += f", GIVEN UP: {'; '.join(self.failed)}"
        return text + (f"; best snapshot {self.best:,} images" if self.best is not None else "")


def reconcile(run_dir: Path, site: Site, submit_jobs: Submit = submit) -> Report:
    """Submit what is missing of a run's evaluation plan, and note what follows from the results.

    Raises:
        ConfigError: The run has no plan, or it does not parse.
        SlurmError: Slurm does not answer; nothing was claimed.
    """
    plan = read_plan(run_dir)
    if plan is None:
        raise ValueError(f"{run_dir} has no evaluation plan; give one with --plan FILE")
    queue = queued()  # before results are looked for: see Work.alive
    report, total = Report(), total_images(run_dir)
    jobs = []
    for images in snapshots(run_dir):
        for protocol in plan.protocols:
            if protocol.wants(images, total):
                job = _next(EvalJob(Work(run_dir, images, protocol.name), protocol, 0), plan,
                            queue, report)  # fmt: skip
                if job is not None and job.work.claim(job.attempt):
                    jobs.append(job)
    if jobs:
        _submit(run_dir, jobs, plan, site, submit_jobs)
        report.submitted = [job.title for job in jobs]
    report.best = _mark_best(run_dir, plan)
    mirror(run_dir)
    _stop_early(run_dir, plan, report.best)
    _prune(run_dir, plan, total, report.best)
    return report


def _next(
    job: EvalJob, plan: EvaluationPlan, queue: Collection[str], report: Report
) -> EvalJob | None:
    """Count one evaluation, and return the attempt at it that is due, if any."""
    work, last = job.work, job.work.attempts
    failures = work.failures if last else 0
    report.wanted += 1
    if work.result.exists():
        report.done += 1
    elif last and work.alive(last, queue, plan.claim_seconds, queued):
        report.alive += 1
    elif work.result.exists():  # it has ended meanwhile
        report.done += 1
    elif failures >= plan.max_attempts:
        report.failed.append(f"{job.title} (tried {failures} times, last as {work.job_of(last)})")
    elif failures and time.time() < work.ended(last) + plan.backoff_seconds * 2 ** (failures - 1):
        report.waiting += 1
    else:
        return dataclasses.replace(job, attempt=last + 1)
    return None


def _submit(
    run_dir: Path, jobs: Sequence[EvalJob], plan: EvaluationPlan, site: Site, submit_jobs: Submit
) -> None:
    """Submit claimed attempts as one array of low priority, and note its tasks' ids."""
    resources = dataclasses.replace(
        plan.resources,
        partition=plan.resources.partition or site.evaluation_partition,
        qos=plan.resources.qos or site.evaluation_qos,
        nice=plan.resources.nice or 100,
    )
    record = submit_jobs(
        Submission(
            kind="eval", name=f"eval-{run_dir.name}", folder=run_dir, jobs=jobs,
            resources=resources, site=site,
        )
    )  # fmt: skip
    for job, job_id in zip(jobs, record.task_ids, strict=True):
        job.work.submitted(job.attempt, job_id)


def _mark_best(run_dir: Path, plan: EvaluationPlan) -> int | None:
    """Note the best snapshot in `evaluation/best.json`; returns its images seen."""
    found = values(run_dir, plan.best) if plan.best else {}
    if not found:
        return None
    best = (max if plan.highest else min)(found, key=lambda images: (found[images], images))
    write_json(
        run_dir / "evaluation" / "best.json",
        {"images_seen": best, "key": plan.best, "value": found[best], "of": len(found)},
    )
    return best


def _stop_early(run_dir: Path, plan: EvaluationPlan, best: int | None) -> None:
    """Stop training for good if its last evaluated snapshots were not better."""
    stop = JobFolder(run_dir).path / STOP
    if not plan.patience or best is None or stop.exists():
        return
    later = [images for images in values(run_dir, plan.best) if images > best]
    if len(later) < plan.patience:
        return
    why = f"{len(later)} snapshots after the one at {best:,} images were not better"
    write_json(stop, {"why": why, "time": time.time()})
    records = JobFolder(run_dir).records()
    ids = [r.job_id for r in records if r.kind == "train" and r.cluster == "slurm"]
    for job_id, job in (queued(ids) if ids else {}).items():
        if job.state == "RUNNING":  # saves, sees the file, and does not go back to the queue
            run_slurm(["scancel", "--signal=USR2", job_id])
        else:
            run_slurm(["scancel", job_id])


def _prune(run_dir: Path, plan: EvaluationPlan, total: int, best: int | None) -> None:
    """Remove old snapshots that nothing needs; those with missing results are pinned."""
    if not plan.keep_snapshots:
        return
    for images in snapshots(run_dir)[: -plan.keep_snapshots]:
        wanted = [p for p in plan.protocols if p.wants(images, total)]
        milestone = any(p.every_images for p in wanted)
        missing = any(not Work(run_dir, images, p.name).result.exists() for p in wanted)
        if not (milestone or missing or images == best):
            shutil.rmtree(run_dir / "snapshots" / f"{images:012d}")


def bring_about(run_dir: Path, site: Site) -> list[str]:
    """Do all that is due for a run, evaluation and fewer nodes; returns what is to be told.

    Raises:
        ValueError: There is nothing that could be due.
    """
    told = shrink_waiting(run_dir, queued())
    elastic = any(record.resources.fallback_nodes for record in JobFolder(run_dir).records())
    if read_plan(run_dir) is not None or not elastic:
        told.append(str(reconcile(run_dir, site)))
    return told or ["nothing to do"]


@dataclass(frozen=True)
class ReconcileJob:
    """Reconcile runs now and, by submitting itself again, every few minutes until all is done.

    Attributes:
        runs: Run folders.
        minutes: Time between calls.
        site: The site profile.
        resources: What each call asks for.
        name: Job name; Slurm runs one job of the name at a time.
    """

    runs: tuple[Path, ...]
    minutes: int
    site: Site
    resources: Resources
    name: str

    @property
    def title(self) -> str:
        """What it does, in a few words, for people."""
        return f"reconcile every {self.minutes} minutes"

    def finished(self) -> bool:
        """Whether all runs have ended and everything wanted of them is evaluated."""
        return all(self._finished(run_dir) for run_dir in self.runs)

    def __call__(self) -> str:
        """Submit the next call, then do this one: a failure does not end the series."""
        if self.finished():
            return "finished"
        submit(self.submission(begin=f"now+{self.minutes}minutes"))
        for run_dir in self.runs:
            for told in bring_about(run_dir, self.site):
                print(f"{run_dir.name}: {told}", flush=True)
        return "goes on"

    def submission(self, begin: str = "") -> Submission:
        """Return the submission of a call."""
        resources = dataclasses.replace(self.resources, begin=begin, dependency="singleton")
        return Submission(
            kind="reconcile", name=self.name, folder=self.runs[0], jobs=[self],
            resources=resources, site=self.site,
        )  # fmt: skip

    def _finished(self, run_dir: Path) -> bool:
        plan, total = read_plan(run_dir), total_images(run_dir)
        stopped = (JobFolder(run_dir).path / STOP).exists()
        existing = snapshots(run_dir)
        if plan is None or not (stopped or (existing and existing[-1] >= total)):
            return plan is None
        wanted = (
            Work(run_dir, images, protocol.name)
            for images in existing
            for protocol in plan.protocols
            if protocol.wants(images, total)
        )
        return all(work.result.exists() or work.failures >= plan.max_attempts for work in wanted)
