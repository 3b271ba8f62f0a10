"""Averaging gradients over ranks at the end of an update: one copy, one collective.

It stands in for what DeepSpeed does under ZeRO-0 and 1: that goes through all tensors in Python,
which takes some per cent of a small network's step, and under ZeRO-1 it sums whole gradients on
every rank (half as many bytes again) or reduces to one rank after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from dist_train.runtime.world import World


class Partition(list[Tensor]):
    """A rank's part of an averaged gradient, as DeepSpeed's ZeRO-1 takes a flat one.

    Attributes:
        flat_partition: All of it, float32, 1-D.
    """

    def __init__(self, flat: Tensor) -> None:
        super().__init__([flat])
        self.flat_partition = flat


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace the gradients by their means over all ranks, in place. Collective.

    All ranks must have gradients of the same parameters.
    """
    if world.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world.size
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    places = [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)]
    torch._foreach_copy_(gradients, places)


def scatter_gradients(sharded: Any, world: World) -> None:
    """Leave each rank its partition of the mean gradient, and free the whole ones. Collective.

    Args:
        sharded: DeepSpeed's ZeRO-1 optimizer; its parameters are views of flat weights, which are
            cut into one partition per rank.
        world: The process group.
    """
    for group, parameters in enumerate(sharded.bit16_groups):
        size = sharded.bit16_groups_flat[group].numel()
        partition = _scatter(_flattened(parameters, size), world)
        sharded.averaged_gradients[group] = Partition(partition)


def _flattened(parameters: Sequence[nn.Parameter], size: int) -> Tensor:
    """Return the gradients where their parameters are in the flat weights; frees them."""
    pieces, end = [], 0
    for parameter in sorted(parameters, key=Tensor.storage_offset):
        start = int(parameter.storage_offset())
        if start > end:  # padding
            pieces.append(parameter.new_zeros(start - end))
        gradient = parameter.grad
        pieces.append(
            parameter.new_zeros(parameter.numel()) if gradient is None else gradient.reshape(-1)
        )
        parameter.grad, end = None, start + parameter.numel()
    if end < size:
        pieces.append(parameters[0].new_zeros(size - end))
    return torch.cat(pieces)


def _scatter(flat: Tensor, world: World) -> Tensor:
    """Return this rank's part of the mean of `flat` over all ranks."""
    if flat.device.type == "cuda":
        mine = flat.new_empty(flat.numel() // world.size)
        # Older versions of torch know it by its former name only.
        reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        reduce_scatter(mine, flat)
    else:  # gloo's own reduce-scatter takes half as long again
        parts = torch.empty_like(flat)
        dist.all_to_all_single(parts, flat)
        mine = parts.view(world.size, -1).sum(0)
    return mine.div_(world.size)
