"""Running a test's function on several gloo processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


def run_ranks(size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(*arguments)` in `size` processes that find each other through the environment.

    The function must be importable (module level). An exception in any of them is raised here.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(
        _enter, args=(size, port, function, arguments), nprocs=size, start_method="spawn"
    )


def _enter(
    rank: int, size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    function(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
