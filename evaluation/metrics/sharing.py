"""Work in numbered parts, each computed by one rank: results are the same on any number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from dist_train.runtime.world import World

T = TypeVar("T")


def shared(compute: Callable[[int], T], count: int, world: World | None = None) -> list[T]:
    """Return compute(0), ..., compute(count - 1), each computed by one rank, on all ranks.

    Combine them in this order: then sums, too, are the same bits on any number of ranks.

    Args:
        compute: Pure function of its number; its results travel between ranks, so keep them small,
            and on the CPU.
        count: Number of parts.
        world: The ranks; null computes all parts here.
    """
    if world is None:
        return [compute(number) for number in range(count)]
    own = {number: compute(number) for number in range(world.rank, count, world.size)}
    parts: dict[int, T] = {}
    for of_rank in world.gather_objects(own):
        parts |= of_rank
    return [parts[number] for number in range(count)]


def alone(world: World) -> World:
    """Return a world of this rank and its device only, for work that is a part of the others'."""
    return dataclasses.replace(world, rank=0, size=1)
