"""Exponential moving averages of the sampled network, sharded like its optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dist_train.ema_profiles import EmaProfile
from dist_train.engine.fragments import Fragment
from dist_train.runtime.world import World

MAIN = "main"
"""Name of the average that snapshots hold."""


def average_group(network: str, average: str) -> str:
    """Return the name of an average's tensors in checkpoints; that of the main one is `ema`."""
    return f"{network}.{'ema' if average == MAIN else average}"


class ShardedEma:
    """A float32 average of this rank's own fragments of the master weights.

    It costs 4 / N bytes per parameter and rank and needs no communication until it is read: an
    EMA in half precision would not move at all (docs/reference/deepspeed.md#4.3).

    Args:
        fragments: The rank's owned fragments; their weights are followed from now on.
        profile: How the decay depends on training progress.
    """

    def __init__(self, fragments: list[Fragment], profile: EmaProfile) -> None:
        self.profile = profile
        self._fragments = fragments
        self._averages = [fragment.weight.clone() for fragment in fragments]

    def update(self, images_seen: int, batch: int) -> None:
        """Take in the weights after the step that began at `images_seen`, in one fused pass."""
        beta = self.profile.beta(images_seen, batch)
        weights = [fragment.weight for fragment in self._fragments]
        if weights:  # a rank of very many may hold none
            torch._foreach_lerp_(self._averages, weights, 1 - beta)

    def fragments(self) -> list[Fragment]:
        """Return the averages as fragments (without moments), views that may be overwritten."""
        return [
            Fragment(fragment.name, fragment.start, average, {})
            for fragment, average in zip(self._fragments, self._averages, strict=True)
        ]

    def gather(self, shapes: Mapping[str, torch.Size], world: World) -> dict[str, Tensor]:
        """Return the whole average by parameter name on rank 0 (an empty dict elsewhere).

        Collective; needs one parameter of extra memory at a time on the other ranks.

        Args:
            shapes: Shape by name of all parameters of the network.
            world: The process group.
        """
        mine: dict[str, list[Fragment]] = {}
        for fragment in self.fragments():
            mine.setdefault(fragment.name, []).append(fragment)
        whole = {}
        for name, shape in shapes.items():
            flat = torch.zeros(shape.numel(), device=world.device)
            for fragment in mine.get(name, []):
                flat[fragment.start : fragment.start + fragment.weight.numel()] = fragment.weight
            world.reduce_sum(flat, to=0)
            if world.rank == 0:
                whole[name] = flat.view(shape).cpu()
        return whole
