"""STL-10 as downloaded: `stl10_binary.tar.gz`, or extracted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from data_pipelines.images import BadImage, Pixels
from data_pipelines.sources.base import Entry, Listing, ReadItem, SourceError, reading
from data_pipelines.sources.lister.archives import open_maybe_compressed, read_at, tar_files
from data_pipelines.sources.lister.directory import walk
from data_pipelines.sources.lister.pictures import is_hidden

EDGE = 96
PIXELS = 3 * EDGE * EDGE
SPLITS = ("train", "test", "unlabeled")
MOST_NAMES = 1 << 16
"""Bytes of class_names.txt; ten names have 100."""


class _Place(NamedTuple):
    """Where a binary file is: a file on disk, and the range within its decompressed bytes."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Stl10Source:
    """The unlabelled images (100,000; what papers train on), or the train or test split."""

    path: Path
    split: str = "unlabeled"
    kind: str = "stl10"
    published: bool = True

    def list_items(self) -> Listing:
        """Return all images, in file order. Raises SourceError if this is not STL-10."""
        if self.split not in SPLITS:
            raise SourceError(f"split {self.split!r} of STL-10 is unknown: {', '.join(SPLITS)}")
        places = self._places()
        images = self._image_file(places)
        count = images.size // PIXELS
        labels = [-1] * count
        names: tuple[str, ...] = ()
        if self.split != "unlabeled":
            labels = [byte - 1 for byte in _read(places, f"{self.split}_y.bin", count)]
            with reading("class_names.txt", "text in UTF-8"):
                names = tuple(_read(places, "class_names.txt", MOST_NAMES).decode().split())
            if len(labels) != count or not all(0 <= label < len(names) for label in labels):
                raise SourceError(f"{self.path}: {self.split}_y.bin does not match the images")
        offsets = range(images.offset, images.offset + images.size, PIXELS)
        rows = enumerate(zip(labels, offsets, strict=True))
        entries = [Entry(f"{self.split}/{n:06d}", lbl, PIXELS, at) for n, (lbl, at) in rows]
        return Listing(entries, names)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        with open_maybe_compressed(self._image_file(self._places()).path) as file:
            yield lambda entry: _read_image(file, entry)

    def describe(self) -> dict[str, Any]:
        """Return path and split."""
        return {"path": str(self.path), "split": self.split}

    def _image_file(self, places: dict[str, _Place]) -> _Place:
        name = f"{self.split}_X.bin"
        if name not in places:
            raise SourceError(f"{self.path} is not STL-10: it holds no {name}")
        if places[name].size % PIXELS or not places[name].size:
            raise SourceError(
                f"{name} is cut short: {places[name].size} bytes, which is no multiple of an image"
            )
        return places[name]

    def _places(self) -> dict[str, _Place]:
        if self.path.is_dir():
            files = [file for file in walk(self.path).files if not is_hidden(file.name)]
            paths = [(self.path / file.name, file.size) for file in files]
            return {path.name: _Place(path, 0, size) for path, size in paths}
        return {
            PurePosixPath(member.name).name: _Place(self.path, member.offset_data, member.size)
            for member in tar_files(self.path)
        }


def _read_image(file: IO[bytes], entry: Entry) -> Pixels:
    """Return an image, uint8 [96, 96, 3]; the file holds channels, then columns, then rows."""
    planes = np.frombuffer(read_at(file, entry), np.uint8).reshape(3, EDGE, EDGE)
    return planes.transpose(2, 1, 0)


def _read(places: dict[str, _Place], name: str, most: int) -> bytes:
    """Return the bytes of a file that has at most so many."""
    if name not in places:
        raise SourceError(f"this is not STL-10: {name} is missing")
    place = places[name]
    if place.size > most:
        raise SourceError(f"{name} in {place.path} has {place.size} bytes, more than {most}")
    try:
        with open_maybe_compressed(place.path) as file:
            return read_at(file, Entry(name, -1, place.size, place.offset))
    except BadImage as error:
        raise SourceError(f"{name} in {place.path} cannot be read: {error}") from None
