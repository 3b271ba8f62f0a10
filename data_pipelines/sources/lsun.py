"""LSUN: LMDB databases with one WebP image per key, or folders exported from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipelines.images import BadImage
from data_pipelines.sources.base import Entry, Listing, ReadItem, SourceError
from data_pipelines.sources.files import detect


@dataclass(frozen=True)
class LsunSource:
    """One category (`bedroom_train_lmdb`), or a folder of several, which become classes.

    A folder without databases is taken as an exported one: its images, unlabelled.
    """

    path: Path
    kind: str = "lsun"
    published: bool = True

    def list_items(self) -> Listing:
        """Return all images in the order of their keys. Raises SourceError if there are none."""
        databases = self._databases()
        if not databases:
            return replace(detect(self.path), labelled=False).list_items()
        labelled = len(databases) > 1
        entries = []
        for number, database in enumerate(databases):
            for key, size in _keys(database):
                entries.append(Entry(key, number if labelled else -1, size, number))
        if not entries:
            raise SourceError(f"the database {self.path} is empty")
        names = tuple(database.name.removesuffix("_lmdb") for database in databases)
        return Listing(entries, names if labelled else ())

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        databases = self._databases()
        with ExitStack() as stack:
            if not databases:
                yield stack.enter_context(detect(self.path).open())
                return
            transactions = [stack.enter_context(_reading(database)) for database in databases]
            yield lambda entry: _get(transactions[entry.locator], entry.name)

    def describe(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path)}

    def _databases(self) -> list[Path]:
        if (self.path / "data.mdb").is_file():
            return [self.path]
        return sorted(file.parent for file in self.path.glob("*/data.mdb"))


@contextmanager
def _reading(database: Path) -> Iterator[Any]:
    """Open a read transaction that works without locks, as on read-only mounts."""
    try:
        import lmdb
    except ImportError:
        raise SourceError("LSUN databases need lmdb: pip install 'relaywave[data]'") from None
    try:
        environment = lmdb.open(
            str(database), readonly=True, lock=False, readahead=False, create=False
        )
    except lmdb.Error as error:
        raise SourceError(f"{database} cannot be read as an LMDB database: {error}") from None
    try:
        with environment.begin(buffers=True) as transaction:
            yield transaction
    finally:
        environment.close()


def _keys(database: Path) -> Iterator[tuple[str, int]]:
    """Yield key and size of each value."""
    with _reading(database) as transaction:
        for key, value in transaction.cursor():
            yield bytes(key).decode("latin-1"), len(value)


def _get(transaction: Any, key: str) -> bytes:
    value = transaction.get(key.encode("latin-1"))
    if value is None:
        raise BadImage("unreadable: its key is gone from the database")
    return bytes(value)
