"""Walking a directory: every file once, links followed."""

from __future__ import annotations

import os
import stat
from collections import deque
from pathlib import Path

from data_pipelines.sources.base import (
    BROKEN_LINK,
    HIDDEN,
    LINK_LOOP,
    LINKED_AGAIN,
    Skip,
    SourceError,
)
from data_pipelines.sources.lister.pictures import (
    IMAGE_EXTENSIONS,
    File,
    Found,
    extension,
    is_hidden,
)
from models.safe_files.transient import is_transient, retried

Inode = tuple[int, int]
"""Device and inode: what names of one file or directory have in common."""


def walk(top: Path) -> Found:
    """Return all files below a directory.

    Links to directories are followed after all directories proper, each directory once: a link that
    leads back to a directory above it, or to one that is listed already, is skipped by name.

    Raises:
        SourceError: A directory cannot be listed.
    """
    walker = _Walker(top)
    walker.run()
    return walker.found()


class _Walker:
    def __init__(self, top: Path) -> None:
        self._top = top
        self._above = {_inode(path.stat()) for path in top.resolve().parents}
        self._seen = {_inode(top.stat()): ""}
        self._links: deque[tuple[str, Inode]] = deque()
        self._files: list[tuple[File, Inode | None]] = []
        self._skips: list[Skip] = []
        self._shared: set[Inode] = set()  # by several names

    def run(self) -> None:
        """Walk the directories proper, then those behind links."""
        self._list("")
        while self._links:
            name, inode = self._links.popleft()
            if self._is_new(name, inode):
                self._list(name)

    def found(self) -> Found:
        """Return the result."""
        files = [
            file._replace(content=inode) if inode in self._shared else file
            for file, inode in self._files
        ]
        return Found(files, self._skips)

    def _is_new(self, name: str, inode: Inode) -> bool:
        """Return whether a directory is met for the first time; if not, note why it is skipped."""
        first = self._seen.setdefault(inode, name)
        if inode in self._above or (first != name and f"{name}/".startswith(first and f"{first}/")):
            to = "above the top" if inode in self._above else first or "the top"
            self._skips.append(Skip(name, f"{LINK_LOOP}: leads back to {to}"))
        elif first != name:
            self._skips.append(Skip(name, f"{LINKED_AGAIN}: the same directory as {first}"))
        else:
            return True
        return False

    def _list(self, start: str) -> None:
        """List a directory and those below it that are no links."""
        pending = [start]
        while pending:
            directory = pending.pop()
            inner = []
            for item in self._scan(directory):
                name = f"{directory}/{item.name}" if directory else item.name
                if item.is_dir(follow_symlinks=False):
                    if self._is_new(name, _inode(item.stat())):
                        inner.append(name)
                else:
                    self._add(name, item)
            pending += reversed(inner)

    def _scan(self, directory: str) -> list[os.DirEntry[str]]:
        def scan() -> list[os.DirEntry[str]]:
            with os.scandir(self._top / directory) as items:
                return sorted(items, key=lambda item: item.name)

        try:
            return retried(scan, f"listing {self._top / directory}")
        except OSError as error:
            raise SourceError(f"{error.filename} cannot be listed: {error.strerror}") from None

    def _add(self, name: str, item: os.DirEntry[str]) -> None:
        """Note a file, or a link."""
        is_link = item.is_symlink()
        try:
            status = retried(item.stat, f"reading {item.path}")
        except OSError as error:
            if is_transient(error):
                raise SourceError(f"{item.path} cannot be read now: {error.strerror}") from None
            if extension(name) in IMAGE_EXTENSIONS:  # when it is read, the reason is reported
                self._files.append((File(name, 0, BROKEN_LINK), None))
            else:
                self._skips.append(Skip(name, f"unreadable: {error.strerror}"))
            return
        if stat.S_ISDIR(status.st_mode):
            if is_hidden(name):
                self._skips.append(Skip(name, HIDDEN))
            else:
                self._links.append((name, _inode(status)))
        elif stat.S_ISREG(status.st_mode):
            if is_link or status.st_nlink > 1:
                self._shared.add(_inode(status))
            self._files.append((File(name, status.st_size, is_link=is_link), _inode(status)))
        else:
            self._skips.append(Skip(name, "not a regular file"))


def _inode(status: os.stat_result) -> Inode:
    return status.st_dev, status.st_ino
