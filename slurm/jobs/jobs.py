"""What jobs do: frozen dataclasses of paths and arguments, called by submitit in every task.

They are pickled by reference, so that the code that was copied at submission runs. `resume` hands
them to older copies too: a renamed module or field here breaks those.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dist_train.runtime.run_files import is_run, read_summary
from models import plugins
from models.command_line import EXIT_PREEMPTED, EXIT_STALLED, say
from slurm.jobs.interpreter import code_variables, outside_environment, slurm_command
from slurm.jobs.local import cancelled
from slurm.jobs.ranks import Task, enter_rank, this_task
from slurm.jobs.records import JobDir, images_saved
from slurm.jobs.requeue import decide, may_requeue, restore_time_limit
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
        """Train in this rank; requeues the job when asked to stop."""
        task = this_task()
        enter_rank(task)
        submitit_handler = signal.getsignal(signal.SIGUSR2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # before training there is nothing to save
        if task.rank and "SLURM_JOB_ID" not in os.environ:
            signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # only Slurm ends it with rank 0
        if task.rank == 0:
            self._note_start(task)
        code = self._train()
        JobDir(self.run_dir).note(
            task.job_id, "exit", restart=task.restart, rank=task.rank, code=code
        )
        if code == EXIT_PREEMPTED and task.rank == 0:
            self._requeue(task, submitit_handler)
        if code not in (0, EXIT_PREEMPTED):
            sys.exit(code)
        if code:
            return "stopped, state saved"
        _wait_for_reconcilers()
        return "finished"

    def checkpoint(self) -> Any:
        """Return what submitit runs after the requeue: the same, from the run directory."""
        from submitit.helpers import DelayedSubmission

        task, jobs = this_task(), JobDir(self.run_dir)
        images_seen = images_saved(self.run_dir)
        decision = decide(jobs.attempts(task.job_id), images_seen, self.policy, crashed=False)
        jobs.note(task.job_id, "signal", restart=task.restart, images_seen=images_seen,
                  requeue=decision.requeue, why=decision.why)  # fmt: skip
        if not decision.requeue:
            self._give_up(task, decision.why)
        return DelayedSubmission(self)

    def _note_start(self, task: Task) -> None:
        """Note the start; ends the job if it was started too often without progress."""
        jobs, images_seen = JobDir(self.run_dir), images_saved(self.run_dir)
        decision = decide(jobs.attempts(task.job_id), images_seen, self.policy, crashed=False)
        jobs.note(task.job_id, "start", restart=task.restart, images_seen=images_seen,
                  hosts=list(task.hosts), ranks=task.size)  # fmt: skip
        if not decision.requeue:
            self._give_up(task, decision.why)
        if task.restart:
            self._wait_for_predecessor()

    def _wait_for_predecessor(self) -> None:
        """Wait until ranks of the last start, perhaps on a lost node, have released the run."""
        from dist_train.runtime.run_dir import RunLock

        RunLock(self.run_dir, patience=600.0).release()

    def _give_up(self, task: Task, why: str) -> None:
        JobDir(self.run_dir).note(
            task.job_id, "exit", restart=task.restart, rank=task.rank, code=EXIT_STALLED, why=why
        )
        say(why, "not run again")
        sys.exit(EXIT_STALLED)

    def _train(self) -> int:
        from dist_train.runtime.run_dir import read_run_config
        from dist_train.train import train

        plugins.load()
        config = read_run_config(self.run_dir)
        return train(config, self.run_dir, on_snapshot=self._reconcile)

    def _requeue(self, task: Task, submitit_handler: Any) -> None:
        """Requeue the job, unless Slurm does that itself; then this process ends."""
        try:
            if self._may_requeue(task):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it at the requeue
                submitit_handler(signal.SIGUSR2, None)  # checkpoint(), requeue, exit
        finally:
            restore_time_limit(JobDir(self.run_dir), task.job_id)

    def _may_requeue(self, task: Task) -> bool:
        """Whether rank 0 requeues: not if Slurm does, or the user cancelled."""
        if (JobDir(self.run_dir).slurm_dir / STOP).exists():
            return False
        if "SLURM_JOB_ID" not in os.environ:
            return not cancelled(JobDir(self.run_dir), task.job_id)
        return may_requeue(task.job_id)

    def _reconcile(self, snapshot: Path) -> None:
        """Submit due evaluations, in a process of its own so that training does not wait."""
        if not (self.run_dir / "evaluation" / "plan.json").exists():
            return
        command = slurm_command("reconcile", str(self.run_dir))
        try:
            with open(JobDir(self.run_dir).records_dir / "reconcile.log", "a") as log:
                process = subprocess.Popen(
                    command, env=outside_environment() | code_variables(), start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
        except OSError as error:  # training continues; another caller will do it
            print(f"no evaluation of {snapshot.name} submitted: {error}", file=sys.stderr)
            return
        _reconcilers.append(process)


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
        task = this_task()
        enter_rank(task)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing to save: end at once
        run_command(self.module, self.arguments)
        if self.done is not None and task.rank == 0:
            self.done.parent.mkdir(parents=True, exist_ok=True)
            self.done.touch()
        return "finished"

    def checkpoint(self) -> Any:
        """Return what submitit runs after the requeue: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


_reconcilers: list[subprocess.Popen[bytes]] = []
"""Processes that submit due evaluations."""


def _wait_for_reconcilers() -> None:
    """Give them time to submit before this task, and with it all that it started, ends."""
    for process in _reconcilers:
        try:
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()


def run_command(module: str, arguments: Sequence[str]) -> None:
    """Do what `python -m MODULE ARGUMENTS` does, in this process; exits unless that returns 0."""
    code = importlib.import_module(f"{module}.__main__").main(arguments)
    if code:
        sys.exit(code)
