"""Splits: train, val, test, ... as parts of directory and file names, and the choice of one."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from data_pipelines.sources.base import SourceError

CANONICAL = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
    "trainval": "trainval",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
    "unsupervised": "unlabeled",
    "holdout": "holdout",
    "extra": "extra",
}
"""What splits are called, and which of these names mean the same."""


class SplitError(SourceError):
    """Several splits, none of which was chosen; `found` names them."""

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}; choose one with --split")
        self.found = found

    def __reduce__(self) -> tuple[type[SplitError], tuple[str]]:
        return SplitError, (self.found,)


class SplitName(NamedTuple):
    """A name as a split and the rest: `train2017` is (train, 2017), `cat` is ("", cat)."""

    split: str
    rest: str


def split_name(name: str) -> SplitName:
    """Take the split out of a name; a name with none, or with several, is of none."""
    words = re.split(r"([^A-Za-z]+|(?<=[a-z])(?=[A-Z]))", name)
    places = [place for place, word in enumerate(words) if word.lower() in CANONICAL]
    if len(places) != 1:
        return SplitName("", name)
    (place,) = places
    rest = "".join(words[:place]).rstrip(" -_.") + "".join(words[place + 1 :])
    return SplitName(CANONICAL[words[place].lower()], rest.lstrip(" -_.") if not place else rest)


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """Return the split by name of those among sibling names that differ in it alone.

    `train2017` and `val2017` are splits; `train_station` and `test_tube` are not.
    """
    families: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        split, rest = split_name(name)
        if split:
            families[rest].append((name, split))
    members = [f for f in families.values() if len({split for _, split in f}) > 1]
    return {name: split for family in members for name, split in family}


class SplitDirs(NamedTuple):
    """The directories that are splits: their level below the top, and the split by name."""

    level: int
    splits: dict[str, str]

    def without(self, dirs: tuple[str, ...]) -> tuple[str, ...]:
        """Return a file's directories without its split: (trainA,) is (A,) beside trainB."""
        if len(dirs) <= self.level or dirs[self.level] not in self.splits:
            return dirs
        rests = {split_name(name).rest for name in self.splits}
        rest = (split_name(dirs[self.level]).rest,) if len(rests) > 1 else ()
        return (*dirs[: self.level], *rest, *dirs[self.level + 1 :])

    def split_of(self, dirs: Sequence[str]) -> str:
        """Return the split of a file in these directories, "" for one outside all of them."""
        return self.splits.get(dirs[self.level], "") if len(dirs) > self.level else ""


def find_split_dirs(all_dirs: Iterable[tuple[str, ...]]) -> SplitDirs | None:
    """Return which directories are splits, from the directories of all files; None if none are.

    Splits lie above the classes (`train/cat`, `val/cat`) or in each of them (`cat/train`,
    `cat/val`). A single one (`train/cat`, `train/dog`) counts if it is called just that.
    """
    distinct = set(all_dirs)
    single = None
    for level in range(max(map(len, distinct), default=0)):
        siblings: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for dirs in distinct:
            if len(dirs) > level:
                siblings[dirs[:level]].add(dirs[level])
        found = {k: v for names in siblings.values() for k, v in splits_of(names).items()}
        names = set().union(*siblings.values())
        if found and (len(siblings) == 1 or found.keys() == names):
            return SplitDirs(level, found)
        if len(siblings) == len(names) == 1:
            (name,) = names
            split, rest = split_name(name)
            single = SplitDirs(level, {name: split}) if split and not rest else single
    return single


def choose_split(
    wanted: str | None, found: Mapping[str, int], where: str, unit: str = "images"
) -> frozenset[str]:
    """Return the splits to take, as they are called in CANONICAL; all if there is no choice.

    Args:
        wanted: `--split`: one split, or several, separated by commas; None if not given.
        found: Number of images (or of other units) by split.
        where: The source, for messages.
        unit: What is counted.

    Raises:
        SplitError: There are several, and none is wanted.
        SourceError: The wanted one is not there.
    """
    counts = ", ".join(f"{split} ({number} {unit})" for split, number in sorted(found.items()))
    if wanted is None:
        if len(found) > 1:
            raise SplitError(f"{where} holds the splits {counts}")
        return frozenset(found)
    if not found:
        raise SourceError(
            f"{where} has no splits (such as directories train and val); leave --split out"
        )
    chosen = frozenset(CANONICAL.get(word, word) for word in wanted.lower().split(","))
    if missing := sorted(chosen - found.keys()):
        raise SourceError(f"{where} has no split {missing[0]!r}, but {counts}; see --split")
    return chosen


def count_splits(splits: Iterable[str]) -> dict[str, int]:
    """Count images by split; those of none ("") are left out."""
    return {split: number for split, number in Counter(splits).items() if split}
