"""Locks on files: who holds one is known, and none is left behind.

A lock is an flock, which the kernel releases with the process, so a killed process leaves none
whatever the file says. Who releases one removes the file, so who takes one checks that its file is
still the one of that name. Where the file system has no locks, that is said once, and all go on:
what they protect is written so that two writers waste work and damage nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any

from models.safe_files.documents import parse_object

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""How file systems say that they have no locks."""
POLL_SECONDS = 0.2
TWICE = "processes that do the same here at once do it twice"
"""What it means that there are no locks, where two writers damage nothing."""


class FileLock:
    """A lock, not held at first.

    Args:
        path: The file, which is created; it says who holds the lock.
        stays: Whether the file stays when the lock is released.
        shared: Whether others may hold it at once, if they share it too; then its file stays, and
            does not say who holds it.
        unlocked: What is said where the file system has no locks.

    Attributes:
        works: Whether the lock keeps others out, once it was taken; not on a file system without
            locks.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(
        self, path: Path, stays: bool = False, *, shared: bool = False, unlocked: str = TWICE
    ) -> None:
        self.path, self._stays, self._unlocked = path, stays or shared, unlocked
        self._kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._held = False
        self.works = False
        self._file: IO[str] = open(path, "a+")  # noqa: SIM115 - until release()

    def take(self, patience: float = 0.0) -> bool:
        """Take the lock; False if another process still holds it after `patience` seconds."""
        deadline = time.monotonic() + patience
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        self._held = True
        if self._kind == fcntl.LOCK_SH:
            return True
        self._file.seek(0)
        self._file.truncate()
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.ctime()}
        self._file.write(json.dumps(me))
        self._file.flush()
        return True

    def _try(self) -> bool:
        """Lock the file, if it has not been removed; then that of its name is tried next time."""
        found = lock_if_any(self._file, self._kind, self._unlocked)
        if found is False:
            return False
        self.works = found is True
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                return True
        self._file.close()
        self._file = open(self.path, "a+")  # noqa: SIM115 - until release()
        return False

    @property
    def owner(self) -> str:
        """Who holds the lock, as that process wrote it: "pid 12 on host since ..."."""
        return read_owner(self._file)

    def release(self) -> None:
        """Let others take the lock."""
        if self._held and not self._stays:
            self.path.unlink(missing_ok=True)
        self._file.close()


def read_owner(file: IO[str]) -> str:
    """Return who holds a lock, as that process wrote it: "pid 12 on host since ..."."""
    file.seek(0)
    try:
        owner = parse_object(file.read(4096).encode(), "lock")
        text = f"pid {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError):
        return "another process"
    return text if text.isprintable() else "another process"


def try_lock(file: IO[Any], kind: int = fcntl.LOCK_EX) -> bool:
    """Try to lock an open file; False if another process holds it."""
    return lock_if_any(file, kind) is not False


def lock_if_any(file: IO[Any], kind: int, unlocked: str = TWICE) -> bool | None:
    """Try to lock an open file, as `try_lock`; None where the file system has no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _say_no_locks(Path(file.name).parent, unlocked)
        return None
    return True


@functools.lru_cache(maxsize=1000)
def _say_no_locks(directory: Path, meaning: str) -> None:
    """Say it, once for a directory."""
    print(f"{directory}: the file system has no locks; {meaning}", file=sys.stderr)
