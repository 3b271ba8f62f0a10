"""DeepSpeed engines against plain PyTorch on the joined batch, and what each rank holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import run_ranks

STEPS, LAZY, MICRO, ACCUMULATION = 6, 2, 2, 2


def _networks() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {
        "discriminator": nn.Sequential(nn.Conv2d(3, 5, 3), nn.SiLU(), nn.Conv2d(5, 1, 3)),
        "generator": nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.SiLU(), nn.Conv2d(7, 3, 1)),
    }


def _discriminator_loss(networks: dict[str, nn.Module], x: Tensor, step: int) -> Tensor:
    return _real_loss(networks, x, step) + _fake_loss(networks, x)


def _fake_loss(networks: dict[str, nn.Module], x: Tensor) -> Tensor:
    with torch.no_grad():
        fake = networks["generator"](x)
    return nn.functional.softplus(networks["discriminator"](fake)).mean()


def _real_loss(networks: dict[str, nn.Module], x: Tensor, step: int) -> Tensor:
    """The loss of real images, with lazy R1 and its double backward."""
    x = x.clone().requires_grad_()
    real = networks["discriminator"](x)
    loss = nn.functional.softplus(-real).mean()
    if step % LAZY == 0:
        (gradient,) = torch.autograd.grad(real.sum(), x, create_graph=True)
        loss = loss + gradient.square().sum(dim=(1, 2, 3)).mean()
    return loss


def _generator_loss(networks: dict[str, nn.Module], x: Tensor, step: int) -> Tensor:
    return nn.functional.softplus(-networks["discriminator"](networks["generator"](x))).mean()


LOSSES = {"discriminator": _discriminator_loss, "generator": _generator_loss}


def _batch(step: int, first: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 3, 8, 8, generator=generator)[first : first + count]


def _train_plainly() -> dict[str, dict[str, Tensor]]:
    networks = _networks()
    optimizers = {
        name: torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.5, 0.9))
        for name, net in networks.items()
    }
    for step in range(STEPS):
        for name, loss_fn in LOSSES.items():
            optimizers[name].zero_grad()
            loss_fn(networks, _batch(step, 0, 2 * MICRO * ACCUMULATION), step).backward()
            optimizers[name].step()
    return {name: dict(network.state_dict()) for name, network in networks.items()}


def _check_parity(zero_stage: int, reference: dict[str, dict[str, Tensor]]) -> None:
    from dist_train.config import AdamConfig, ConstantEma, ShardingConfig
    from dist_train.ema import ShardedEma
    from dist_train.engine.engine import Engine, parameter_lists, updating_only
    from dist_train.runtime.world import init_world

    world = init_world()
    networks = _networks()
    engines = {
        name: Engine(
            network,
            AdamConfig(lr=1e-2, betas=(0.5, 0.9)),
            ShardingConfig(zero_stage=zero_stage),  # type: ignore[arg-type]
            world=world,
            micro_batch_size=MICRO,
            accumulation_steps=ACCUMULATION,
        )
        for name, network in networks.items()
    }
    ema = ShardedEma(engines["generator"].owned(), ConstantEma(decay=0.5))
    average = {name: p.detach().clone() for name, p in networks["generator"].named_parameters()}
    for step in range(STEPS):
        for name, loss_fn in LOSSES.items():
            with updating_only(name, parameter_lists(networks)):
                for k in range(ACCUMULATION):
                    x = _batch(step, (k * world.size + world.rank) * MICRO, MICRO)
                    engines[name].backward(loss_fn(networks, x, step))
                    engines[name].step(1e-2)
        beta = 0.0 if step == 0 else 0.5
        ema.update(step, 1)
        for name, p in networks["generator"].named_parameters():
            average[name].lerp_(p.detach(), 1 - beta)
        frozen = [p.grad for p in networks["discriminator"].parameters()]
        assert all(gradient is None or not gradient.any() for gradient in frozen)
    for name, network in networks.items():
        assert engines[name].updates == STEPS
        for key, value in network.state_dict().items():
            torch.testing.assert_close(value, reference[name][key], rtol=0, atol=1e-6)
        _check_cover(engines[name], network, world, zero_stage)
    gathered = ema.gather(engines["generator"].shapes, world)
    assert gathered.keys() == (average.keys() if world.rank == 0 else set())
    for name, value in gathered.items():
        torch.testing.assert_close(value, average[name], rtol=0, atol=1e-7)
    world.barrier()


def _check_cover(engine, network, world, zero_stage: int) -> None:  # type: ignore[no-untyped-def]
    """Owned shards cover every weight exactly once and carry weights and moments."""
    seen = {name: torch.zeros(p.numel()) for name, p in network.named_parameters()}
    for shard in engine.owned():
        end = shard.start + shard.weight.numel()
        seen[shard.name][shard.start : end] += 1
        whole = dict(network.named_parameters())[shard.name].detach().flatten()
        assert torch.equal(whole[shard.start : end], shard.weight)
        assert {k: v.shape for k, v in shard.moments.items()} == dict.fromkeys(
            ("exp_avg", "exp_avg_sq"), shard.weight.shape
        )
    for counts in seen.values():
        assert torch.equal(world.all_reduce_sum(counts), torch.ones_like(counts))
    total = sum(p.numel() for p in network.parameters())
    held = sum(shard.weight.numel() for shard in engine.held())
    assert held == total if zero_stage == 0 else held <= total // 2 + 8


@pytest.mark.distributed
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_pair_with_r1_matches_plain_pytorch_on_the_joined_batch(zero_stage: int) -> None:
    run_ranks(2, _check_parity, zero_stage, _train_plainly())


def _check_checkpoint_damage(run_dir: Path) -> None:
    from dist_train.checkpoint.format import (
        CheckpointError,
        CheckpointReader,
        TrainState,
        find_newest_complete,
    )
    from dist_train.checkpoint.writer import CheckpointWriter
    from dist_train.config import CheckpointConfig
    from dist_train.engine.shards import ParameterShard
    from dist_train.runtime.world import init_world

    world = init_world()
    writer = CheckpointWriter(run_dir, world, CheckpointConfig(keep_last=3))
    for images in (10, 20, 30):
        values = torch.arange(6.0) + 100 * images
        part = values[:2] if world.rank == 0 else values[2:]
        shard = ParameterShard("w", 2 * world.rank, part, {"exp_avg": -part})
        writer.begin(TrainState(images, images // 10, {"net": images // 10}), {"net": [shard]})
        writer.wait_for_copy()
        part.zero_()  # training continues: what is written is a copy
        writer.finish()
    newest, problems = find_newest_complete(run_dir, world)
    assert newest is not None
    assert (newest.name, problems) == (f"{30:012d}", [])
    world.barrier()
    if world.rank == 0:  # one flipped byte in the newest, a truncated file in the second
        flipped = newest / "rank_00001.safetensors"
        content = bytearray(flipped.read_bytes())
        content[-1] ^= 1
        flipped.write_bytes(content)
        cut = run_dir / "checkpoints" / f"{20:012d}" / "rank_00000.safetensors"
        cut.write_bytes(cut.read_bytes()[:-1])
    world.barrier()
    oldest, problems = find_newest_complete(run_dir, world)
    assert oldest is not None
    assert oldest.name == f"{10:012d}"
    assert [("SHA-256" in p, "bytes, expected" in p) for p in problems] == [
        (True, False),
        (False, True),
    ]
    reader = CheckpointReader(oldest)
    assert reader.state == TrainState(10, 1, {"net": 1})
    middle = torch.empty(4)
    reader.read("net/weight/w", 1, middle)
    assert middle.tolist() == [1001.0, 1002.0, 1003.0, 1004.0]
    reader.read("net/exp_avg/w", 1, middle)
    assert middle.tolist() == [-1001.0, -1002.0, -1003.0, -1004.0]
    with pytest.raises(CheckpointError, match="another architecture"):
        reader.read("net/weight/w", 3, middle)
    world.barrier()
    if world.rank == 0:
        (oldest / "rank_00000.safetensors").unlink()
    world.barrier()
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is complete"):
        find_newest_complete(run_dir, world)
    world.barrier()


@pytest.mark.distributed
def test_damaged_checkpoints_are_passed_over_and_never_a_fresh_start(tmp_path: Path) -> None:
    run_ranks(2, _check_checkpoint_damage, tmp_path)
