"""The real pair through two DeepSpeed engines against plain PyTorch on the joined batch.

Two ranks with two micro-batches each, lazy R1 with its double backward, ZeRO 0, 1 and 2. Adam's eps
is wide, because a key bias of attention has a gradient of zero, of whose rounding Adam would make a
full step with the ordinary one.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dist_train.config import AdamConfig, ShardingConfig
from dist_train.runtime.world import World
from models.objective import Example
from tests.models.wavediff.test_objective import TINY, random_pair
from tests.ranks import run_ranks

STEPS, MICRO, ACCUMULATION, RANKS = 4, 2, 2, 2
GLOBAL = MICRO * ACCUMULATION * RANKS
ADAM = {"lr": 1e-3, "betas": (0.5, 0.9), "eps": 1e-4}


def batch(step: int, first: int, count: int) -> Example:
    """Return samples first..first + count - 1 of a step's global batch."""
    generator = torch.Generator().manual_seed(step)
    size = (GLOBAL, 3, TINY.resolution, TINY.resolution)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    x = TINY.build().prepare(images)[first : first + count]
    start = step * GLOBAL + first
    return Example(x, None, tuple(range(start, start + count)), seed=3)


def train_plainly() -> dict[str, dict[str, Tensor]]:
    networks = random_pair()
    losses = TINY.build().losses()
    adam = {name: torch.optim.Adam(net.parameters(), **ADAM) for name, net in networks.items()}
    for step in range(STEPS):
        for name, loss_fn in losses.items():
            adam[name].zero_grad()
            loss_fn(networks, batch(step, 0, GLOBAL), step)[0].backward()
            adam[name].step()
    return {name: dict(network.state_dict()) for name, network in networks.items()}


def check_parity(reference: dict[str, dict[str, Tensor]]) -> None:
    from dist_train.runtime.world import init_world

    world = init_world()
    for zero_stage in (0, 1, 2):
        for name, weights in train_sharded(world, zero_stage).items():
            for key, value in weights.items():
                wanted = reference[name][key]
                torch.testing.assert_close(
                    value,
                    wanted,
                    rtol=0,
                    atol=1e-6,
                    msg=lambda m, k=key, z=zero_stage: f"ZeRO-{z} {k}: {m}",
                )
    world.barrier()


def train_sharded(world: World, zero_stage: int) -> dict[str, dict[str, Tensor]]:
    from dist_train.engine.engine import Engine, parameter_lists, updating_only

    networks: dict[str, nn.Module] = random_pair()
    losses = TINY.build().losses()
    engines = {
        name: Engine(
            network,
            AdamConfig(**ADAM),
            ShardingConfig(zero_stage=zero_stage),  # type: ignore[arg-type]
            world=world,
            micro_batch_size=MICRO,
            accumulation_steps=ACCUMULATION,
        )
        for name, network in networks.items()
    }
    for step in range(STEPS):
        for name, loss_fn in losses.items():
            with updating_only(name, parameter_lists(networks)):
                for k in range(ACCUMULATION):
                    example = batch(step, (k * world.size + world.rank) * MICRO, MICRO)
                    engines[name].backward(loss_fn(networks, example, step)[0])
                    engines[name].step(ADAM["lr"])
    weights = {name: dict(network.state_dict()) for name, network in networks.items()}
    for engine in engines.values():
        engine.close()
    return weights


@pytest.mark.distributed
def test_pair_matches_plain_pytorch_on_the_joined_batch() -> None:
    assert TINY.r1_interval < STEPS  # with and without R1
    run_ranks(RANKS, check_parity, train_plainly())
