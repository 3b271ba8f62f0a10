"""The exponential moving average of the sampled network, sharded like its optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dist_train.config import ConstantEma, HalflifeEma
from dist_train.distributed import World
from dist_train.engines import Fragment


class ShardedEma:
    """A float32 average of this rank's own fragments of the master weights.

    It costs 4 / N bytes per parameter and rank and needs no communication until it is read: an
    EMA in half precision would not move at all (spec/FIELD.md section 4c).

    Args:
        fragments: The rank's owned fragments; their weights are followed from now on.
        config: How the decay depends on training progress.
    """

    def __init__(self, fragments: list[Fragment], config: HalflifeEma | ConstantEma) -> None:
        self.config = config
        self._fragments = fragments
        self._averages = [fragment.weight.clone() for fragment in fragments]

    def update(self, images_seen: int, batch: int) -> None:
        """Take in the weights after the step that began at `images_seen`, in one fused pass."""
        beta = self.config.beta(images_seen, batch)
        weights = [fragment.weight for fragment in self._fragments]
        torch._foreach_lerp_(self._averages, weights, 1 - beta)

    def fragments(self) -> list[Fragment]:
        """Return the averages as fragments (without moments), views that may be overwritten."""
        return [
            Fragment(fragment.name, fragment.start, average, {})
            for fragment, average in zip(self._fragments, self._averages, strict=True)
        ]

    def gather(self, network: nn.Module, world: World) -> dict[str, Tensor]:
        """Return the whole average by parameter name on rank 0 (an empty dict elsewhere).

        Collective; needs one parameter of extra memory at a time on the other ranks.
        """
        mine: dict[str, list[Fragment]] = {}
        for fragment in self.fragments():
            mine.setdefault(fragment.name, []).append(fragment)
        whole = {}
        for name, parameter in network.named_parameters():
            flat = torch.zeros(parameter.numel(), device=parameter.device)
            for fragment in mine.get(name, []):
                flat[fragment.start : fragment.start + fragment.weight.numel()] = fragment.weight
            world.reduce_sum(flat, to=0)
            if world.rank == 0:
                whole[name] = flat.view(parameter.shape).cpu()
        return whole
