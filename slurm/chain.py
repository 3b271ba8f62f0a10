"""Chains of jobs: steps that wait for each other, submitted again as often as one likes.

A step whose product is on disk is skipped, one whose job is in the queue is left there, and what is
submitted waits for the jobs before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slurm.folder import JobFolder
from slurm.jobs import Job
from slurm.launcher import Submission
from slurm.options import Target
from slurm.queue import QueuedJob
from slurm.resources import Resources

if TYPE_CHECKING:
    from dist_train.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part of a pipeline: a job, or an array of jobs.

    Attributes:
        name: Name within the pipeline.
        kind: The command that it is: `train`, `eval`, `pack`, ...
        folder: Folder that its jobs work for.
        jobs: What is done.
        resources: What each of them asks for.
        after: Names of the steps that it waits for.
        when: Whether those must end well (`afterok`) or just end (`afterany`).
        config: Configuration of the run, of a training step.
    """

    name: str
    kind: str
    folder: Path
    jobs: Sequence[Job]
    resources: Resources
    after: tuple[str, ...] = ()
    when: Literal["afterok", "afterany"] = "afterok"
    config: RunConfig | None = None

    def finished(self) -> bool:
        """Whether all of it is on disk."""
        return all(job.finished() for job in self.jobs)


@dataclass(frozen=True)
class Pipeline:
    """Steps in an order in which each comes after those that it waits for.

    Raises:
        ValueError: A step waits for one that does not come before it.
    """

    name: str
    root: Path
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        before: set[str] = set()
        for step in self.steps:
            unknown = set(step.after) - before
            if unknown or step.name in before:
                raise ValueError(f"step {step.name!r} of {self.name} is out of order: {unknown}")
            before.add(step.name)

    def job_name(self, step: Step) -> str:
        """Return the name of a step's job."""
        return f"{self.name}-{step.name}"

    def job_in_queue(self, step: Step, queue: Collection[str]) -> str:
        """Return the id of a step's job that is in the queue, "" if there is none."""
        for record in reversed(JobFolder(step.folder).records()):
            if record.name == self.job_name(step) and set(record.task_ids) & set(queue):
                return record.job_id
        return ""


def submit_pipeline(
    pipeline: Pipeline,
    target: Target,
    queue: Collection[str],
    prepare: Callable[[Step], None],
) -> None:
    """Submit what is missing.

    Args:
        pipeline: The steps.
        target: Where to.
        queue: Ids of the jobs in Slurm's queue.
        prepare: Called for each step before its submission.

    Raises:
        SlurmError: Slurm would refuse a step; then nothing was submitted.
    """
    missing = [step for step in pipeline.steps if not step.finished()]
    alive = {step.name: pipeline.job_in_queue(step, queue) for step in missing}
    due = [step for step in missing if not alive[step.name]]
    for step in due:
        target.judge(_submission(pipeline, step, target, {}))
    ids = {name: job_id for name, job_id in alive.items() if job_id}
    for step in due:
        if not target.dry_run:
            prepare(step)
        record = target.launch(_submission(pipeline, step, target, ids))
        ids[step.name] = record.job_id if record else f"JOB_OF_{step.name}"


def _submission(
    pipeline: Pipeline, step: Step, target: Target, ids: Mapping[str, str]
) -> Submission:
    waits = [f"{step.when}:{ids[name]}" for name in step.after if name in ids]
    return Submission(
        kind=step.kind,
        name=pipeline.job_name(step),
        folder=step.folder,
        jobs=step.jobs,
        resources=dataclasses.replace(step.resources, dependency=",".join(waits)),
        site=target.site,
        cluster=target.cluster,
    )


def format_tree(pipeline: Pipeline, queue: Mapping[str, QueuedJob]) -> str:
    """Return the steps as a tree, with where each stands."""
    depths: dict[str, int] = {}
    lines = [f"{pipeline.name} in {pipeline.root}"]
    for step in pipeline.steps:
        depths[step.name] = 1 + max((depths[name] for name in step.after), default=0)
        waits = f"  after {', '.join(step.after)}" if step.after else ""
        mark = "  " * depths[step.name] + "└ "
        lines.append(f"{mark}{step.name}: {_standing(pipeline, step, queue)}{waits}")
    return "\n".join(lines)


def _standing(pipeline: Pipeline, step: Step, queue: Mapping[str, QueuedJob]) -> str:
    if step.finished():
        return "finished"
    job_id = pipeline.job_in_queue(step, queue)
    if not job_id:
        tried = any(r.name == pipeline.job_name(step) for r in JobFolder(step.folder).records())
        return "stopped" if tried else "not submitted"
    tasks = [job for name, job in queue.items() if name.partition("_")[0] == job_id]
    states = ", ".join(sorted({job.state.lower() for job in tasks}))
    return f"job {job_id} {states}"
