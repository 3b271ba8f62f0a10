"""Whether nodes are fit, tried by a step of its own before the ranks of a training job start.

    python -m slurm.jobs.health ROOT --gpus N

Its tasks are those of the job: one of each node looks at the GPUs and directories, and all of them
reduce a tensor together. What is wrong with a node is noted with its host, so that the end of the
batch script can requeue the job without it (hosts.py).
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models import command_line
from models.command_line import EXIT_LOST, EXIT_STORAGE, EXIT_UNEXPECTED, say
from slurm.jobs.hosts import UNHEALTHY
from slurm.jobs.nvidia_smi import gpu_problems
from slurm.jobs.ranks import Task, enter_rank, this_host, this_task
from slurm.jobs.records import JobDir

if TYPE_CHECKING:
    from dist_train.runtime.world import World

VALUES = 1 << 24
"""Number of floats in the all-reduce (64 MiB)."""
REPEATS = 3
LONGEST = 300.0
"""Seconds in which the ranks must have met and reduced."""
NOTING_SECONDS = 1.0
"""What a failing task waits, as srun then kills the others: they may have something to note too."""


@dataclass(frozen=True)
class Reduced:
    """All-reduces of VALUES floats: whether the sums were right, and the seconds that each took."""

    is_right: bool
    seconds: float
    ranks: int
    device: str
    gpus: int

    @property
    def bytes_per_second(self) -> float:
        """What each rank sends in a ring while it reduces."""
        return 2 * (self.ranks - 1) / self.ranks * VALUES * 4 / self.seconds


def check(jobs: JobDir, gpus_per_node: int, reduce: Callable[[], Reduced]) -> int:
    """Try the node of this task, and the network; returns the exit code.

    Args:
        jobs: Where problems are noted; its directory must be writable.
        gpus_per_node: GPUs that the job requested of each node.
        reduce: All-reduces over all tasks.
    """
    task = this_task()
    problems = list(_node_problems(task, jobs, gpus_per_node))
    if problems:
        return _give_up(task, jobs, "; ".join(problems))
    late = threading.Timer(LONGEST, _end_late, [task])
    late.daemon = True
    late.start()
    reduced = reduce()
    late.cancel()
    if reduced.gpus < min(gpus_per_node, 1):
        return _give_up(task, jobs, f"rank {task.rank} sees no GPU")
    if not reduced.is_right:
        return _give_up(task, jobs, f"the all-reduce gave rank {task.rank} a wrong sum")
    if task.rank == 0:
        what = f"{task.size} ranks on {len(set(task.hosts))} nodes"
        print(f"health: {what} are fit, all-reduce of {VALUES * 4 >> 20} MiB"
              f" in {reduced.seconds:.3f} s", flush=True)  # fmt: skip
    return 0


def _node_problems(task: Task, jobs: JobDir, gpus_per_node: int) -> Iterator[str]:
    """Yield what is wrong with this task's node; only its first task looks at what all share."""
    try:
        enter_rank(task)
    except OSError as error:
        yield f"scratch cannot be used: {error}"
    if task.local_rank:
        return
    for name, directory in (("scratch", tempfile.gettempdir()), ("the run's", jobs.records_dir)):
        if problem := _problem_of_writing(Path(directory)):
            yield f"{name} directory {directory} cannot be written: {problem}"
    if gpus_per_node:
        yield from gpu_problems(gpus_per_node)


def _problem_of_writing(directory: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _give_up(task: Task, jobs: JobDir, why: str) -> int:
    """Say and note what is wrong with this node; returns the exit code."""
    say(f"{this_host()}: {why}")
    try:
        jobs.note(task.job_id, UNHEALTHY, restart=task.restart, rank=task.rank, host=this_host(),
                  hosts=list(task.hosts), why=why)  # fmt: skip
    except OSError:  # its storage is the problem: the job runs again, later each time
        return EXIT_STORAGE
    time.sleep(NOTING_SECONDS)
    return EXIT_UNEXPECTED


def _end_late(task: Task) -> None:
    say(f"rank {task.rank} on {this_host()} did not meet the others in {LONGEST:.0f} s")
    os._exit(EXIT_LOST)


def all_reduce(world: World) -> Reduced:
    """All-reduce a known tensor over the ranks, a few times after a first one."""
    import torch

    ones = torch.ones(VALUES, device=world.device)
    right = bool((world.all_reduce_sum(ones) == world.size).all())
    world.barrier()
    start = time.monotonic()
    for _ in range(REPEATS):
        total = world.all_reduce_sum(ones)
    total[0].item()  # waits for a GPU
    seconds = (time.monotonic() - start) / REPEATS
    right = right and bool((total == world.size).all())
    return Reduced(right, seconds, world.size, str(world.device), torch.cuda.device_count())


def _all_reduce_alone() -> Reduced:
    from dist_train.runtime.world import init_world

    world = init_world()
    try:
        return all_reduce(world)
    finally:
        world.close()


def step(python: str, root: str, srun_arguments: Sequence[str], gpus_per_node: int) -> list[str]:
    """Return the lines of a batch script that end it unless the nodes are fit.

    Args:
        python: The command of Python in a task, for a shell.
        root: The directory whose `slurm/` has the job's notes, for a shell.
        srun_arguments: Those of the job's own ranks.
        gpus_per_node: GPUs that the job requested of each node.
    """
    check = f"{python} -u -m slurm.jobs.health {root} --gpus {gpus_per_node}"
    return [f"SUBMITIT_EXECUTOR=slurm srun {shlex.join(srun_arguments)} {check} || exit $?"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the node of this task; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.jobs.health", description=__doc__)
    parser.add_argument("root", type=Path, help="directory whose slurm/ has the job's notes")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs requested of each node")
    options = parser.parse_args(arguments)
    return command_line.run(lambda: check(JobDir(options.root), options.gpus, _all_reduce_alone))


if __name__ == "__main__":
    sys.exit(main())
