"""LSUN: LMDB databases with one WebP image per key, as zips or directories, or exported images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from data_pipelines.sources.base import Entry, Listing, ReadItem, Skip, SourceError
from data_pipelines.sources.file_parts import zip_member
from data_pipelines.sources.files import FileSource, detect
from data_pipelines.sources.lister.archives import is_zip, open_zip, read_at
from data_pipelines.sources.lister.splits import choose_split, count_splits, split_name
from data_pipelines.sources.lmdb_file import LmdbError, records
from models.safe_files.regular import open_file

DATABASE = "data.mdb"
OFFSETS = 1 << 48  # locator = number of the database * OFFSETS + place in its file


@dataclass(frozen=True)
class LsunSource:
    """One category (`bedroom_train_lmdb.zip`, or its directory), or several, as classes.

    A directory or zip without databases is taken as exported images, unlabelled.

    Args:
        path: The database, or what holds several.
        split: Which of `train`, `val`, ... to take, where there are databases of several.
    """

    path: Path
    split: str | None = None
    kind: str = "lsun"
    published: bool = True

    def list_items(self) -> Listing:
        """Return all images in the order of their keys. Raises SourceError if there are none."""
        databases = self._databases()
        if not databases:
            return self._exported()
        names, skips = self._classes(databases), self._others(databases)
        labels = {split_name(name).rest: label for label, name in enumerate(names)}
        entries = []
        for number, database in enumerate(databases):
            label = labels[split_name(_category(database)).rest] if len(names) > 1 else -1
            for key, offset, size in _records(database):
                locator = number * OFFSETS + offset
                entries.append(Entry(key.decode("latin-1"), label, size, locator))
        if not entries:
            raise SourceError(f"the database {self.path} is empty")
        return Listing(entries, names if len(names) > 1 else (), skips)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        databases = self._databases()
        with ExitStack() as stack:
            if not databases:
                yield stack.enter_context(self._exported_files().open())
                return
            files = [stack.enter_context(_open(database))[0] for database in databases]

            def read(entry: Entry) -> bytes:
                number, offset = divmod(entry.locator, OFFSETS)
                return read_at(files[number], entry._replace(locator=offset))

            yield read

    def describe(self) -> dict[str, Any]:
        """Return the path, and the split if one was chosen."""
        return {"path": str(self.path)} | ({"split": self.split} if self.split else {})

    def _exported_files(self) -> FileSource:
        return replace(detect(self.path), published=True, labelled=False, split=self.split)

    def _exported(self) -> Listing:
        try:
            listing = self._exported_files().list_items()
        except SourceError as error:
            raise SourceError(f"{error}; nor does it hold a {DATABASE}") from None
        if not any(entry.name.lower().endswith(".webp") for entry in listing.entries):
            raise SourceError(
                f"{self.path} is not LSUN: it holds neither a {DATABASE} nor WebP images; pack it"
                " as `images`, with --unlabelled if its directories are not classes"
            )
        return listing

    def _databases(self) -> list[Path]:
        """Return the databases of the chosen split, sorted by category.

        Raises:
            SourceError: There are several splits, and none is chosen.
        """
        found = self._all_databases()
        splits = {database: split_name(_category(database)).split for database in found}
        if not found:
            return []
        counts = count_splits(splits.values())
        chosen = choose_split(self.split, counts, str(self.path), "databases")
        return [d for d in found if splits[d] in chosen] if self.split or len(counts) > 1 else found

    def _all_databases(self) -> list[Path]:
        """Return the directories or zips that are databases; directories where both exist."""
        if _is_database(self.path):
            return [self.path]
        if not self.path.is_dir():
            return []
        items = [path for path in self.path.iterdir() if not path.name.startswith(".")]
        found = {_category(p): p for p in items if p.suffix == ".zip" and _is_database(p)}
        found |= {_category(path): path for path in items if _is_database_dir(path)}
        return [found[name] for name in sorted(found)]

    def _classes(self, databases: Sequence[Path]) -> tuple[str, ...]:
        """Return the categories of all splits, called as in the chosen one."""
        names = {split_name(_category(d)).rest: _category(d) for d in self._all_databases()}
        names |= {split_name(_category(d)).rest: _category(d) for d in databases}
        return tuple(sorted(names.values()))

    def _others(self, databases: Sequence[Path]) -> tuple[Skip, ...]:
        """Return what is left out beside databases."""
        if list(databases) == [self.path]:
            return ()
        categories = set(map(_category, self._all_databases()))
        others = [path.name for path in self.path.iterdir() if _category(path) not in categories]
        return tuple(Skip(name, "no LSUN database") for name in sorted(others))


def _category(database: Path) -> str:
    return database.name.removesuffix(".zip").removesuffix("_lmdb")


def _is_database_dir(path: Path) -> bool:
    return (path / DATABASE).is_file()


def _is_database(path: Path) -> bool:
    if not path.is_file() or not is_zip(path):
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
        except (LmdbError, OSError, EOFError, OverflowError, ValueError, zlib.error) as error:
            file_name = database / DATABASE if database.is_dir() else database
            problem = f"cannot be read as an LMDB database: {error}"
            raise SourceError(f"{file_name} {problem}") from None


@contextmanager
def _open(database: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open a database's file, which may be in a zip; also yield its size."""
    if database.is_dir():
        file = database / DATABASE
        with open_file(file) as stream:
            yield stream, file.stat().st_size
        return
    with open_zip(database) as archive, open_file(database) as outer:
        member = _member(archive)
        assert member is not None
        try:
            inner = zip_member(outer, member)
        except zipfile.BadZipFile as error:
            raise SourceError(
                f"{database} cannot be read: {error}; download it again, or unzip it, and give the"
                " directory"
            ) from None
        yield inner, member.file_size
