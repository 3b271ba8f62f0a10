"""The interface between kinds of sources and the packer."""

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
        locator: Its offset or record number, for readers that need more than the name.
    """

    name: str
    label: int
    size: int
    locator: int = 0


class Skip(NamedTuple):
    """A skipped item, and why: a category, optionally followed by ": details"."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """A source's items in order, its class table, and what was skipped while listing."""

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
        """Whether it is a benchmark set, whose image count and crop are fixed by convention.

        If so, duplicates are kept, and EXIF orientation is ignored.
        """

    def list_items(self) -> Listing:
        """Return all items. Raises SourceError (one line) if this is no source of the kind."""

    def open(self) -> AbstractContextManager[ReadItem]:
        """Open the source for reading, in any process."""

    def describe(self) -> dict[str, Any]:
        """Return the location of the source, for the manifest."""


def is_image_name(name: str) -> bool:
    """Return whether a file has an image's extension and is not hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def label_by_directory(
    files: Iterable[tuple[str, int, int]], *, where: str, labelled: bool = True
) -> Listing:
    """Make a listing of files whose class is their directory below the files' common directory.

    Args:
        files: (path within the source, size, locator) of all files; those without an image's
            extension are ignored.
        where: The source, for messages.
        labelled: Whether directories are classes.

    Returns:
        Entries sorted by path. If all images are in one directory, the set is unlabelled; images
        next to class directories are skipped.

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
    class_dirs = [_class_dir(name, depth) for name, _, _ in images]
    names = tuple(sorted(set(class_dirs) - {""}))
    label_of = {name: label for label, name in enumerate(names)}
    pairs = list(zip(images, class_dirs, strict=True))
    entries = [
        Entry(name, label_of.get(class_dir, -1), size, locator)
        for (name, size, locator), class_dir in pairs
        if class_dir or not names
    ]
    unlabelled = (name for (name, _, _), class_dir in pairs if names and not class_dir)
    return Listing(entries, names, tuple(Skip(name, "no class directory") for name in unlabelled))


def _common_depth(names: Sequence[str]) -> int:
    """Return how many leading directories all paths share."""
    first, last = PurePosixPath(min(names)).parts[:-1], PurePosixPath(max(names)).parts[:-1]
    same = [a == b for a, b in zip(first, last, strict=False)]
    return same.index(False) if False in same else len(same)


def _class_dir(name: str, depth: int) -> str:
    parts = PurePosixPath(name).parts[:-1]
    return parts[depth] if len(parts) > depth else ""
