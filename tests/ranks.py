"""Running a test's function on several gloo processes.

The processes are started once and serve the whole session: importing torch and DeepSpeed costs more
than most tests. A failure ends them, as they may be left in different places.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.multiprocessing as mp

PATIENCE = 400.0
"""Seconds that a function may take."""
_pools: dict[int, RankPool] = {}


def run_ranks(size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(*arguments)` in `size` processes that are one process group.

    The function must be importable (module level). An exception in any of them is raised here.
    """
    pool = _pools.pop(size, None) or RankPool(size)
    reusable = False
    try:
        reusable = pool.run(function, arguments)
    finally:
        if reusable:
            _pools[size] = pool
        else:
            pool.end()


class RankPool:
    """A process group that waits for work."""

    def __init__(self, size: int) -> None:
        context = mp.get_context("spawn")
        pipes = [context.Pipe() for _ in range(size)]
        self._connections = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, size, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()

    def run(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> bool:
        """Call the function on all ranks; returns whether they can serve another one."""
        reusable = True
        port = _free_port()  # a group that is closed and made anew must not meet its old store
        for connection in self._connections:
            connection.send((function, arguments, port))
        left = list(self._connections)
        while left:
            ready = wait(left, PATIENCE)
            assert ready, f"{function.__name__} did not end in {PATIENCE:g} s"
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = self._connections.index(connection)
                try:
                    problem, fresh = connection.recv()
                except EOFError:
                    problem, fresh = "it is gone", False
                assert problem is None, f"rank {rank}: {problem}"
                reusable = reusable and fresh
                left.remove(connection)
        return reusable

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _is_reusable() -> bool:
    """DeepSpeed holds on to the first process group: it cannot go on after that was closed."""
    return "deepspeed" not in sys.modules or torch.distributed.is_initialized()


def _serve(rank: int, size: int, work: Connection) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
    )
    while True:
        try:
            function, arguments, port = work.recv()
        except EOFError:
            return
        os.environ["MASTER_PORT"] = str(port)
        faulthandler.dump_traceback_later(PATIENCE - 5)  # a hang shows where
        try:
            function(*arguments)
            work.send((None, _is_reusable()))
        except BaseException:
            work.send((traceback.format_exc(), False))
        faulthandler.cancel_dump_traceback_later()


@atexit.register
def _end_all() -> None:
    for pool in _pools.values():
        pool.end()
