"""At the start of a run: what would be saved is what is trained, and Adam moves it as it should.

An optimizer that works on another copy of the weights than checkpoints and averages hold trains
and saves without an error. Settings that are known to do this are rejected (user_settings.py); this
finds the others, and versions of DeepSpeed that changed. It costs one look at all weights before
the first update and one after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dist_train.engine.engine import MOMENTS, Engine
from dist_train.runtime.world import World

SAMPLE = 64
"""Weights of each parameter shard whose update is computed again."""


class SelfCheckError(ValueError):
    """What would be saved is not what is trained; the message is one line."""


class SelfCheck:
    """Of one engine: compares weights when it is made, and after the first update.

    Args:
        name: The network's name.
        engine: The engine, before an update.
        world: The process group.

    Raises:
        SelfCheckError: What would be saved of the network is not what its losses compute with.
    """

    @torch.no_grad()
    def __init__(self, name: str, engine: Engine, world: World) -> None:
        self._name, self._engine, self._world = name, engine, world
        self._updates = engine.updates
        self._compare()
        self._before = [shard.weight[:SAMPLE].clone() for shard in engine.held()]

    @torch.no_grad()
    def passed(self) -> bool:
        """Return whether an update was made, and was right; False before the first. Collective.

        Raises:
            SelfCheckError: The update left weights where Adam's moments do not put them, or changed
                other weights than those that would be saved.
        """
        if self._engine.updates == self._updates:
            return False
        self._compare()
        expected = self._expected()
        wrong = [
            bool(((shard.weight[:SAMPLE] - weight).abs() > tolerance).any())
            for shard, (weight, tolerance) in zip(self._engine.held(), expected, strict=True)
        ]
        problem = "the first update moved {} parameter shards of the {} elsewhere than Adam would"
        self._agree(sum(wrong), problem)
        return True

    def _expected(self) -> list[tuple[Tensor, Tensor]]:
        """Return, for the samples, the weights after Adam's update, and what rounding may change.

        A shard without moments was not updated.
        """
        adam, step = self._engine.adam_settings(), self._engine.updates
        beta1, beta2 = adam["betas"]
        result = []
        for shard, before in zip(self._engine.held(), self._before, strict=True):
            zeros = dict.fromkeys(MOMENTS, torch.zeros_like(before))
            first, second = ({**zeros, **shard.moments}[name][:SAMPLE] for name in MOMENTS)
            root = (second / (1 - beta2**step)).sqrt() + adam["eps"]
            move = adam["lr"] * first / (1 - beta1**step) / root
            result.append((before - move, 1e-3 * move.abs() + 1e-6 * before.abs()))
        return result

    def _compare(self) -> None:
        """Compare all weights bit by bit, and count them."""
        engine = self._engine
        differing = sum(
            not torch.equal(shard.weight.view(torch.int32), used.view(torch.int32))
            for shard, used in zip(engine.held(), engine.weights_in_use(), strict=True)
        )
        problem = "{} parameter shards of the {} would be saved with other weights than are trained"
        self._agree(differing, problem)
        saved = torch.tensor(sum(shard.weight.numel() for shard in engine.owned()))
        missing = sum(map(torch.Size.numel, engine.shapes.values())) - int(
            self._world.all_reduce_sum(saved)
        )
        if missing:
            raise SelfCheckError(f"{missing} weights of the {self._name} would not be saved")

    def _agree(self, wrong: int, problem: str) -> None:
        """Raise on all ranks if something is wrong on one. Collective."""
        total = int(self._world.all_reduce_sum(torch.tensor(wrong)))
        if total:
            raise SelfCheckError(
                f"{problem.format(total, self._name)}: checkpoints would be useless; leave"
                " sharding.deepspeed out, or change sharding.zero_stage or sharding.offload"
            )
