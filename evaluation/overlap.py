"""Work that overlaps: threads decode, encode and write while the device draws and computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST_THREADS = 8


def ahead(
    function: Callable[[T], R], items: Iterable[T], *, threads: int | None = None, depth: int = 0
) -> Generator[R]:
    """Yield function(item) of each item in order, computed by threads while the caller works.

    Items are taken by the caller's thread, so they may themselves be computed on a device. An error
    of the function is raised when its turn comes. However the loop ends, items in work are finished
    first: what is written is complete.

    Args:
        function: Called by several threads at once.
        items: What it is called with.
        threads: Number of threads; null takes this rank's cores.
        depth: Items in work at once, which bounds memory; at least one for each thread.
    """
    threads = threads or cores_of_rank()
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, "ahead") as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > max(depth, threads):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def cores_of_rank() -> int:
    """Return how many threads this rank may keep busy, at most 8."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    cores = len(os.sched_getaffinity(0)) // (int(ranks) if ranks.isdecimal() else 1)
    return min(max(cores, 1), MOST_THREADS)
