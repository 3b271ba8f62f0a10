"""EDM- and StyleGAN-style sets: a zip (or directory) of images with labels in `dataset.json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipelines.images import BadImage
from data_pipelines.sources.base import (
    MAX_ITEM_BYTES,
    Entry,
    Listing,
    ReadItem,
    Skip,
    SourceError,
    reason,
)
from data_pipelines.sources.files import FileSource, detect
from data_pipelines.sources.lister.archives import open_zip, read_zip_member, zip_path
from data_pipelines.sources.lister.classes import check_any
from models.safe_files.documents import parse_json
from models.safe_files.regular import read_file

LABELS = "dataset.json"
MOST_CLASSES = 1 << 20


@dataclass(frozen=True)
class EdmSource:
    r"""Images sorted by name, with {"labels": [[name, class], ...]} or {"labels": null}.

    As EDM reads them: classes may be numbers such as 3.0, or one-hot vectors, and paths may have
    "\" (of sets that were made on Windows).
    """

    path: Path
    kind: str = "edm"
    published: bool = True

    def list_items(self) -> Listing:
        """Return all images. Raises SourceError if there is no readable dataset.json."""
        files = self._files()
        pictures = files.pictures()
        check_any(pictures, files.where)
        left_out = [*pictures.skips, *pictures.metadata()]
        skips = tuple(skip for skip in left_out if skip.name != LABELS)
        entries = [Entry(file.name, -1, file.size, file.locator) for file in pictures.files]
        labels = read_labels(self.path)
        if labels is None:
            return Listing(entries, (), skips)
        indices = {name: class_index(label) for name, label in labels.items()}
        found = [entry._replace(label=indices.get(entry.name, -1)) for entry in entries]
        names = tuple(str(label) for label in range(1 + max(indices.values(), default=-1)))
        missing = {e.name: _why_no_label(e.name, labels) for e in found if e.label < 0}
        there = {entry.name for entry in entries} | {skip.name for skip in skips}
        lost = [Skip(name, f"missing: only in {LABELS}") for name in labels if name not in there]
        return Listing(found, names, (*skips, *lost), missing)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        with self._files().open() as read:
            yield read

    def describe(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path)}

    def _files(self) -> FileSource:
        return replace(detect(self.path), published=True, labelled=False)


def read_labels(path: Path) -> dict[str, Any] | None:
    """Return the label by name in the `dataset.json` of a set, None if it is unlabelled.

    Raises:
        SourceError: There is no `dataset.json`, or no list of labels in it.
    """
    try:
        pairs = parse_json(_read_table(path))["labels"]
        if pairs is None:
            return None
        return _by_name(pairs.items() if isinstance(pairs, dict) else pairs)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"it has no list of [name, class] ({reason(error)})"
        raise SourceError(f"{path}: {LABELS} cannot be read: {problem}") from None


def _by_name(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return labels by name. Raises ValueError if a name has two."""
    labels: dict[str, Any] = {}
    for name, label in pairs:
        path = str(name).replace("\\", "/")
        if labels.setdefault(path, label) != label:
            raise ValueError(
                f"{path!r:.200} has two classes, {labels[path]!r:.40} and {label!r:.40}"
            )
    return labels


def has_labels(path: Path) -> bool:
    """Return whether a directory or zip holds a `dataset.json`."""
    if path.is_dir():
        return (path / LABELS).is_file()
    with open_zip(path) as archive:
        return LABELS in map(zip_path, archive.infolist())


def _read_table(path: Path) -> bytes:
    try:
        if path.is_dir():
            return read_file(path / LABELS, MAX_ITEM_BYTES)
        with open_zip(path) as archive:
            names = [zip_path(info) for info in archive.infolist()]
            return read_zip_member(archive, names.index(LABELS))
    except (OSError, ValueError) as error:
        if isinstance(error, BadImage):
            raise SourceError(f"{path}: {LABELS} cannot be read: {error}") from None
        raise SourceError(f"{path} holds no {LABELS}; pack it as `images`") from None


def class_index(label: Any) -> int:
    """Return the class index that EDM reads in a label, -1 if it is none."""
    if isinstance(label, list):
        one_hot = [number for number, value in enumerate(label) if value]
        return one_hot[0] if len(one_hot) == 1 and label[one_hot[0]] == 1 else -1
    if isinstance(label, bool) or not isinstance(label, int | float):
        return -1
    return int(label) if 0 <= label < MOST_CLASSES and label == int(label) else -1


def _why_no_label(name: str, labels: Mapping[str, Any]) -> str:
    if name not in labels:
        return f"no label: not in {LABELS}"
    return f"wrong label: {labels[name]!r} is no class index"
