"""Parameter shards: the ranges of parameters that a rank holds, whatever the ZeRO stage.

They are the language between engines, EMA and checkpoints: names and offsets in whole parameters,
so that nothing on disk knows how many ranks wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ParameterShard:
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

    def cut(self, first: int, last: int) -> ParameterShard:
        """Return the elements [first, last) of this shard."""
        moments = {name: values[first:last] for name, values in self.moments.items()}
        return ParameterShard(self.name, self.start + first, self.weight[first:last], moments)


@torch.no_grad()
def non_finite_values(shards: Iterable[ParameterShard]) -> Tensor:
    """Return, on the shards' device, 1.0 if a weight or moment is not finite, else 0.0."""
    tensors = [t for shard in shards for t in (shard.weight, *shard.moments.values()) if len(t)]
    if not tensors:
        return torch.zeros(())
    largest = torch.stack(torch._foreach_norm(tensors, float("inf")))
    return (~largest.isfinite().all()).float()


def share(shards: Sequence[ParameterShard], rank: int, size: int) -> list[ParameterShard]:
    """Return the rank's part of shards that all ranks hold alike: an even, disjoint cover."""
    total = sum(shard.weight.numel() for shard in shards)
    return list(_between(shards, total * rank // size, total * (rank + 1) // size))


def _between(shards: Sequence[ParameterShard], first: int, last: int) -> Iterator[ParameterShard]:
    """Yield the parts of `shards`, laid end to end, that fall in the range [first, last)."""
    offset = 0
    for shard in shards:
        size = shard.weight.numel()
        low, high = max(first - offset, 0), min(last - offset, size)
        offset += size
        if low < high:
            yield shard.cut(low, high)
