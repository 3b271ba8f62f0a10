"""The interface between kinds of sources and the packer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from data_pipelines.images import BadImage, Pixels
from models.safe_files.transient import is_transient


class SourceError(ValueError):
    """A source that is missing, damaged, or not of the kind that was named."""


@contextmanager
def reading(path: object, what: str) -> Iterator[None]:
    """Turn whatever a library raises over a damaged file into one line that names the file.

    Args:
        path: The file.
        what: What it should be: `a parquet file`.

    Raises:
        SourceError: For any error but those that are ours, or may be gone a moment later.
    """
    try:
        yield
    except (SourceError, BadImage):
        raise
    except Exception as error:
        if isinstance(error, OSError) and is_transient(error):
            raise
        raise SourceError(f"{path} cannot be read as {what}: {reason(error)}") from None


def reason(error: Exception) -> str:
    """Return what an error says, in one line, without the file that the message names already."""
    said = (error.strerror if isinstance(error, OSError) else "") or str(error)
    lines = [line for line in said.splitlines() if line.strip()]
    text = printable(" ".join(lines[:1]))[:300]
    is_plain = bool(text) and isinstance(error, (ValueError, OSError, EOFError))
    return text if is_plain else f"{type(error).__name__} {text}".strip()


class Entry(NamedTuple):
    """One item of a source.

    Attributes:
        name: Its name within the source, unique.
        label: Class index, -1 for items without a class.
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

    @property
    def category(self) -> str:
        """The reason without its details."""
        return self.reason.partition(":")[0]

    @property
    def usable(self) -> bool:
        """Whether the item could have been used: not what is beside the images in most sources."""
        return self.category not in (HIDDEN, NOT_AN_IMAGE, METADATA, MASK, LINKED_AGAIN, LINK_LOOP)


MAX_ITEM_BYTES = 1 << 28
"""Bytes above which an item is no image."""
BROKEN_LINK = -1
"""Locator of an entry that is a link to nothing: reading it says so."""
HIDDEN = "hidden or made by a tool"
NOT_AN_IMAGE = "not an image"
METADATA = "metadata of an image"
MASK = "mask"
LINKED_AGAIN = "linked again"
LINK_LOOP = "link loop"


@dataclass(frozen=True)
class Listing:
    """A source's items in order, its class table, and what was skipped while listing.

    Attributes:
        entries: The items. In a set with classes, those of label -1 are skipped, unless the set is
            packed (or evaluated) without classes; see `usable`.
        class_names: Names by class index, empty if the source has no classes.
        skips: What was left out.
        unlabelled: Why entries have no class, by name.
    """

    entries: Sequence[Entry]
    class_names: tuple[str, ...]
    skips: tuple[Skip, ...] = ()
    unlabelled: Mapping[str, str] = field(default_factory=dict)

    def usable(self, labelled: bool) -> Listing:
        """Return the listing without the items that lack a class, if classes are needed."""
        if not labelled or not self.class_names:
            return self
        missing = [entry for entry in self.entries if entry.label < 0]
        if not missing:
            return self
        if len(missing) == len(self.entries):
            raise SourceError(
                f"none of the {len(missing)} images has a class (the first: {missing[0].name}:"
                f" {self._why(missing[0])}); add --unlabelled"
            )
        skips = tuple(Skip(entry.name, self._why(entry)) for entry in missing)
        entries = [entry for entry in self.entries if entry.label >= 0]
        return replace(self, entries=entries, skips=self.skips + skips, unlabelled={})

    def _why(self, entry: Entry) -> str:
        return self.unlabelled.get(entry.name, "no label")

    def digest(self) -> str:
        """Return the SHA-256 of names, labels and sizes: what identifies the source."""
        digest = hashlib.sha256(name_bytes("\n".join(self.class_names)))
        for entry in self.entries:
            digest.update(name_bytes(f"\n{entry.name}\0{entry.label}\0{entry.size}"))
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


def count_reasons(skips: Iterable[Skip]) -> dict[str, int]:
    """Return the number of skips by category."""
    return dict(sorted(Counter(skip.category for skip in skips).items()))


def name_bytes(name: str) -> bytes:
    """Return the bytes of a name, which need not be UTF-8 on disk."""
    return name.encode("utf-8", "surrogateescape")


def printable(name: str) -> str:
    r"""Return a name for people: bytes that are no UTF-8, and control characters, as \xe9."""
    text = name_bytes(name).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
