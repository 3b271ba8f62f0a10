"""Workflows: a graph of jobs; submission is idempotent.

A step whose product is on disk is skipped, one whose job is in the queue is left there, and what is
submitted waits for the jobs before it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from slurm.jobs import local
from slurm.jobs.exit_reason import exit_states, task_exits
from slurm.jobs.jobs import Job, run_command, run_noted, the_same_again
from slurm.jobs.ranks import Task, this_task
from slurm.jobs.records import JobDir, JobRecord
from slurm.monitor.status import queue_or_empty
from slurm.resources import Resources
from slurm.slurm_cli import QueuedJob
from slurm.submit.arguments import Target
from slurm.submit.in_order import JobsFailedError, run_in_order
from slurm.submit.launcher import Submission

if TYPE_CHECKING:
    from dist_train.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part of a workflow: a job, or an array of jobs.

    Attributes:
        name: Name within the workflow.
        kind: The command that it is: `train`, `eval`, `pack`, ...
        root: The directory whose `slurm/` holds its jobs: for training, the run directory.
        jobs: The job, or the tasks of an array.
        resources: What each of them requests.
        after: Names of the steps that it waits for.
        when: Whether those must succeed (`afterok`) or just end (`afterany`).
        config: Configuration of the run; for training steps only.
        until: File of a later step; once it exists, this one is not needed any more.
    """

    name: str
    kind: str
    root: Path
    jobs: Sequence[Job]
    resources: Resources
    after: tuple[str, ...] = ()
    when: Literal["afterok", "afterany"] = "afterok"
    config: RunConfig | None = None
    until: Path | None = None

    def finished(self) -> bool:
        """Whether all of it is on disk, or not needed any more."""
        if self.until is not None and self.until.exists():
            return True
        return all(job.finished() for job in self.jobs)


@dataclass(frozen=True)
class Workflow:
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


def newest_record(workflow: str, step: Step) -> JobRecord | None:
    """Return the record of a step's newest job, None if it was never submitted."""
    records = JobDir(step.root).records()
    return next((r for r in reversed(records) if r.name == job_name(workflow, step)), None)


def job_name(workflow: str, step: Step) -> str:
    """Return the name of a step's job."""
    return f"{workflow}-{step.name}"


def job_in_queue(workflow: str, step: Step, queue: Mapping[str, QueuedJob]) -> str:
    """Return the id of a step's job that is in the queue, "" if there is none."""
    record = newest_record(workflow, step)
    return record.job_id if record and record.queued(queue) else ""


def submit_workflow(
    workflow: Workflow,
    target: Target,
    queue: Mapping[str, QueuedJob],
    prepare: Callable[[Step], None],
) -> None:
    """Submit what is missing.

    Args:
        workflow: The steps.
        target: Where to.
        queue: The jobs in Slurm's queue.
        prepare: Called for each step before its submission.

    Raises:
        SlurmError: Slurm would reject a step; then nothing was submitted.
    """
    missing = [step for step in workflow.steps if not step.finished()]
    alive = {step.name: job_in_queue(workflow.name, step, queue) for step in missing}
    due = [step for step in missing if not alive[step.name]]
    for step in due:
        target.check_script(_submission(workflow, step, target, {}))
    ids = {name: job_id for name, job_id in alive.items() if job_id}
    for step in due:
        if not target.dry_run:
            prepare(step)
        record = target.launch(_submission(workflow, step, target, ids))
        ids[step.name] = record.job_id if record else f"JOB_OF_{step.name}"


def run_workflow(workflow: Workflow, target: Target, prepare: Callable[[Step], None]) -> None:
    """Run what is missing on this machine, a step after another.

    Args:
        workflow: The steps.
        target: This machine.
        prepare: Called for each step before it.

    Raises:
        JobsFailedError: A step failed; those that need it were skipped, the others were run.
    """
    failed: dict[str, str] = {}
    for step in workflow.steps:
        lacking = [name for name in step.after if name in failed]
        if step.finished():
            continue
        if lacking and step.when == "afterok":
            failed[step.name] = f"{step.name} was skipped, as it needs {', '.join(lacking)}"
            continue
        if isinstance(step.jobs[0], ReportJob):  # it is for people: here, not in a log
            if (code := _code_of(step.jobs[0])) is not None:
                failed[step.name] = str(code)
            continue
        prepare(step)
        if found := run_in_order(_submission(workflow, step, target, {})):
            failed[step.name] = "; ".join(found)
    if failed:
        why = "; ".join(failed.values())
        raise JobsFailedError(f"{why}; the same command continues from there")


def _code_of(job: Job) -> str | int | None:
    """Run a job in this process; returns what it exits with, None if it does not exit."""
    try:
        job()
    except SystemExit as error:
        return error.code
    return None


def _submission(
    workflow: Workflow, step: Step, target: Target, ids: Mapping[str, str]
) -> Submission:
    waits = [f"{step.when}:{ids[name]}" for name in step.after if name in ids]
    return Submission(
        kind=step.kind,
        name=job_name(workflow.name, step),
        root=step.root,
        jobs=step.jobs,
        resources=dataclasses.replace(step.resources, dependency=",".join(waits)),
        site=target.site,
        executor=target.executor,
    )


def format_tree(name: str, steps: Sequence[Step], queue: Mapping[str, QueuedJob]) -> str:
    """Return the steps of a workflow as a tree, with the state of each."""
    depths: dict[str, int] = {}
    lines = [name]
    for step in steps:
        depths[step.name] = 1 + max((depths[before] for before in step.after), default=0)
        waits = f"  after {', '.join(step.after)}" if step.after else ""
        lines.append(f"{'  ' * depths[step.name]}└ {step.name}: {_state(name, step, queue)}{waits}")
    return "\n".join(lines)


def _state(workflow: str, step: Step, queue: Mapping[str, QueuedJob]) -> str:
    if step.finished():
        return "finished"
    record = newest_record(workflow, step)
    if record is None:
        return "not submitted"
    states = {job.state for job in record.queued(queue).values()}
    if states:
        return f"job {record.job_id} {', '.join(sorted(states)).lower()}"
    if record.cluster == "local" and local.runs(record.job_id):
        return f"job {record.job_id} running"
    jobs = JobDir(step.root)
    by_slurm = exit_states([record]) if record.cluster == "slurm" else {}
    state, why = task_exits(jobs, record, by_slurm)
    text = f"STOPPED: job {record.job_id} {f'was {state}' if state else 'has ended'}"
    return f"{text}{f' ({why})' if why else ''}; logs in {record.logs}"


@dataclass(frozen=True)
class ReportJob:
    """The report of a workflow, even if steps failed: its tree, and a table of existing results.

    Attributes:
        workflow: Name of the workflow.
        steps: All steps before this one.
        results: Results of evaluation, in the order of the table.
        done: File that is written once no result is missing.
        write: Arguments of `relaywave slurm` that write what is made of the results; by default
            their table is printed.
    """

    NEEDS_SLURM: ClassVar[bool] = True

    workflow: str
    steps: tuple[Step, ...]
    results: tuple[Path, ...]
    done: Path
    write: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What it does, for people."""
        return f"report on {self.workflow}"

    def finished(self) -> bool:
        """Whether it has reported on all results."""
        return self.done.exists()

    def __call__(self) -> str:
        """Report; exits with code 1 if a result is missing, so that it counts as unfinished."""
        run_noted(this_task(), self._report)
        return "finished"

    def checkpoint(self) -> Any:
        """Return what submitit starts again on this machine: the same."""
        return the_same_again(self)

    def _report(self, task: Task) -> None:
        records = [newest_record(self.workflow, step) for step in self.steps]
        by_slurm = any(record is not None and record.cluster == "slurm" for record in records)
        queue = queue_or_empty() if by_slurm else {}
        print(format_tree(self.workflow, self.steps, queue), flush=True)
        existing = [str(path) for path in self.results if path.exists()]
        if self.write:
            run_command("slurm", self.write)
        elif existing:
            run_command("evaluation", ["table", *existing])
        if len(existing) < len(self.results):
            missing = [path.stem for path in self.results if not path.exists()]
            sys.exit(f"error: no result of {', '.join(missing)}; fix the cause and submit again")
        self.done.parent.mkdir(parents=True, exist_ok=True)
        self.done.touch()
