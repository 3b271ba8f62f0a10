"""Final files and directories: complete or not there, and never in place of what others made.

Temporary names are random, hence unique across threads, hosts and PID namespaces that share a file
system. What is renamed has been flushed to the disk, and so is the directory's entry. Files get the
mode that the umask gives, also those that a library created as private.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LEFT_OVER = r"\.([0-9a-f]{16}|[0-9]+)\.tmp"
"""What ends a temporary name; formerly with the process's number."""

ABANDONED_SECONDS = 24 * 3600.0
"""Age at which a temporary directory no longer has a writer."""


class NotOurs(ValueError):  # noqa: N818 (says what the directory is)
    """A file or directory that we did not write, and so do not replace."""


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` when the block ends without an error."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file, for libraries that write by name; else as atomic_file."""
    temporary = temporary_path(path)
    try:
        mode = _default_mode(temporary)
        yield temporary
        _settle(temporary, mode)
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(
    path: Path, is_ours: Callable[[Path], bool], what: str = "what we wrote"
) -> Iterator[Path]:
    """Yield a temporary directory that replaces `path` when the block ends without an error.

    A link is followed: the directory that it names is written.

    Args:
        path: The directory. If it is there already, it is replaced only if it is empty or ours.
        is_ours: Tells whether an existing directory holds exactly what we write.
        what: What is replaced, for messages: `path` holds other things than `what`.

    Raises:
        NotOurs: Something else is there; it is left alone.
    """
    target = check_replaceable(path, is_ours, what)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_left_overs(target, older_than=ABANDONED_SECONDS)
    temporary = temporary_path(target)
    temporary.mkdir()
    try:
        yield temporary
        _settle_directory(temporary)
        check_replaceable(target, is_ours, what)
        _swap(temporary, target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(
    path: Path, is_ours: Callable[[Path], bool], what: str = "what we wrote"
) -> Path:
    """Return the directory itself, links followed, if it may be written or replaced.

    Raises:
        NotOurs: It is a file, or holds other things than we write.
    """
    target = Path(os.path.realpath(path))
    if not os.path.lexists(target):
        return target
    if target.is_symlink() or not target.is_dir():
        raise NotOurs(f"{path} is no directory; give another one, or remove it")
    names = sorted(entry.name for entry in target.iterdir())
    if names and not is_ours(target):
        some = ", ".join(map(ascii, names[:3])) + (", ..." if len(names) > 3 else "")
        raise NotOurs(
            f"{path} holds other things than {what} ({some}) and is left as it is;"
            " give another directory, or remove it"
        )
    return target


def temporary_path(path: Path) -> Path:
    """Return a name next to `path` that no other process uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def remove_left_overs(path: Path, older_than: float = 0.0) -> None:
    """Remove temporary files and directories for `path` that killed writers left.

    Args:
        path: What they were to become.
        older_than: Leave those that were changed within this many seconds; 0 if the caller holds a
            lock, so that nobody else is writing.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}{LEFT_OVER}")
    with contextlib.suppress(OSError):
        for entry in path.parent.iterdir():
            if pattern.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if time.time() - entry.lstat().st_mtime >= older_than:
                        _remove(entry)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk, where the file system can do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # one may write into directories that one cannot list
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _default_mode(path: Path) -> int:
    """Create a file and return its mode, which is the umask's."""
    with open(path, "xb") as file:
        return os.fstat(file.fileno()).st_mode & 0o777


def _settle(path: Path, mode: int) -> None:
    """Give a file that a library wrote its mode, and flush it to the disk."""
    path.chmod(mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle_directory(path: Path) -> None:
    probe = temporary_path(path / "mode")
    mode = _default_mode(probe)
    probe.unlink()
    for entry in path.iterdir():
        if entry.is_dir():
            _settle_directory(entry)
        else:
            _settle(entry, mode)
    sync_directory(path)


def _swap(temporary: Path, target: Path) -> None:
    """Put a directory in the place of another, which is removed after that."""
    if not target.exists():
        temporary.rename(target)
        return
    old = temporary_path(target)
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
