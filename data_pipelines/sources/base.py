"""The seam between kinds of sources and the packer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

from data_pipelines.images import Pixels

IMAGE_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)


class SourceError(ValueError):
    """A source that is missing, damaged, or not of the kind that was named."""


class Entry(NamedTuple):
    """One item of a source.

    Attributes:
        name: Its name within the source, unique.
        label: Class index, -1 in unlabelled sources.
        size: Bytes of the item; with the name it identifies the item.
        locator: Where the reader finds it (an offset, a record number), if the name is not enough.
    """

    name: str
    label: int
    size: int
    locator: int = 0


class Skip(NamedTuple):
    """An item that is left out, and why: a category, optionally followed by ": details"."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """A source's items in order, its class table, and what was left out on sight."""

    entries: Sequence[Entry]
    class_names: tuple[str, ...]
    skips: tuple[Skip, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 of names, labels and sizes: what identifies the source."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for entry in self.entries:
            digest.update(f"\n{entry.name}\0{entry.label}\0{entry.size}".encode())
        return digest.hexdigest()


ReadItem = Callable[[Entry], "bytes | Pixels"]
"""Returns an item's encoded bytes, or its pixels uint8 [H, W, 3] where the source stores pixels;
raises BadImage (or OSError) if this item cannot be read."""


class Source(Protocol):
    """One kind of source; instances are small and picklable."""

    @property
    def kind(self) -> str:
        """Its name on the command line."""

    @property
    def published(self) -> bool:
        """Whether it is a benchmark set that papers count and crop in one known way.

        If so, duplicates are kept, and EXIF orientation is ignored.
        """

    def list_items(self) -> Listing:
        """Return all items. Raises SourceError (one line) if this is no source of the kind."""

    def open(self) -> AbstractContextManager[ReadItem]:
        """Open the source for reading, in any process."""

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says of the source's whereabouts."""


def is_image_name(name: str) -> bool:
    """Tell whether a file's extension is that of an image, and the file is not hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def label_by_folder(
    files: Iterable[tuple[str, int, int]], *, where: str, labelled: bool = True
) -> Listing:
    """Make a listing of files whose class is their folder below the files' common folder.

    Args:
        files: (path within the source, size, locator) of all files; those that are no images by
            their extension are ignored.
        where: The source, for messages.
        labelled: Whether folders are classes.

    Returns:
        Entries sorted by path. If all images are in one folder, the set is unlabelled; if some lie
        beside the class folders, these are skipped.

    Raises:
        SourceError: There is no image.
    """
    found = list(files)
    images = sorted(file for file in found if is_image_name(file[0]))
    if not images:
        raise SourceError(
            f"{where} holds no image ({len(found)} other files);"
            f" known extensions: {', '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    if not labelled:
        return Listing([Entry(name, -1, size, locator) for name, size, locator in images], ())
    depth = _common_depth([name for name, _, _ in images])
    folders = [_class_folder(name, depth) for name, _, _ in images]
    names = tuple(sorted(set(folders) - {""}))
    label_of = {name: label for label, name in enumerate(names)}
    pairs = list(zip(images, folders, strict=True))
    entries = [
        Entry(name, label_of.get(folder, -1), size, locator)
        for (name, size, locator), folder in pairs
        if folder or not names
    ]
    beside = (name for (name, _, _), folder in pairs if names and not folder)
    return Listing(entries, names, tuple(Skip(name, "no class folder") for name in beside))


def _common_depth(names: Sequence[str]) -> int:
    """Return how many leading folders all paths share."""
    first, last = PurePosixPath(min(names)).parts[:-1], PurePosixPath(max(names)).parts[:-1]
    same = [a == b for a, b in zip(first, last, strict=False)]
    return same.index(False) if False in same else len(same)


def _class_folder(name: str, depth: int) -> str:
    parts = PurePosixPath(name).parts[:-1]
    return parts[depth] if len(parts) > depth else ""
