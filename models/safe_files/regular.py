"""Opening what may be no file: a FIFO is waited for without end, /dev/zero fills the memory.

Errors are OSErrors that name the path: there is none, or it is a directory, a pipe or a device.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path


def open_file(path: Path | str) -> io.BufferedReader:
    """Open a regular file for reading, without waiting."""
    return open(path, "rb", opener=lambda name, _: open_descriptor(name))


def open_descriptor(path: Path | str) -> int:
    """Return the descriptor of a regular file, open for reading."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class TooLarge(OSError):  # noqa: N818 (a finding about a file)
    """A file is larger than what it should be can be; waiting does not help."""


def read_file(path: Path | str, max_bytes: int = 1 << 32) -> bytes:
    """Return the content of a regular file.

    Raises:
        TooLarge: It has more than `max_bytes`.
        OSError: It is none, or cannot be read.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > max_bytes:
            raise TooLarge(errno.EFBIG, f"it has more than {max_bytes / 1e6:,.0f} MB", str(path))
        return file.read()


def check_file(path: Path | str) -> None:
    """Check that a library which opens by name will find a regular file."""
    _check(os.stat(path), path)


def _check(status: os.stat_result, path: Path | str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
