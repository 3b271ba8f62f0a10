"""Trying again after errors that pass by themselves: a network file system that stumbles."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from models.safe_files.regular import TooLarge, open_descriptor, open_file

T = TypeVar("T")
logger = logging.getLogger(__name__)

DELAYS = (0.1, 0.5, 2.0)
"""Seconds before the second, third and last attempt."""

TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT,
     errno.EREMOTEIO, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ENETDOWN,
     errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)  # fmt: skip
"""Errors of reading and writing that may be gone a moment later."""
STORAGE = TRANSIENT | {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM}
"""Those, and the ones of a full disk, which may be gone minutes later."""


def is_transient(error: OSError, errors: frozenset[int] = TRANSIENT) -> bool:
    """Tell whether an error may be gone a moment later."""
    return error.errno in errors and not isinstance(error, TooLarge)


def retried(
    action: Callable[[], T],
    what: str,
    *,
    delays: Sequence[float] | None = None,
    errors: frozenset[int] = TRANSIENT,
    recover: Callable[[], object] = lambda: None,
) -> T:
    """Return the action's result; try again, with back-off, after a transient error.

    Args:
        action: What to do; it must be safe to do it again.
        what: What it does, for the log: `reading shards/000001.tar`.
        delays: Seconds before each further attempt; null takes DELAYS.
        errors: Error numbers that are tried again.
        recover: Called before each further attempt.

    Raises:
        OSError: Another error, or the last attempt's.
    """
    for delay in DELAYS if delays is None else delays:
        try:
            return action()
        except OSError as error:
            if not is_transient(error, errors):
                raise
            logger.warning("%s: %s; trying again in %g s", what, error, delay)
            time.sleep(delay)
            recover()
    return action()


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""

    def digest() -> str:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return retried(digest, f"reading {path}")


class SteadyFile:
    """A file that threads read at offsets, and that is opened again after a transient error.

    A stale handle of a network file system (ESTALE) stays stale until then. The file is closed when
    the last reference is gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = retried(lambda: open_descriptor(path), f"opening {path}")

    def read(self, length: int, offset: int) -> bytes:
        """Return bytes from an offset on: fewer than `length` only where the file ends.

        Raises:
            OSError: They cannot be read, also after several attempts.
        """
        return self.retried(lambda: self._read(length, offset))

    def retried(self, action: Callable[[], T]) -> T:
        """Do something with the descriptor, again if a transient error occurs."""
        return retried(action, f"reading {self._path}", recover=self._reopen)

    def _read(self, length: int, offset: int) -> bytes:
        parts: list[bytes] = []
        missing = length
        while missing:
            part = os.pread(self.descriptor, missing, offset + length - missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        if missing and os.fstat(self.descriptor).st_size >= offset + length:
            raise OSError(errno.EIO, f"{length - missing} of {length} bytes were read")
        return b"".join(parts)

    def _reopen(self) -> None:
        """Open the file anew under the same descriptor, which other threads may be using."""
        with contextlib.suppress(OSError):
            descriptor = open_descriptor(self._path)
            os.dup2(descriptor, self.descriptor, inheritable=False)
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
