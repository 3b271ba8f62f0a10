"""Images as files: in a directory, a zip, a tar, or a directory of tars (shards)."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, ClassVar

from data_pipelines.images import BadImage
from data_pipelines.shard_urls import tars_in
from data_pipelines.sources.base import (
    MAX_ITEM_BYTES,
    NOT_AN_IMAGE,
    Entry,
    Listing,
    ReadItem,
    Skip,
    SourceError,
    printable,
)
from data_pipelines.sources.lister.archives import (
    TAR_ERRORS,
    is_zip,
    open_maybe_compressed,
    open_zip,
    read_at,
    read_zip_member,
    tar_found,
    zip_found,
)
from data_pipelines.sources.lister.classes import label_pictures
from data_pipelines.sources.lister.directory import walk
from data_pipelines.sources.lister.pictures import (
    IMAGE_EXTENSIONS,
    File,
    Found,
    Pictures,
    ReadStart,
    extension,
    find_pictures,
    is_hidden,
)
from data_pipelines.sources.lister.splits import choose_split, count_splits, split_name
from data_pipelines.sources.steady import steady_start
from models.safe_files.regular import TooLarge, open_file, read_file

ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip")
MEMBERS = 1 << 48  # locator of a member of a shard = number of the shard * MEMBERS + offset


@dataclass(frozen=True)
class FileSource(ABC):
    """Image files; subclasses say what holds them.

    Attributes:
        path: What holds them.
        kind: Its name on the command line.
        published: See Source.
        labelled: Whether there are classes.
        split: Which split to take, if there are several; None if there is one, or none.
        faces: Whether it is a set of faces, which may come with masks.
    """

    path: Path
    kind: str = "images"
    published: bool = False
    labelled: bool = True
    split: str | None = None
    faces: bool = False

    noun: ClassVar[str] = "source"
    top: ClassVar[int] = 0
    any_sidecar: ClassVar[bool] = False

    @property
    def where(self) -> str:
        """The source, for messages."""
        return f"the {self.noun} {self.path}"

    def list_items(self) -> Listing:
        """Return all images. Raises SourceError if there are none, or splits to choose from."""
        with self.open_starts() as read_start:
            return label_pictures(
                self.pictures(),
                steady_start(read_start),
                where=self.where,
                labelled=self.labelled,
                split=self.split,
                any_sidecar=self.any_sidecar,
                top=self.top,
            )

    def pictures(self) -> Pictures:
        """Return the image files of all splits. Raises SourceError if it cannot be read."""
        found = self.found()
        with self.open_starts() as read_start:
            return find_pictures(found, steady_start(read_start), faces=self.faces)

    @abstractmethod
    def found(self) -> Found:
        """Return all files. Raises SourceError if it cannot be read."""

    @abstractmethod
    def open_starts(self) -> AbstractContextManager[ReadStart]:
        """Open the source for reading the first bytes of files."""

    @abstractmethod
    def open(self) -> AbstractContextManager[ReadItem]:
        """Open the source for reading."""

    def describe(self) -> dict[str, Any]:
        """Return the path, and the split if one was chosen."""
        return {"path": str(self.path)} | ({"split": self.split} if self.split else {})


@dataclass(frozen=True)
class DirectorySource(FileSource):
    """A directory of image files, searched recursively; links to directories are followed."""

    kind: str = "folder"
    noun: ClassVar[str] = "directory"

    def pictures(self) -> Pictures:
        """Return the images. Raises SourceError if there are archives of images beside them."""
        pictures = super().pictures()
        if not pictures.files or self.published:
            return pictures
        others = [skip.name for skip in pictures.skips if skip.category == NOT_AN_IMAGE]
        for name in others:
            if name.lower().endswith(ARCHIVES) and holds_images(self.path / name):
                raise SourceError(
                    f"{self.path} holds two kinds of source, images"
                    f" ({printable(pictures.files[0].name)}) and an archive of images"
                    f" ({printable(name)}); move one of them elsewhere"
                )
        return pictures

    def found(self) -> Found:
        """Return all files. Raises SourceError if it is no directory, or cannot be listed."""
        if not self.path.is_dir():
            raise SourceError(f"{self.path} is not a directory")
        return walk(self.path)

    @contextmanager
    def open_starts(self) -> Iterator[ReadStart]:
        """Open the source for reading the first bytes of files."""

        def read(file: File, count: int) -> bytes:
            with open_file(self.path / file.name) as stream:
                return stream.read(count)

        yield read

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        yield lambda entry: _read_item(self.path / entry.name)


def _read_item(path: Path) -> bytes:
    """Return a file's content. Raises BadImage if it is larger than an image can be."""
    try:
        return read_file(path, MAX_ITEM_BYTES)
    except TooLarge as error:
        raise BadImage(f"unreadable: {error.strerror}") from None


@dataclass(frozen=True)
class ZipSource(FileSource):
    """A zip archive of image files."""

    kind: str = "zip"
    noun: ClassVar[str] = "zip"

    def found(self) -> Found:
        """Return all files. Raises SourceError if it is not a zip."""
        with open_zip(self.path) as archive:
            return zip_found(archive)

    @contextmanager
    def open_starts(self) -> Iterator[ReadStart]:
        """Open the source for reading the first bytes of files."""
        with open_zip(self.path) as archive:
            yield lambda file, count: read_zip_member(archive, file.locator, count)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        with open_zip(self.path) as archive:
            yield lambda entry: read_zip_member(archive, entry.locator)


@dataclass(frozen=True)
class TarSource(FileSource):
    """A tar archive of image files, plain or compressed (gz, bz2, xz), WebDataset's included."""

    kind: str = "tar"
    noun: ClassVar[str] = "tar"
    any_sidecar: ClassVar[bool] = True

    def found(self) -> Found:
        """Return all files. Raises SourceError if it is not a complete tar."""
        return tar_found(self.path)

    @contextmanager
    def open_starts(self) -> Iterator[ReadStart]:
        """Open the source for reading the first bytes of files."""
        with open_maybe_compressed(self.path) as file:
            yield lambda wanted, count: _read_start(file, wanted, wanted.locator, count)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        with open_maybe_compressed(self.path) as file:
            yield lambda entry: read_at(file, entry)


@dataclass(frozen=True)
class ShardsSource(FileSource):
    """A directory of tars, such as WebDataset's shards; the tar's name says nothing but its split.

    The members of several are named `TAR/MEMBER`.
    """

    kind: str = "tars"
    noun: ClassVar[str] = "directory of tars"
    any_sidecar: ClassVar[bool] = True

    def list_items(self) -> Listing:
        """Return all images. Raises SourceError if there are none, or splits to choose from."""
        tars = tar_paths(self.path)
        splits = {tar: split_name(tar.name).split for tar in tars}
        chosen = choose_split(self.split, count_splits(splits.values()), self.where, "tars")
        pictures = self.pictures()
        if self.split is not None:
            pictures = _of_shards(pictures, {n for n, t in enumerate(tars) if splits[t] in chosen})
            outside = [Skip(tar.name, "in no split") for tar in tars if not splits[tar]]
            pictures = replace(pictures, skips=[*pictures.skips, *outside])
        with self.open_starts() as read_start:
            return label_pictures(
                pictures,
                steady_start(read_start),
                where=self.where,
                labelled=self.labelled,
                any_sidecar=True,
                top=int(len(tars) > 1),
            )

    def found(self) -> Found:
        """Return all members of all tars. Raises SourceError if one is no complete tar."""
        tars = tar_paths(self.path)
        files, skips = [], []
        for number, path in enumerate(tars):
            prefix = f"{_tar_stem(path)}/" if len(tars) > 1 else ""
            found = tar_found(path)
            for file in found.files:
                place = number * MEMBERS + file.locator
                content = file.content and (number, *file.content)
                files.append(File(prefix + file.name, file.size, place, content, file.is_link))
            skips += [Skip(prefix + skip.name, skip.reason) for skip in found.skips]
        named = tars_in(tars[0].parent) if tars else []
        others = [path.name for path in named if not path.is_file()]
        return Found(files, skips + [Skip(name, "unreadable: not a file") for name in others])

    @contextmanager
    def open_starts(self) -> Iterator[ReadStart]:
        """Open the source for reading the first bytes of files."""
        with self._opener() as opened:

            def read(file: File, count: int) -> bytes:
                number, offset = divmod(file.locator, MEMBERS)
                return _read_start(opened(number), file, offset, count)

            yield read

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading; one tar is open at a time."""
        with self._opener() as opened:

            def read(entry: Entry) -> bytes:
                number, offset = divmod(entry.locator, MEMBERS)
                return read_at(opened(number), entry._replace(locator=offset))

            yield read

    @contextmanager
    def _opener(self) -> Iterator[Callable[[int], IO[bytes]]]:
        """Yield a function that opens a tar by its number, after closing the one before."""
        tars = tar_paths(self.path)
        opened: dict[int, IO[bytes]] = {}

        def file_of(number: int) -> IO[bytes]:
            if number not in opened:
                for file in opened.values():
                    file.close()
                opened.clear()
                opened[number] = open_maybe_compressed(tars[number])
            return opened[number]

        try:
            yield file_of
        finally:
            for file in opened.values():
                file.close()


def _of_shards(pictures: Pictures, numbers: set[int]) -> Pictures:
    """Return the pictures in tars of these numbers, and what was left out of all."""
    files = [file for file in pictures.files if file.locator // MEMBERS in numbers]
    return replace(pictures, files=files)


def _read_start(stream: IO[bytes], file: File, offset: int, count: int) -> bytes:
    return read_at(stream, Entry(file.name, -1, min(file.size, count), offset))


def _tar_stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")


def tar_paths(directory: Path) -> list[Path]:
    """Return the tars in a directory, or in its `shards/` (of a packed set), sorted by name."""
    for place in (directory, directory / "shards"):
        if found := [path for path in tars_in(place) if path.is_file()]:
            return found
    return []


def holds_images(path: Path) -> bool:
    """Return whether an archive has a member with an image's extension."""
    try:
        if is_zip(path):
            with open_zip(path) as archive:
                return any(map(_is_image_name, archive.namelist()))
        with open_maybe_compressed(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            return any(_is_image_name(member.name) for member in tar)
    except (SourceError, *TAR_ERRORS):
        return False


def _is_image_name(name: str) -> bool:
    return extension(name) in IMAGE_EXTENSIONS and not is_hidden(name.removeprefix("./"))


def detect(path: Path) -> FileSource:
    """Return the source of `path`, which is a directory, zip or tar of images.

    Raises:
        SourceError: It is none of them.
    """
    if path.is_dir():
        only_tars = tar_paths(path) and not _any_image(path)
        return ShardsSource(path) if only_tars else DirectorySource(path)
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    try:
        if is_zip(path):
            return ZipSource(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
    try:
        with open_maybe_compressed(path) as file:
            if file.read(4) == b"PK\3\4":
                raise SourceError(f"{path} is a zip archive that is cut short; download it again")
            file.seek(0)
            tarfile.open(fileobj=file, mode="r:").close()
    except TAR_ERRORS:
        raise SourceError(f"{path} is neither a directory nor a zip or tar archive") from None
    return TarSource(path)


def _any_image(directory: Path) -> bool:
    return any(_is_image_name(file.name) for file in walk(directory).files)
