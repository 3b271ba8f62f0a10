"""Process groups: who this process is, and the few collectives that are used outside DeepSpeed.

Works alike under torchrun, under Slurm (one task per rank) and as a single process without any
process group. Small objects and flags travel over gloo on the CPU, so that they never synchronise
the accelerator.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from models.command_line import describe

T = TypeVar("T")
DEFAULT_TIMEOUT = timedelta(minutes=10)
NO_TIMEOUT = timedelta(days=365)
TASKS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
}
"""Where launchers say how many processes they have started."""


@dataclass(frozen=True)
class World:
    """The group of processes that work together.

    Attributes:
        rank: This process, 0..size-1.
        local_rank: This process among those of its node.
        size: Number of processes.
        device: Where this process computes.
        store: The group's key-value store, which works while collectives hang; None for a world of
            one process.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    store: Any = None

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all ranks; the argument is left alone."""
        total = tensor.clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def reduce_sum(self, tensor: Tensor, to: int = 0) -> None:
        """Sum `tensor` over all ranks into that of rank `to`, in place; others' are undefined."""
        if self.size > 1:
            dist.reduce(tensor, dst=to)

    def broadcast_object(self, value: Any = None) -> Any:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def attempt(self, action: Callable[[], T]) -> T:
        """Return what an action gives on this rank; if a rank cannot do it, none continues.

        Raises:
            ValueError: The action has raised ValueError or OSError on some rank. All ranks raise
                the same, which names that rank unless it was so on all.
        """
        own: ValueError | OSError | None = None
        try:
            result = action()
        except (ValueError, OSError) as error:
            own = error
        problems = self.gather_objects(describe(own) if own else None)
        try:
            if own and len(set(problems)) == 1:
                raise own
            for rank, problem in enumerate(problems):
                if problem is not None:
                    raise ValueError(f"rank {rank}: {problem}") from own
        finally:
            own = None  # an error and a frame that hold each other keep files open
        return result

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        if self.size > 1:
            self.all_reduce_sum(torch.zeros(1))

    def lift_timeouts(self) -> None:
        """Let collectives take any time, as the caller notices by itself that a rank hangs."""
        if self.size > 1:
            for group in list(dist.distributed_c10d._world.pg_map):
                dist.distributed_c10d._set_pg_timeout(NO_TIMEOUT, group)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            # DeepSpeed keeps groups of its own, and a later run in this process must not get them.
            comm = getattr(sys.modules.get("deepspeed"), "comm", None)
            (comm if comm and comm.is_initialized() else dist).destroy_process_group()


def init_world(timeout: timedelta = DEFAULT_TIMEOUT) -> World:
    """Join the process group that the environment describes, and return this process' view of it.

    Reads RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun and our Slurm jobs
    set them; without RANK it is a world of one process. The device is this process' GPU if there
    is one (gloo and NCCL side by side), else the CPU.

    Args:
        timeout: How long a collective may wait for a rank before it raises.

    Raises:
        ValueError: Variables are missing, no numbers, or contradict each other; or a launcher has
            started several processes that do not know each other.
    """
    rank, size = _env_int("RANK", 0), _env_int("WORLD_SIZE", 1)
    local_rank = _env_int("LOCAL_RANK", 0)
    if "RANK" not in os.environ:
        check_single_task()
    if rank >= size or (size > 1 and "RANK" not in os.environ):
        raise ValueError(
            f"RANK={os.environ.get('RANK', '')} and WORLD_SIZE={size} in the environment describe"
            " no rank: unset them, or start with --ranks N, torchrun or `relaywave slurm`"
        )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise ValueError(f"WORLD_SIZE={size} but {name} is not set; start with torchrun")
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timeout)
    store = dist.distributed_c10d._get_default_store() if size > 1 else None
    return World(rank=rank, local_rank=local_rank, size=size, device=device, store=store)


def check_single_task() -> None:
    """Check that no launcher has started several of this process without making them ranks.

    Each of them would be a world of its own, and all would write the same files.

    Raises:
        ValueError: One has.
    """
    for name, launcher in TASKS.items():
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            raise ValueError(
                f"{launcher} started {count} processes ({name}={count}), but they form no world:"
                f" start one with --ranks {count}, or use torchrun or `relaywave slurm`"
            )


def _env_int(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ValueError(f"the environment variable {name}={text!r} is not a whole number")
    return int(text)
