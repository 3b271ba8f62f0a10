"""Directories and files that one job writes at a time, while others wait."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_train.runtime.world import World
from models.safe_files.atomic import atomic_file
from models.safe_files.locks import FileLock

TURN_SECONDS = 20.0
"""How long rank 0 waits for a lock before it tells the other ranks that it is still waiting."""


@contextmanager
def dir_lock(path: Path, world: World) -> Iterator[bool]:
    """Create a directory and hold it for this job, until it ends or dies; wait for other jobs.

    Yields:
        Whether no other job can hold it: not so on a file system without locks.

    Raises:
        ValueError: The directory cannot be written.
    """
    with file_lock(path / ".lock", world) as is_alone:
        yield is_alone


@contextmanager
def file_lock(path: Path, world: World, *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock file, as `dir_lock` does; its directory is created.

    Args:
        path: The file.
        world: The ranks; rank 0 holds it for all.
        shared: Whether other jobs may share it. Then who cannot write the file goes on without.
    """
    lock, problem = None, None
    if world.rank == 0:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, shared=shared)
        except OSError as error:
            problem = f"{path.parent} cannot be written: {error.strerror}"
    problem = world.broadcast_object(problem)
    if problem and not shared:
        raise ValueError(problem)
    try:
        if not problem:
            _wait_for(lock, world)
        yield bool(world.broadcast_object(lock is not None and lock.works))
    finally:
        if lock:
            lock.release()


def lock_path(path: Path) -> Path:
    """Return the lock of a file, beside it."""
    return path.with_name(f".{path.name}.lock")


def _wait_for(lock: FileLock | None, world: World) -> None:
    """Take the lock on rank 0; say once for whom it waits. Collective, in turns."""
    held = world.broadcast_object(lock.take() if lock else None)
    if not held and lock:
        print(f"waiting for {lock.owner}, which is writing {lock.path.parent}", file=sys.stderr)
    while not held:
        held = world.broadcast_object(lock.take(TURN_SECONDS) if lock else None)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is complete or not there; a link is followed."""
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as file:
        file.write(data)
