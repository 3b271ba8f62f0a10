"""Fragments: the ranges of parameters that a rank holds, whatever the ZeRO stage.

They are the language between engines, EMA and checkpoints: names and offsets in whole parameters,
so that nothing on disk knows how many ranks wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """A contiguous range of one parameter's flattened float32 master weights, held by this rank.

    Attributes:
        name: Name of the parameter in its network.
        start: First element of the range in the flattened parameter.
        weight: The master weights, a 1-D view that the optimizer updates in place.
        moments: Adam's moments, 1-D views by name; empty before the first update.
    """

    name: str
    start: int
    weight: Tensor
    moments: Mapping[str, Tensor]

    def cut(self, first: int, last: int) -> Fragment:
        """Return the elements [first, last) of this fragment."""
        moments = {name: values[first:last] for name, values in self.moments.items()}
        return Fragment(self.name, self.start + first, self.weight[first:last], moments)


def share(fragments: Sequence[Fragment], rank: int, size: int) -> list[Fragment]:
    """Return the rank's part of fragments that all ranks hold alike: an even, disjoint cover."""
    total = sum(fragment.weight.numel() for fragment in fragments)
    return list(_between(fragments, total * rank // size, total * (rank + 1) // size))


def _between(fragments: Sequence[Fragment], first: int, last: int) -> Iterator[Fragment]:
    """Yield the parts of `fragments`, laid end to end, that fall in the range [first, last)."""
    offset = 0
    for fragment in fragments:
        size = fragment.weight.numel()
        low, high = max(first - offset, 0), min(last - offset, size)
        offset += size
        if low < high:
            yield fragment.cut(low, high)
