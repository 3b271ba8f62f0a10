"""Final files and directories: complete or not there, and never in place of what others made.

Temporary names are random, hence unique across threads, hosts and PID namespaces that share a file
system. What is renamed has been flushed to the disk, and so is the directory's entry. Files get the
mode that the umask gives, also those that a library created as private.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LEFT_OVER = r"\.([0-9a-f]{16}|[0-9]+)\.tmp"
"""What ends a temporary name; formerly with the process's number."""

ABANDONED_SECONDS = 24 * 3600.0
"""Age at which a temporary directory no longer has a writer."""

START_BYTES = 4096
"""Bytes of a file by which its kind is known."""


_made: Counter[str] = Counter()
"""What this process has made that was not there before."""


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
        _replace(temporary, path)
        sync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def made_by_this_process() -> int:
    """Return how many files and directories this process has completed that were not there before.

    What is only written anew does not count: it is no progress of a command that starts again.
    """
    return _made.total()


def _replace(temporary: Path, path: Path) -> None:
    _made["files"] += not path.exists()
    temporary.replace(path)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file, for libraries that write by name; else as atomic_file."""
    temporary = temporary_path(path)
    try:
        mode = _default_mode(temporary)
        yield temporary
        _settle(temporary, mode)
        _replace(temporary, path)
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
        replace_directory(temporary, target, is_ours, what)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_directory(
    temporary: Path, path: Path, is_ours: Callable[[Path], bool], what: str = "what we wrote"
) -> None:
    """Give a directory whose files are on the disk its name; arguments as of atomic_directory.

    Raises:
        NotOurs: Something else has that name; it is left alone.
    """
    target = check_replaceable(path, is_ours, what)
    _made["directories"] += not target.exists()
    _swap(temporary, target)
    sync_directory(target.parent)


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
        raise NotOurs(
            f"{path} holds other things than {what} ({_some(names)}) and is left as it is;"
            " give another directory, or remove it"
        )
    return target


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file that becomes `path`, which is not replaced.

    A file of the same content may be there already: then nothing changes.

    Raises:
        NotOurs: Anything else is there.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        raise NotOurs(f"{path} is no file; give another name, or remove it")
    temporary = temporary_path(target)
    try:
        mode = _default_mode(temporary)
        yield temporary
        _settle(temporary, mode)
        if not os.path.lexists(target):
            _replace(temporary, target)
            sync_directory(target.parent)
        elif not filecmp.cmp(temporary, target, shallow=False):
            raise NotOurs(
                f"{path} exists, holds something else and is left as it is; give another name, or"
                " remove it"
            )
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_replaceable_file(path: Path, is_ours: Callable[[bytes], bool], what: str) -> Path:
    """Return the file itself, links followed, if it may be written or replaced.

    Args:
        path: The file, which need not exist.
        is_ours: Tells by an existing file's first START_BYTES whether we write such files.
        what: What is replaced, for messages.

    Raises:
        NotOurs: It is a directory, or another file; an empty file is nobody's.
    """
    target = Path(os.path.realpath(path))
    if not os.path.lexists(target):
        return target
    if not target.is_file():
        raise NotOurs(f"{path} is no file; give another name, or remove it")
    with open(target, "rb") as file:
        start = file.read(START_BYTES)
    if start and not is_ours(start):
        raise NotOurs(f"{path} is not {what} and is left as it is; give another name, or remove it")
    return target


def remove_directory(path: Path, ours: re.Pattern[str], what: str) -> None:
    """Remove a directory that holds exactly what we write.

    It gets a temporary name first: a kill leaves no half of it.

    Args:
        path: The directory.
        ours: The names of our files below it, as `shards/000000.tar`.
        what: What is removed, for messages: `path` holds other things than `what`.

    Raises:
        NotOurs: It is a link, or holds other things.
        OSError: It cannot be removed.
    """
    others = [path.name] if path.is_symlink() else _others_in(path, ours)
    if others:
        raise NotOurs(f"{path} holds other things than {what} ({_some(others)})")
    doomed = temporary_path(path)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_ours(path: Path, ours: re.Pattern[str]) -> list[str]:
    """Remove our files below a directory, and the directory itself if nothing else is in it.

    Args:
        path: The directory, which need not exist; a link is followed.
        ours: The names of our files below it, as `shards/000000.tar`.

    Returns:
        The names of what is left: not ours, or not to be removed.
    """
    target = Path(os.path.realpath(path))
    emptied = {target}
    for name in _entries(target):
        if _is_ours(target / name, name, ours):
            with contextlib.suppress(OSError):
                (target / name).unlink()
            emptied |= {target / parent for parent in Path(name).parents}
    for directory in sorted(emptied, reverse=True):
        with contextlib.suppress(OSError):
            directory.rmdir()
    if path.is_symlink() and not target.exists():
        path.unlink()
    return [name for name in _entries(target) if not Path(name).name.startswith(".nfs")]


def _others_in(path: Path, ours: re.Pattern[str]) -> list[str]:
    return [name for name in _entries(path) if not _is_ours(path / name, name, ours)]


def _entries(top: Path) -> list[str]:
    """Return the names of all below a directory but directories that hold something."""
    found = []
    for place, directories, files in os.walk(top):
        inside = Path(place).relative_to(top)
        links = [name for name in directories if (Path(place) / name).is_symlink()]
        found += [(inside / name).as_posix() for name in [*files, *links]]
        if not (directories or files) and Path(place) != top:
            found.append(inside.as_posix())
    return sorted(found)


def _is_ours(path: Path, name: str, ours: re.Pattern[str]) -> bool:
    """Tell whether a file has a name of ours, or is what a killed writer left of such a one."""
    if path.is_symlink() or not path.is_file():
        return False
    left_over = re.fullmatch(rf"(.*/)?\.(.+){LEFT_OVER}", name)
    written = f"{left_over[1] or ''}{left_over[2]}" if left_over else name
    return bool(ours.fullmatch(name) or ours.fullmatch(written))


def _some(names: list[str]) -> str:
    return ", ".join(map(ascii, names[:3])) + (", ..." if len(names) > 3 else "")


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
