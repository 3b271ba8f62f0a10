"""Reading items again after errors of the moment: only damaged content is ever left out."""

from __future__ import annotations

import errno
from contextlib import ExitStack

from data_pipelines.images import BadImage, Pixels
from data_pipelines.sources.base import (
    MAX_ITEM_BYTES,
    Entry,
    ReadItem,
    Source,
    SourceError,
    printable,
)
from data_pipelines.sources.lister.pictures import File, ReadStart
from models.safe_files.transient import is_transient, retried

OF_THE_ITEM = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
     errno.ENAMETOOLONG, errno.ENXIO}
)  # fmt: skip
"""Errors that say something of an item, not of the disk or the machine."""


class SteadyReader:
    """Reads a source's items; opens it when first needed, and anew after an error of the moment."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._opened = ExitStack()
        self._read: ReadItem | None = None

    def __call__(self, entry: Entry) -> bytes | Pixels:
        """Return an item.

        Raises:
            BadImage: It is damaged, missing, or larger than any image.
            SourceError: The disk or the machine fails, also after several attempts; what reads
                the item may be tried again later.
        """
        if entry.size > MAX_ITEM_BYTES:
            raise BadImage(f"too large: {entry.size} bytes, more than any image")
        name = printable(entry.name)
        try:
            return retried(lambda: self._reader()(entry), f"reading {name}", recover=self.close)
        except OSError as error:
            if error.errno is None or error.errno in OF_THE_ITEM:
                raise BadImage(f"unreadable: {error.strerror or error}") from None
            raise SourceError(
                f"{name} cannot be read now: {error.strerror}; run the same command again"
            ) from None

    def close(self) -> None:
        """Close the source."""
        self._read = None
        self._opened.close()

    def _reader(self) -> ReadItem:
        if self._read is None:
            self._read = self._opened.enter_context(self._source.open())
        return self._read


def steady_start(read_start: ReadStart) -> ReadStart:
    """Return a reader of first bytes that tries again; then it raises SourceError."""

    def read(file: File, count: int) -> bytes:
        name = printable(file.name)
        try:
            return retried(lambda: read_start(file, count), f"reading {name}")
        except OSError as error:
            if not is_transient(error):
                raise
            raise SourceError(f"{name} cannot be read now: {error.strerror}") from None

    return read
