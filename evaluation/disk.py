"""Writing that survives kills: files under a temporary name, directories held by one job."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_train.runtime.world import World


def work_dir_of(out: Path) -> Path:
    """Return the directory of the working files of a result or reference, `<name>.work`."""
    return out.with_name(out.name + ".work")


@contextmanager
def dir_lock(path: Path, world: World) -> Iterator[None]:
    """Create a directory and hold it for this job, until it ends or dies.

    Raises:
        ValueError: Another job holds it.
    """
    problem = None
    lock = None
    if world.rank == 0:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "w")  # noqa: SIM115 - held until the end of the block
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            problem = (
                f"{path} is being written by another job; wait for it, or use another directory"
            )
    problem = world.broadcast_object(problem)
    try:
        if problem:
            raise ValueError(problem)
        yield
    finally:
        if lock:
            lock.close()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
