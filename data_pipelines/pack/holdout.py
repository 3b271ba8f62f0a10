"""Choosing the hold-out once all images are known: as many as asked for, none of them in training.

Items are converted before they are divided, so that images of equal pixels are known: they go to
one side together, wherever their names would send them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_pipelines.pack.options import NothingUsable, choice_hash
from data_pipelines.sources.base import Entry


@dataclass(frozen=True)
class Group:
    """Items of equal pixels.

    Attributes:
        positions: Their positions among all items, ascending.
        weight: How many of them a set holds: one if duplicates are skipped.
        was_chosen: Whether the choice by names takes the first.
        rank: The place of the first among its class in the order of that choice, in 0..1.
    """

    positions: list[int]
    weight: int
    was_chosen: bool
    rank: float


def choose_holdout(
    entries: Sequence[Entry],
    contents: Mapping[int, str],
    by_name: set[int],
    count: int,
    *,
    keep_duplicates: bool,
) -> set[int]:
    """Return the positions of the items that belong to the hold-out.

    Where the choice by names is right already, it is kept.

    Args:
        entries: All items.
        contents: What identifies the pixels of each usable item, by position.
        by_name: Positions that the choice by names takes.
        count: Images that the hold-out shall have.
        keep_duplicates: Whether images of equal pixels are all kept.

    Raises:
        PackError: There are not more images than that, or their number cannot be met, as equal ones
            stay together.
    """
    groups = _groups(entries, contents, by_name, keep_duplicates)
    total = sum(group.weight for group in groups)
    if count >= total:
        what = "images" if keep_duplicates else "different images"
        raise NothingUsable(f"holdout={count} of {total} usable {what} leaves none; take fewer")
    by_weight: dict[int, list[Group]] = defaultdict(list)
    for group in sorted(groups, key=lambda group: (not group.was_chosen, group.rank)):
        by_weight[group.weight].append(group)
    chosen = _fill(by_weight, count)
    unusable = {position for position in by_name if position not in contents}
    return unusable | {position for group in chosen for position in group.positions}


def _groups(
    entries: Sequence[Entry], contents: Mapping[int, str], by_name: set[int], keep: bool
) -> list[Group]:
    positions: dict[str, list[int]] = defaultdict(list)
    for position, content in sorted(contents.items()):
        positions[content].append(position)
    by_class: dict[int, list[list[int]]] = defaultdict(list)
    for same in positions.values():
        by_class[entries[same[0]].label].append(same)
    groups = []
    for members in by_class.values():
        members.sort(key=lambda same: choice_hash("holdout", entries[same[0]].name))
        for rank, same in enumerate(members):
            weight = len(same) if keep else 1
            groups.append(Group(same, weight, same[0] in by_name, rank / len(members)))
    return groups


def _fill(by_weight: Mapping[int, list[Group]], count: int) -> list[Group]:
    """Choose groups of `count` in all: of each weight the first ones, near the choice by names."""
    weights = sorted(by_weight, reverse=True)
    reachable = [1]  # bit n: whether weights from here on can make n
    for weight in reversed(weights):
        most = count + weights[0]
        reachable.append(_with_multiples(reachable[-1], weight, len(by_weight[weight]), most))
    reachable.reverse()
    if not reachable[0] >> count & 1:
        raise NothingUsable(_why_not(reachable[0], count))
    chosen: list[Group] = []
    left = count
    for weight, rest in zip(weights, reachable[1:], strict=True):
        groups = by_weight[weight]
        wanted = sum(group.was_chosen for group in groups)
        for number in _near(wanted, min(len(groups), left // weight)):
            if rest >> (left - number * weight) & 1:
                chosen += groups[:number]
                left -= number * weight
                break
    return chosen


def _with_multiples(reachable: int, weight: int, number: int, most: int) -> int:
    """Return which sums up to `most` can be made with up to `number` more summands of a weight."""
    part = 1
    while number > 0:
        part = min(part, number)
        reachable |= reachable << (weight * part)
        reachable &= (1 << (most + 1)) - 1
        number, part = number - part, 2 * part
    return reachable


def _near(wanted: int, most: int) -> Iterator[int]:
    """Yield 0..most, those near `wanted` first."""
    wanted = min(wanted, most)
    for distance in range(most + 1):
        if wanted - distance >= 0:
            yield wanted - distance
        if distance and wanted + distance <= most:
            yield wanted + distance


def _why_not(reachable: int, count: int) -> str:
    below = (reachable & ((1 << count) - 1)).bit_length() - 1
    above = reachable >> count
    near = [str(below)] if below else []
    near += [str(count + (above & -above).bit_length() - 1)] if above else []
    return (
        f"holdout={count} cannot be met, as images of equal pixels stay together;"
        f" take {' or '.join(near)}, or --duplicates skip"
    )
