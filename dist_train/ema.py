"""Exponential moving averages of the sampled network, sharded like its optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dist_train.ema_profiles import EmaProfile
from dist_train.engine.shards import ParameterShard
from dist_train.runtime.world import World

MAIN = "main"
"""Name of the average that snapshots hold."""


def average_group(network: str, average: str) -> str:
    """Return the name of an average's tensors in checkpoints; that of the main one is `ema`."""
    return f"{network}.{'ema' if average == MAIN else average}"


class ShardedEma:
    """A float32 average of this rank's own shards of the master weights.

    It costs 4 / N bytes per parameter and rank and needs no communication until it is read: an
    EMA in half precision would not move at all (docs/reference/deepspeed.md#4.3).

    Args:
        shards: The rank's owned shards; their weights are followed from now on.
        profile: How the decay depends on training progress.
    """

    def __init__(self, shards: list[ParameterShard], profile: EmaProfile) -> None:
        self.profile = profile
        self._shards = shards
        self._averages = [shard.weight.clone() for shard in shards]

    def update(self, images_seen: int, batch: int) -> None:
        """Take in the weights after the step that began at `images_seen`, in one fused pass."""
        beta = self.profile.beta(images_seen, batch)
        weights = [shard.weight for shard in self._shards]
        if weights:  # a rank of very many may hold none
            torch._foreach_lerp_(self._averages, weights, 1 - beta)

    def shards(self) -> list[ParameterShard]:
        """Return the averages as shards (without moments), views that may be overwritten."""
        return [
            ParameterShard(shard.name, shard.start, average, {})
            for shard, average in zip(self._shards, self._averages, strict=True)
        ]

    def gather(self, shapes: Mapping[str, torch.Size], world: World) -> dict[str, Tensor]:
        """Return the whole average by parameter name on rank 0 (an empty dict elsewhere).

        Collective; needs one parameter of extra memory at a time on the other ranks.

        Args:
            shapes: Shape by name of all parameters of the network.
            world: The process group.
        """
        whole = {}
        for name, flat in self._with_zeros(shapes, world):
            world.reduce_sum(flat, to=0)
            if world.rank == 0:
                whole[name] = flat.view(shapes[name]).cpu()
        return whole

    def copy_to(self, network: nn.Module, world: World) -> None:
        """Write the whole average into a network of the same parameters, on all ranks. Collective.

        Each value is of one rank, to which the others add zeros: it is exact.
        """
        parameters = dict(network.named_parameters())
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        for name, flat in self._with_zeros(shapes, world):
            whole = world.all_reduce_sum(flat)
            parameters[name].data.copy_(whole.view(shapes[name]))

    def _with_zeros(
        self, shapes: Mapping[str, torch.Size], world: World
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter's name and average, flat, zero where other ranks have it."""
        mine: dict[str, list[ParameterShard]] = {}
        for shard in self.shards():
            mine.setdefault(shard.name, []).append(shard)
        for name, shape in shapes.items():
            flat = torch.zeros(shape.numel(), device=world.device)
            for shard in mine.get(name, []):
                flat[shard.start : shard.start + shard.weight.numel()] = shard.weight
            yield name, flat
