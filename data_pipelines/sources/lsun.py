"""LSUN: LMDB databases with one WebP image per key, as zips or directories, or exported images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from data_pipelines.sources.base import Entry, Listing, ReadItem, SourceError
from data_pipelines.sources.file_parts import zip_member
from data_pipelines.sources.files import detect, open_zip, read_at
from data_pipelines.sources.lmdb_file import LmdbError, records

DATABASE = "data.mdb"
OFFSETS = 1 << 48  # locator = number of the database * OFFSETS + place in its file


@dataclass(frozen=True)
class LsunSource:
    """One category (`bedroom_train_lmdb.zip`, or its directory), or several, as classes.

    A directory or zip without databases is taken as exported images, unlabelled.
    """

    path: Path
    kind: str = "lsun"
    published: bool = True

    def list_items(self) -> Listing:
        """Return all images in the order of their keys. Raises SourceError if there are none."""
        databases = self._databases()
        if not databases:
            return self._exported()
        labelled = len(databases) > 1
        entries = []
        for number, database in enumerate(databases):
            for key, offset, size in _records(database):
                label = number if labelled else -1
                locator = number * OFFSETS + offset
                entries.append(Entry(key.decode("latin-1"), label, size, locator))
        if not entries:
            raise SourceError(f"the database {self.path} is empty")
        return Listing(entries, tuple(map(_category, databases)) if labelled else ())

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        databases = self._databases()
        with ExitStack() as stack:
            if not databases:
                yield stack.enter_context(detect(self.path).open())
                return
            files = [stack.enter_context(_open(database))[0] for database in databases]

            def read(entry: Entry) -> bytes:
                number, offset = divmod(entry.locator, OFFSETS)
                return read_at(files[number], entry._replace(locator=offset))

            yield read

    def describe(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path)}

    def _exported(self) -> Listing:
        listing = replace(detect(self.path), labelled=False).list_items()
        if not any(entry.name.lower().endswith(".webp") for entry in listing.entries):
            raise SourceError(
                f"{self.path} is not LSUN: it holds neither a {DATABASE} nor WebP images; pack it"
                " as `images`, with --unlabelled if its directories are not classes"
            )
        return listing

    def _databases(self) -> list[Path]:
        """Return the directories or zips that are databases; directories where both exist."""
        if _is_database(self.path):
            return [self.path]
        if not self.path.is_dir():
            return []
        found = {_category(path): path for path in self.path.glob("*.zip") if _is_database(path)}
        found |= {_category(path): path for path in self.path.iterdir() if _is_database_dir(path)}
        return [found[name] for name in sorted(found)]


def _category(database: Path) -> str:
    return database.name.removesuffix(".zip").removesuffix("_lmdb")


def _is_database_dir(path: Path) -> bool:
    return (path / DATABASE).is_file()


def _is_database(path: Path) -> bool:
    if not path.is_file() or not zipfile.is_zipfile(path):
        return _is_database_dir(path)
    with open_zip(path) as archive:
        return _member(archive) is not None


def _member(archive: zipfile.ZipFile) -> zipfile.ZipInfo | None:
    found = [i for i in archive.infolist() if PurePosixPath(i.filename).name == DATABASE]
    return found[0] if found else None


def _records(database: Path) -> Iterator[tuple[bytes, int, int]]:
    """Yield key, offset and size of each value."""
    with _open(database) as (file, size):
        try:
            yield from records(file, size)
        except (LmdbError, OSError, EOFError, zlib.error) as error:
            reason = f"cannot be read as an LMDB database: {error}"
            raise SourceError(f"{database} {reason}") from None


@contextmanager
def _open(database: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open a database's file, which may be in a zip; also yield its size."""
    if database.is_dir():
        file = database / DATABASE
        with open(file, "rb") as stream:
            yield stream, file.stat().st_size
        return
    with open_zip(database) as archive, open(database, "rb") as outer:
        member = _member(archive)
        assert member is not None
        try:
            inner = zip_member(outer, member)
        except zipfile.BadZipFile as error:
            raise SourceError(f"{database}: {error}; unzip it, and give the directory") from None
        yield inner, member.file_size
