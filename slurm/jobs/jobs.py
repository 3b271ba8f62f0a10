"""What jobs do: frozen dataclasses of paths and words, called by submitit in every task.

They are pickled by reference, so what runs is the code that was copied at submission.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from slurm.jobs.interpreter import code_variables, outside_environment, slurm_command
from slurm.jobs.ranks import Task, enter_rank, this_task
from slurm.jobs.records import JobFolder, images_saved
from slurm.jobs.requeue import EXIT_PREEMPTED, EXIT_STALLED, ask_for_whole_time, decide, goes_on
from slurm.resources import Policy

STOP = "stop.json"
"""File in a run's `slurm/` that says that it is not to go on, and why."""


class Job(Protocol):
    """Something that tasks do."""

    @property
    def title(self) -> str:
        """What it does, in a few words, for people."""

    def finished(self) -> bool:
        """Whether its product is on disk, so that there is nothing to do."""

    def __call__(self) -> str:
        """Do it, in every task; returns how it ended."""


@dataclass(frozen=True)
class TrainJob:
    """Train the run of a folder to its end, over as many starts as it takes.

    Attributes:
        run_dir: The run folder; its config.json says all.
        policy: How often it is run again.
    """

    run_dir: Path
    policy: Policy = field(default_factory=Policy)

    @property
    def title(self) -> str:
        """What it does, in a few words, for people."""
        return f"train {self.run_dir.name}"

    def finished(self) -> bool:
        """Whether the last snapshot of the run is written, or it was stopped early for good."""
        return (JobFolder(self.run_dir).path / STOP).exists() or self.trained()

    def trained(self) -> bool:
        """Whether the last snapshot of the run is written."""
        from models.config_io import read_config

        path = self.run_dir / "config.json"
        if not path.exists():
            return False
        from dist_train.config import RunConfig

        total = read_config(RunConfig, path).total_images
        seen = (int(p.parent.name) for p in self.run_dir.glob("snapshots/[0-9]*/snapshot.json"))
        return max(seen, default=-1) >= total

    def __call__(self) -> str:
        """Train in this rank; goes back to the queue when asked to stop."""
        task = this_task()
        enter_rank(task)
        submitit_handler = signal.getsignal(signal.SIGUSR2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until training begins, nothing to save
        if task.rank and "SLURM_JOB_ID" not in os.environ:
            signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # Slurm would end it with rank 0
        if task.rank == 0:
            self._begin(task)
        code = self._train()
        JobFolder(self.run_dir).note(
            task.job_id, "exit", restart=task.restart, rank=task.rank, code=code
        )
        if code == EXIT_PREEMPTED and task.rank == 0:
            self._requeue(task, submitit_handler)
        if code not in (0, EXIT_PREEMPTED):
            sys.exit(code)
        if code:
            return "stopped, state saved"
        _wait_for_callers()
        return "finished"

    def checkpoint(self) -> Any:
        """Say, for submitit, what is to be run after the requeue: the same, from the run folder."""
        from submitit.helpers import DelayedSubmission

        task, folder = this_task(), JobFolder(self.run_dir)
        images_seen = images_saved(self.run_dir)
        decision = decide(folder.attempts(task.job_id), images_seen, self.policy, crashed=False)
        folder.note(task.job_id, "signal", restart=task.restart, images_seen=images_seen,
                    requeue=decision.requeue, why=decision.why)  # fmt: skip
        if not decision.requeue:
            self._give_up(task, decision.why)
        return DelayedSubmission(self)

    def _begin(self, task: Task) -> None:
        """Note the start; ends the job if Slurm has started it too often in vain."""
        folder, images_seen = JobFolder(self.run_dir), images_saved(self.run_dir)
        decision = decide(folder.attempts(task.job_id), images_seen, self.policy, crashed=False)
        folder.note(task.job_id, "start", restart=task.restart, images_seen=images_seen,
                    hosts=list(task.hosts), ranks=task.size)  # fmt: skip
        if not decision.requeue:
            self._give_up(task, decision.why)
        if task.restart:
            self._wait_for_predecessor()

    def _wait_for_predecessor(self) -> None:
        """Wait until ranks of the last start, perhaps on a lost node, have left the run folder."""
        from dist_train.runtime.run_dir import RunLock

        RunLock(self.run_dir, patience=600.0).release()

    def _give_up(self, task: Task, why: str) -> None:
        JobFolder(self.run_dir).note(
            task.job_id, "exit", restart=task.restart, rank=task.rank, code=EXIT_STALLED, why=why
        )
        print(f"not run again: {why}", file=sys.stderr, flush=True)
        sys.exit(EXIT_STALLED)

    def _train(self) -> int:
        from dist_train.config import RunConfig
        from dist_train.train import train
        from models.config_io import read_config

        config = read_config(RunConfig, self.run_dir / "config.json")
        return train(config, self.run_dir, on_snapshot=self._reconcile)

    def _requeue(self, task: Task, submitit_handler: Any) -> None:
        """Go back to the queue, unless Slurm does that itself; then this process ends."""
        try:
            if self._may_go_on(task):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes with the requeue
                submitit_handler(signal.SIGUSR2, None)  # checkpoint(), back to the queue, exit
        finally:
            ask_for_whole_time(JobFolder(self.run_dir), task.job_id)

    def _may_go_on(self, task: Task) -> bool:
        """Whether this rank 0 is to requeue: not if Slurm does, or the user cancelled."""
        if (JobFolder(self.run_dir).path / STOP).exists():
            return False
        return "SLURM_JOB_ID" not in os.environ or goes_on(task.job_id)

    def _reconcile(self, snapshot: Path) -> None:
        """Have scheduled evaluation looked after, by a process that nothing waits for."""
        if not (self.run_dir / "evaluation" / "plan.json").exists():
            return
        command = slurm_command("reconcile", str(self.run_dir))
        try:
            with open(JobFolder(self.run_dir).jobs / "reconcile.log", "a") as log:
                caller = subprocess.Popen(
                    command, env=outside_environment() | code_variables(), start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
        except OSError as error:  # training goes on; another caller will do it
            print(f"no evaluation of {snapshot.name} submitted: {error}", file=sys.stderr)
            return
        _callers.append(caller)


@dataclass(frozen=True)
class CommandJob:
    """Run `python -m MODULE WORDS` as ranks: sample, eval, reference, pack.

    These commands keep what they have finished and go on from there, so a job that Slurm stops is
    simply run again.

    Attributes:
        module: `evaluation` or `data_pipelines`.
        words: The command line.
        done: File that is written when all is done; None if nobody asks.
    """

    module: str
    words: tuple[str, ...]
    done: Path | None = None

    @property
    def title(self) -> str:
        """What it does, in a few words, for people."""
        return f"{self.module} {' '.join(self.words)}"

    def finished(self) -> bool:
        """Whether an earlier job has done it."""
        return self.done is not None and self.done.exists()

    def __call__(self) -> str:
        """Run the command in this rank."""
        task = this_task()
        enter_rank(task)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing to save: end at once
        run_command(self.module, self.words)
        if self.done is not None and task.rank == 0:
            self.done.parent.mkdir(parents=True, exist_ok=True)
            self.done.touch()
        return "finished"

    def checkpoint(self) -> Any:
        """Say, for submitit, what is to be run after the requeue: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


_callers: list[subprocess.Popen[bytes]] = []
"""Processes that look after scheduled evaluation."""


def _wait_for_callers() -> None:
    """Give them time to submit before this task, and with it all that it started, ends."""
    for caller in _callers:
        try:
            caller.wait(timeout=120)
        except subprocess.TimeoutExpired:
            caller.kill()


def run_command(module: str, words: Sequence[str]) -> None:
    """Do what `python -m MODULE WORDS` does, in this process; exits unless that returns 0."""
    sys.argv = [module, *words]
    sys.modules.pop(f"{module}.__main__", None)  # it judged the words, in the debug executor
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
