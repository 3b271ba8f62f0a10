"""What jobs do: frozen dataclasses of paths and arguments, called by submitit in every task.

They are pickled by reference, so that the code that was copied at submission runs. `resume` hands
them to older copies too: a renamed module or field here breaks those.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from dist_train.runtime.run_files import is_run, read_summary
from models import plugins
from models.command_line import (
    EXIT_PREEMPTED,
    EXIT_STALLED,
    EXIT_STORAGE,
    EXIT_UNEXPECTED,
    exit_code,
    leave,
    say,
)
from models.safe_files.atomic import made_by_this_process
from slurm.jobs.interpreter import code_variables, outside_environment
from slurm.jobs.local import cancelled
from slurm.jobs.ranks import Task, enter_rank, this_host, this_task
from slurm.jobs.records import JobDir, images_saved
from slurm.jobs.requeue import decide, starts_of
from slurm.resources import Policy

STOP = "stop.json"
"""File in a run's `slurm/` which says that it must not be resumed, and why."""


class Job(Protocol):
    """What a task does."""

    @property
    def title(self) -> str:
        """What it does, for people."""

    def finished(self) -> bool:
        """Whether its product is on disk already."""

    def __call__(self) -> str:
        """Do it, in every task; returns how it ended."""


@dataclass(frozen=True)
class TrainJob:
    """Train a run to its end, over as many starts as it takes.

    Attributes:
        run_dir: The run directory; its config.json has all settings.
        policy: How often it is run again.
    """

    run_dir: Path
    policy: Policy = field(default_factory=Policy)

    @property
    def title(self) -> str:
        """What it does, for people."""
        return f"train {self.run_dir.name}"

    def finished(self) -> bool:
        """Whether the run is trained, or was stopped early for good."""
        return (JobDir(self.run_dir).slurm_dir / STOP).exists() or self.trained()

    def trained(self) -> bool:
        """Whether the last snapshot of the run is written."""
        if not is_run(self.run_dir):
            return False
        total = read_summary(self.run_dir).total_images
        seen = (int(p.parent.name) for p in self.run_dir.glob("snapshots/[0-9]*/snapshot.json"))
        return max(seen, default=-1) >= total

    def __call__(self) -> str:
        """Train in this rank; saves and returns when asked to stop."""
        task = this_task()
        enter_rank(task)
        start_again = signal.getsignal(signal.SIGUSR2)  # submitit's; only on this machine
        with self._watched(task):
            code = noted(task, JobDir(self.run_dir), lambda: self._train(task))
        if code == EXIT_PREEMPTED and on_slurm():
            leave(0)  # at once: the batch script has but seconds to settle the rest
        if code == EXIT_PREEMPTED and task.rank == 0 and not self._is_over(task):
            start_again(signal.SIGUSR2, None)  # type: ignore[operator,misc]  # exits
        if code not in (0, EXIT_PREEMPTED):
            sys.exit(code)
        return "stopped, state saved" if code else "finished"

    def checkpoint(self) -> Any:
        """Return what submitit starts again on this machine: the same, from the run directory.

        On Slurm it calls this at a signal before this job has begun to run.
        """
        from submitit.helpers import DelayedSubmission

        task, jobs = this_task(), JobDir(self.run_dir)
        if on_slurm():
            leave_noted(task, jobs)
        images_seen = images_saved(self.run_dir)
        now = {"event": "now", "restart": task.restart, "images_seen": images_seen}
        *earlier, last = starts_of([*jobs.attempts(task.job_id), now], images_seen)
        decision = decide(earlier, last.saved, "time limit", self.policy)
        jobs.note(task.job_id, "signal", restart=task.restart, images_seen=images_seen,
                  cause="time limit", requeue=decision.requeue, why=decision.why)  # fmt: skip
        if not decision.requeue:
            say(decision.why, "not run again")
            sys.exit(EXIT_STALLED)
        return DelayedSubmission(self)

    def _is_over(self, task: Task) -> bool:
        """Whether a job of this machine is finished, or was cancelled."""
        return self.finished() or cancelled(JobDir(self.run_dir), task.job_id)

    @contextlib.contextmanager
    def _watched(self, task: Task) -> Iterator[None]:
        """Have the snapshots evaluated (watch.py); on Slurm the batch script sees to that."""
        if on_slurm() or task.rank:
            yield
            return
        command = [sys.executable, "-P", "-m", "slurm.jobs.watch", str(self.run_dir)]
        watcher = subprocess.Popen(command, env=outside_environment() | code_variables())
        try:
            yield
        finally:
            watcher.terminate()
            watcher.wait()

    def _train(self, task: Task) -> int:
        from dist_train.runtime.run_dir import RunLock, read_run_config
        from dist_train.train import train

        jobs = JobDir(self.run_dir)
        if task.rank == 0:
            jobs.note(task.job_id, "start", restart=task.restart, hosts=list(task.hosts),
                      images_seen=images_saved(self.run_dir), ranks=task.size)  # fmt: skip
            if task.restart:  # ranks of the last start, perhaps on a lost node, hold the run
                RunLock(self.run_dir, patience=600.0).release()
        plugins.load()
        return train(read_run_config(self.run_dir), self.run_dir)


@dataclass(frozen=True)
class CommandJob:
    """Run `python -m MODULE ARGUMENTS` as ranks: sample, eval, reference, pack.

    These commands keep what they have finished and resume from there, so a job that Slurm stops is
    simply run again.

    Attributes:
        module: `evaluation` or `data_pipelines`.
        arguments: The command line.
        done: File that is written when all is done; None if that need not be known.
    """

    module: str
    arguments: tuple[str, ...]
    done: Path | None = None

    @property
    def title(self) -> str:
        """What it does, for people."""
        return f"{self.module} {' '.join(self.arguments)}"

    def finished(self) -> bool:
        """Whether an earlier job has done it."""
        return self.done is not None and self.done.exists()

    def __call__(self) -> str:
        """Run the command in this rank."""
        run_in_rank(self._run)
        return "finished"

    def checkpoint(self) -> Any:
        """Return what submitit starts again on this machine: the same."""
        return the_same_again(self)

    def _run(self, task: Task) -> None:
        run_command(self.module, self.arguments)
        if self.done is not None and task.rank == 0:
            self.done.parent.mkdir(parents=True, exist_ok=True)
            self.done.touch()


def on_slurm() -> bool:
    """Whether this process is a task of a job of Slurm, whose batch script requeues it."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def run_in_rank(work: Callable[[Task], None]) -> None:
    """Do work of a command other than training in this task as a rank; exits if it fails.

    What it has finished stays, and it continues from there when its job is run again.
    """
    task = this_task()
    enter_rank(task)
    run_noted(task, work)


def run_noted(task: Task, work: Callable[[Task], None]) -> None:
    """Do work in this task; on Slurm its start and end are noted for the end of the batch script.

    Raises:
        SystemExit: It failed.
    """
    if not on_slurm():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing to save: end at once
        work(task)
        return
    jobs = own_jobs()

    def start_and_work() -> int:
        if task.rank == 0:
            jobs.note(task.job_id, "start", restart=task.restart, hosts=list(task.hosts),
                      images_seen=0, ranks=task.size)  # fmt: skip
        work(task)
        return 0

    noted(task, jobs, start_and_work)


def noted(task: Task, jobs: JobDir, work: Callable[[], int]) -> int:
    """Return the exit code of this task's work, which is noted however it ends.

    On Slurm a signal that asks to stop ends the task, unless the work takes it, as training does
    once it has something to save. Later signals change nothing: the batch script settles the rest.
    """
    if not on_slurm():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing to save: end at once
        if task.rank:
            signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # only Slurm ends it with rank 0
    code = EXIT_UNEXPECTED
    try:
        with _leaving_noted(task, jobs):
            code = work()
    except SystemExit as error:
        code = EXIT_UNEXPECTED if isinstance(error.code, str) else int(error.code or 0)
        raise
    except Exception as error:
        if exit_code(error) != EXIT_STORAGE:
            raise
        code = EXIT_STORAGE
        say(str(error))
        sys.exit(code)
    finally:
        _note_exit(task, jobs, code)
    return code


@contextlib.contextmanager
def _leaving_noted(task: Task, jobs: JobDir) -> Iterator[None]:
    """On Slurm, have a signal that asks to stop end this task, with a note; before and after not.

    submitit's handler, which would requeue the job itself, is taken off.
    """
    if not on_slurm():
        yield
        return
    from dist_train.runtime.preemption import SIGNALS, exiting_when_asked

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with exiting_when_asked(lambda name: _note_and_wait(task, jobs, name)):
        yield


def leave_noted(task: Task, jobs: JobDir) -> NoReturn:
    """End this task at SIGUSR2, with a note that it was asked to stop."""
    _note_and_wait(task, jobs, "SIGUSR2")
    os._exit(EXIT_PREEMPTED)


def _note_and_wait(task: Task, jobs: JobDir, name: str) -> None:
    print(f"stopped by {name}", file=sys.stderr, flush=True)
    _note_exit(task, jobs, EXIT_PREEMPTED, said=name)
    if task.size > 1:  # srun kills the others as soon as one has ended: let them note it, too
        time.sleep(1.0)


def _note_exit(task: Task, jobs: JobDir, code: int, **facts: str) -> None:
    try:
        jobs.note(task.job_id, "exit", restart=task.restart, rank=task.rank, code=code,
                  host=this_host(), saved=made_by_this_process(), **facts)  # fmt: skip
    except OSError as error:  # the exit code says it too
        say(f"the end of rank {task.rank} could not be noted: {error}", "note")


def the_same_again(job: Job) -> Any:
    """Return what submitit's handler of a signal is to start again: the same job.

    On Slurm it is called before the job has begun to run, and ends the task: the batch script
    decides.
    """
    from submitit.helpers import DelayedSubmission

    if on_slurm():
        leave_noted(this_task(), own_jobs())
    return DelayedSubmission(job)


def own_jobs() -> JobDir:
    """Return the jobs that this one is recorded among; submitit knows the directory."""
    return JobDir(Path(os.environ["SUBMITIT_FOLDER"]).parents[1])


def run_command(module: str, arguments: Sequence[str]) -> None:
    """Do what `python -m MODULE ARGUMENTS` does, in this process; exits unless that returns 0."""
    code = importlib.import_module(f"{module}.__main__").main(arguments)
    if code:
        sys.exit(code)
