"""EDM- and StyleGAN-style sets: a zip (or directory) of images with labels in `dataset.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import Entry, Listing, ReadItem, Skip, SourceError
from data_pipelines.sources.files import DirectorySource, detect, open_zip, read_zip_member

LABELS = "dataset.json"


@dataclass(frozen=True)
class EdmSource:
    """Images sorted by name, with {"labels": [[name, class], ...]} or {"labels": null}."""

    path: Path
    kind: str = "edm"
    published: bool = True

    def list_items(self) -> Listing:
        """Return all images. Raises SourceError if there is no readable dataset.json."""
        listing = replace(detect(self.path), labelled=False).list_items()
        labels = _parse_labels(self._read_labels(), self.path)
        if labels is None:
            return listing
        valid = {name: label for name, label in labels.items() if _is_class(label)}
        names = tuple(str(label) for label in range(1 + max(valid.values(), default=-1)))
        entries = [e._replace(label=int(valid[e.name])) for e in listing.entries if e.name in valid]
        skips = [_skip(entry, labels) for entry in listing.entries if entry.name not in valid]
        return Listing(entries, names, tuple(skips))

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        with detect(self.path).open() as read:
            yield read

    def describe(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path)}

    def _read_labels(self) -> bytes:
        try:
            if isinstance(detect(self.path), DirectorySource):
                return (self.path / LABELS).read_bytes()
            with open_zip(self.path) as archive:
                return read_zip_member(archive, LABELS)
        except (OSError, KeyError):
            raise SourceError(f"{self.path} holds no {LABELS}; pack it as `images`") from None


def _parse_labels(text: bytes, path: Path) -> dict[str, Any] | None:
    """Return the label by name, None for an unlabelled set."""
    try:
        pairs = json.loads(text)["labels"]
        return None if pairs is None else {str(name): label for name, label in pairs}
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{LABELS} of {path} has no list of [name, class]: {error!r}") from None


def _is_class(label: Any) -> bool:
    return isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 2**31


def _skip(entry: Entry, labels: dict[str, Any]) -> Skip:
    if entry.name not in labels:
        return Skip(entry.name, f"no label: not in {LABELS}")
    return Skip(entry.name, f"wrong label: {labels[entry.name]!r} is no class index")
