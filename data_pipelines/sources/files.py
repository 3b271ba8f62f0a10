"""Images as files: in a directory, a zip or a tar; the class is the subdirectory, if any."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from data_pipelines.images import BadImage
from data_pipelines.sources.base import Entry, Listing, ReadItem, SourceError, label_by_directory


@dataclass(frozen=True)
class DirectorySource:
    """A directory of image files, searched recursively; links to directories are followed."""

    path: Path
    kind: str = "folder"
    published: bool = False
    labelled: bool = True

    def list_items(self) -> Listing:
        """Return all image files. Raises SourceError if there are none."""
        if not self.path.is_dir():
            raise SourceError(f"{self.path} is not a directory")
        return label_by_directory(
            self._files(), where=f"the directory {self.path}", labelled=self.labelled
        )

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        yield lambda entry: (self.path / entry.name).read_bytes()

    def describe(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path)}

    def _files(self) -> Iterator[tuple[str, int, int]]:
        for directory, inner, names in os.walk(self.path, followlinks=True, onerror=_raise):
            inner.sort()
            for name in names:
                file = Path(directory, name)
                size = _regular_file_size(file)
                if size is not None:
                    yield file.relative_to(self.path).as_posix(), size, 0


def _regular_file_size(file: Path) -> int | None:
    """Return a file's size; 0 for a broken link, which the reader reports; None for a pipe."""
    try:
        status = file.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _raise(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be listed: {error.strerror}")


@dataclass(frozen=True)
class ZipSource:
    """A zip archive of image files."""

    path: Path
    kind: str = "zip"
    published: bool = False
    labelled: bool = True

    def list_items(self) -> Listing:
        """Return all image files. Raises SourceError if it is not a zip, or holds none."""
        with open_zip(self.path) as archive:
            members = [
                (info.filename, info.file_size, 0)
                for info in archive.infolist()
                if not info.is_dir() and not info.filename.startswith("__MACOSX/")
            ]
        return label_by_directory(members, where=f"the zip {self.path}", labelled=self.labelled)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        with open_zip(self.path) as archive:
            yield lambda entry: read_zip_member(archive, entry.name)

    def describe(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path)}


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive. Raises SourceError (one line) if it is not one, or cannot be read."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} cannot be read as a zip archive: {_plain(error)}") from None
    with archive:
        yield archive


def read_zip_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member's bytes. Raises BadImage if it is damaged or encrypted."""
    try:
        return archive.read(name)
    # zipfile: RuntimeError if encrypted, NotImplementedError if compressed in an unknown way.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise BadImage(f"unreadable: {error}") from None


@dataclass(frozen=True)
class TarSource:
    """A tar archive of image files, plain or compressed (gz, bz2, xz)."""

    path: Path
    kind: str = "tar"
    published: bool = False
    labelled: bool = True

    def list_items(self) -> Listing:
        """Return all image files. Raises SourceError if it is not a complete tar, or holds none."""
        members = [(m.name.removeprefix("./"), m.size, m.offset_data) for m in tar_files(self.path)]
        return label_by_directory(members, where=f"the tar {self.path}", labelled=self.labelled)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        with open_maybe_compressed(self.path) as file:
            yield lambda entry: read_at(file, entry)

    def describe(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path)}


def tar_files(path: Path) -> list[tarfile.TarInfo]:
    """Return a tar archive's regular files, in order.

    Raises:
        SourceError: It is not a tar archive, or is cut short (tarfile alone would not notice).
    """
    try:
        with open_maybe_compressed(path) as file:
            return complete_members(file)
    except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise SourceError(f"{path} cannot be read as a tar archive: {_plain(error)}") from None


def complete_members(file: IO[bytes]) -> list[tarfile.TarInfo]:
    """Return the regular files of a tar in an open file.

    Raises:
        tarfile.TarError: It is not a tar, or lacks the end mark, which tarfile does not check.
    """
    with tarfile.open(fileobj=file, mode="r:") as archive:
        members = [member for member in archive if member.isreg()]
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is cut short (no end mark)")
    return members


def open_maybe_compressed(path: Path) -> IO[bytes]:
    """Open a file that may be compressed, by its first bytes, as a seekable stream."""
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(path))
    if start.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(path))
    if start.startswith(b"\xfd7zXZ\0"):
        return cast(IO[bytes], lzma.open(path))
    return open(path, "rb")


def read_at(file: IO[bytes], entry: Entry) -> bytes:
    """Return an entry's bytes at its offset. Raises BadImage if the file ends before."""
    try:
        file.seek(entry.locator)
        content = file.read(entry.size)
    except (OSError, EOFError, zlib.error) as error:
        raise BadImage(f"unreadable: {error}") from None
    if len(content) != entry.size:
        raise BadImage("unreadable: the archive ends before it")
    return content


FileSource = DirectorySource | ZipSource | TarSource


def detect(path: Path) -> FileSource:
    """Return the source of `path`, which is a directory, zip or tar of images.

    Raises:
        SourceError: It is none of them.
    """
    if path.is_dir():
        return DirectorySource(path)
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    if zipfile.is_zipfile(path):
        return ZipSource(path)
    try:
        with open_maybe_compressed(path) as file:
            if file.read(4) == b"PK\3\4":
                raise SourceError(f"{path} is a zip archive that is cut short; download it again")
            file.seek(0)
            tarfile.open(fileobj=file, mode="r:").close()
    except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError):
        raise SourceError(f"{path} is neither a directory nor a zip or tar archive") from None
    return TarSource(path)


def _plain(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
