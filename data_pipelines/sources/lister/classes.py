"""What is a class: the class table of a source, from directories, numbers, or labels beside images.

Classes that are called by plain numbers are numbered so: directory `10` is class 10, also if there
is no `9`. All splits of a source share one table.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from data_pipelines.images import BadImage
from data_pipelines.sources.base import Entry, Listing, Skip, SourceError, printable
from data_pipelines.sources.lister.pictures import File, Pictures, ReadStart, stem
from data_pipelines.sources.lister.splits import (
    SplitDirs,
    choose_split,
    count_splits,
    find_split_dirs,
)

LABEL_NAMES = ("label", "labels", "class", "fine_label", "cls", "class_id", "class_label", "target")
"""What columns and JSON fields with classes are called."""
SPARSE_CLASSES = 10_000
"""Numbers up to this are class indices, however few of them occur."""
SIDECAR_BYTES = 1 << 20
BUCKET = re.compile(r"\d{5,}")


class ClassTable(NamedTuple):
    """Classes by name, as the source spells it, and their names by index."""

    labels: dict[str, int]
    names: tuple[str, ...]


def class_table(found: Iterable[str]) -> ClassTable:
    """Number classes: by their own numbers if all have plain ones, else sorted by name.

    Numbers that do not occur become classes without images. Numbers that are too large to be
    indices (years are not, identifiers of nine digits are) only sort the classes.

    Raises:
        SourceError: Two classes are called by the same number, such as `1` and `01`.
    """
    names = sorted(set(found))
    if not names or not all(name.isascii() and name.isdecimal() for name in names):
        return ClassTable({n: i for i, n in enumerate(names)}, tuple(map(printable, names)))
    names.sort(key=int)
    for one, other in itertools.pairwise(names):
        if int(one) == int(other):
            raise SourceError(f"the classes {one!r} and {other!r} are one number; rename one")
    if int(names[-1]) >= max(SPARSE_CLASSES, 2 * len(names)):
        return ClassTable({n: i for i, n in enumerate(names)}, tuple(names))
    called = {int(name): name for name in names}
    every = tuple(called.get(n, str(n)) for n in range(1 + int(names[-1])))
    return ClassTable({name: int(name) for name in names}, every)


def label_pictures(
    pictures: Pictures,
    read_start: ReadStart,
    *,
    where: str,
    labelled: bool = True,
    split: str | None = None,
    any_sidecar: bool = False,
    top: int = 0,
) -> Listing:
    """Make the listing of a source of image files.

    The class is what a `.cls` file of the same name says, else the directory below the files'
    common one. If all images are in one directory, the set is unlabelled.

    Args:
        pictures: The images.
        read_start: Reads sidecars.
        where: The source, for messages.
        labelled: Whether there are classes.
        split: Which split to take, if there are several.
        any_sidecar: Whether `.json` and `.txt` files of images in one directory are labels, as in
            WebDataset's tars.
        top: Leading directories that say nothing about splits and classes.

    Raises:
        SourceError: There is no image, or several splits to choose from.
    """
    taken = take_split(pictures, split, where, top)
    files, skips = taken.files, list(taken.skips)
    kind, labels, missing = "", None, "no class directory"
    if labelled:
        kinds = ("cls", "json", "txt") if any_sidecar and len(set(taken.dirs)) == 1 else ("cls",)
        kind, labels = _sidecar_labels(files, pictures, read_start, kinds)
        missing = f"no label in a .{kind}" if labels else missing
        labels = labels or _directory_labels(files, taken.dirs)
    skips += pictures.metadata(kind)
    if labels is None:
        plain = [Entry(f.name, -1, f.size, f.locator) for f in taken.chosen_files()]
        return Listing(plain, (), tuple(skips))
    table = class_table(label for label in labels if label)
    entries, unlabelled = [], {}
    for file, label, chosen in zip(files, labels, taken.chosen, strict=True):
        if chosen:
            entries.append(Entry(file.name, table.labels.get(label, -1), file.size, file.locator))
            if not label:
                unlabelled[file.name] = missing
    return Listing(entries, table.names, tuple(skips), unlabelled)


class Taken(NamedTuple):
    """The images of all splits, their directories without the split, and which were chosen."""

    files: list[File]
    dirs: list[tuple[str, ...]]
    chosen: list[bool]
    skips: list[Skip]

    def chosen_files(self) -> list[File]:
        """Return the images of the chosen split."""
        return [file for file, chosen in zip(self.files, self.chosen, strict=True) if chosen]


def take_split(
    pictures: Pictures,
    split: str | None,
    where: str,
    top: int = 0,
    *,
    default: str | None = None,
) -> Taken:
    """Choose a split; the images of the others are returned, too, as they have the same classes.

    Args:
        pictures: The images.
        split: Which split to take; None if there is one, or none.
        where: The source, for messages.
        top: Leading directories that do not count.
        default: Split to take if there are several, this one among them, and none is chosen.

    Raises:
        SourceError: There is no image, or no such split, or several splits to choose from.
    """
    check_any(pictures, where)
    files = pictures.files
    parts: dict[str, tuple[str, ...]] = {}
    for file in files:
        directory = file.name.rpartition("/")[0]
        if directory not in parts:
            parts[directory] = PurePosixPath(directory).parts[top:]
    dirs = [parts[file.name.rpartition("/")[0]] for file in files]
    found = find_split_dirs(parts.values()) or SplitDirs(0, {})
    splits = [found.split_of(directory) for directory in dirs]
    counts = count_splits(splits)
    split = default if split is None and default in counts else split
    wanted = choose_split(split, counts, where)
    plain = [found.without(directory) for directory in dirs]
    if split is None:
        return Taken(files, plain, [True] * len(files), pictures.skips)
    outside = [Skip(f.name, "in no split") for f, s in zip(files, splits, strict=True) if not s]
    inside = [place for place, s in enumerate(splits) if s]
    return Taken(
        [files[place] for place in inside],
        [plain[place] for place in inside],
        [splits[place] in wanted for place in inside],
        pictures.skips + outside,
    )


def check_any(pictures: Pictures, where: str) -> None:
    """Raise SourceError if there is no image."""
    if not pictures.files:
        names: dict[str, list[str]] = {}
        for skip in pictures.skips:
            names.setdefault(skip.category, []).append(printable(skip.name))
        listed = "".join(
            f"; {reason}: {found[0]}{', ...' * (len(found) > 1)}"
            for reason, found in sorted(names.items())
        )
        raise SourceError(f"{where} holds no images ({len(pictures.skips)} other files{listed})")


def _directory_labels(files: Sequence[File], dirs: Sequence[tuple[str, ...]]) -> list[str] | None:
    """Return the class directory of each image, "" beside class directories; None without any."""
    same = [a == b for a, b in zip(min(dirs), max(dirs), strict=False)]
    depth = same.index(False) if False in same else len(same)  # directories that all share
    labels = [directory[depth] if len(directory) > depth else "" for directory in dirs]
    names = set(labels) - {""}
    return None if not names or _are_buckets(names, files, labels) else labels


def _are_buckets(names: Iterable[str], files: Sequence[File], labels: Sequence[str]) -> bool:
    """Return whether directories hold a thousand numbered files each, as EDM's and FFHQ's do."""
    if not all(BUCKET.fullmatch(name) for name in names):
        return False
    if all(int(name) % 1000 == 0 for name in names):
        return True
    numbers = [re.search(r"\d+$", stem(file.name)) for file in files]
    pairs = zip(numbers, labels, strict=True)
    return all(m and label and int(m[0]) // 1000 == int(label) for m, label in pairs)


def _sidecar_labels(
    files: Sequence[File], pictures: Pictures, read_start: ReadStart, kinds: Sequence[str]
) -> tuple[str, list[str] | None]:
    """Return the first kind of sidecars that are labels, and each image's class, "" for none."""
    for kind in kinds:
        sidecars = pictures.sidecars.get(kind, {})
        found = {}
        for name, file in sorted(sidecars.items(), key=lambda pair: pair[1].locator):
            found[name] = _sidecar_label(kind, file, read_start)
        labels = [found.get(stem(file.name), "") for file in files]
        if any(labels) and (kind == "cls" or _are_labels(labels)):
            return kind, labels
    return "", None


def _sidecar_label(kind: str, file: File, read_start: ReadStart) -> str:
    """Return the class that a sidecar names, "" if it names none."""
    try:
        text = read_start(file, SIDECAR_BYTES).decode().strip()
        value = _json_label(json.loads(text)) if kind == "json" else text
    except SourceError:  # it cannot be known now
        raise
    except (BadImage, OSError, ValueError):
        return ""
    return value if re.fullmatch(r"\d+", value) or (kind != "txt" and value[:1] != "-") else ""


def _json_label(document: object) -> str:
    values = document if isinstance(document, Mapping) else {}
    found = next((values[name] for name in LABEL_NAMES if name in values), None)
    plain = isinstance(found, int | str) and not isinstance(found, bool)
    return str(found) if plain else ""


def _are_labels(labels: Sequence[str]) -> bool:
    """Return whether texts are classes, not captions: all images have one, and share them."""
    return all(labels) and (
        all(label.isdecimal() for label in labels) or len(set(labels)) <= len(labels) // 2
    )
