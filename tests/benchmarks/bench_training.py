"""Training speed as ratios: a step against a bare loop, and the stall of a checkpoint.

    python -m tests.benchmarks.bench_training [--ranks 1] [--steps 40] [--fused]

Both loops take turns step by step in one process, so that what else the machine does hits both
alike; the median over blocks of steps is reported. The bare loop is what one would write by hand:
networks, losses, torch's Adam as it comes (`--fused`: as fused as ours), gradients averaged by
DistributedDataParallel (by hand where there is R1, whose double backward DDP does not support), an
EMA; no metrics, checks or timers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

from dist_train.config import RunConfig
from dist_train.recipes import RECIPES
from models.objective import Example
from tests.ranks import run_ranks

NAMES = ("quickstart_edm16", "quickstart_relay64", "quickstart_wavediff64")
BLOCK = 10
"""Steps whose times are added: the interval of the pair's lazy R1."""


def benchmarked(name: str) -> RunConfig:
    """Return a quickstart recipe on generated images, with its own batch."""
    config = RECIPES[name]()
    objective = config.objective
    if config.objective.label_dim:
        unet = replace(objective.unet, label_dim=4)  # type: ignore[union-attr]
        objective = replace(objective, unet=unet)  # type: ignore[arg-type]
    return replace(
        config,
        objective=objective,
        data=replace(config.data, backend="synthetic"),
        wandb_project=None,
    )


class BareLoop:
    """What one would write by hand."""

    def __init__(self, config: RunConfig, ranks: int, rank: int, fused: bool = False) -> None:
        from data_pipelines.pipeline import Share, build_pipeline

        self.objective = config.objective.build()
        networks = self.objective.build_networks()
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), lr=1e-4, fused=fused)
            for name, net in networks.items()
        }
        followed = networks[self.objective.sampled_network]
        self.average = [p.detach().clone() for p in followed.parameters()]
        self.followed = list(followed.parameters())
        self.by_hand = ranks > 1 and bool(self.objective.second_order)
        self.networks: dict[str, nn.Module] = {
            name: nn.parallel.DistributedDataParallel(net)
            if ranks > 1 and not self.by_hand
            else net
            for name, net in networks.items()
        }
        share = Share(rank, ranks, config.global_batch_size // ranks)
        self.batches = build_pipeline(config.data, seed=0, share=share).batches(0)
        self.labelled, self.ranks, self.done = config.objective.label_dim > 0, ranks, 0
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format

    def step(self) -> None:
        batch = next(self.batches)
        labels = batch.labels if self.labelled else None
        x = self.objective.prepare(batch.images).contiguous(memory_format=self.layout)
        example = Example(x, labels, batch.positions, 0)
        for name, loss_fn in self.objective.losses().items():
            for other, network in self.networks.items():
                network.requires_grad_(other == name)
            self.optimizers[name].zero_grad()
            loss_fn(self.networks, example, self.done)[0].backward()
            if self.by_hand:
                self._average_gradients(self.networks[name])
            self.optimizers[name].step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.followed], 1e-3)
        self.done += 1

    def _average_gradients(self, network: nn.Module) -> None:
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch._utils._flatten_dense_tensors(gradients)
        dist.all_reduce(flat)
        flat /= self.ranks
        parts = torch._utils._unflatten_dense_tensors(flat, gradients)
        torch._foreach_copy_(gradients, parts)


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _run(root: Path, ranks: int, steps: int, fused: bool) -> None:
    from dist_train.distributed import init_world
    from dist_train.loop import Trainer

    world = init_world()
    for name in NAMES:
        config = benchmarked(name)
        trainer = Trainer(config, root / name, world)
        examples = trainer._examples()
        bare = BareLoop(config, ranks, world.rank, fused)
        times = [
            (_seconds(lambda: trainer._train_step(examples)), _seconds(bare.step))  # noqa: B023
            for _ in range(3 + steps)
        ][3:]  # the first ones warm up
        blocks = [times[k : k + BLOCK] for k in range(0, steps, BLOCK)]
        sums = [tuple(map(sum, zip(*block, strict=True))) for block in blocks]
        ratio = statistics.median(ours / theirs for ours, theirs in sums)
        theirs = statistics.median(theirs for _, theirs in sums) / BLOCK
        if world.rank == 0:
            print(f"{name:24} bare {theirs * 1e3:7.1f} ms/step   ours / bare {ratio:.3f}")
        for engine in trainer.engines.values():
            engine.close()
    if world.rank == 0:
        _stall()


def _stall() -> None:
    """Print what a checkpoint costs the loop, relative to writing it while the loop waits.

    The loop's forward and backward passes are a matrix product of a tenth of a second; the stall is
    by how much passes, waiting and committing last longer than the passes alone.
    """
    from dist_train.checkpoint import TrainState
    from dist_train.checkpoint_writer import CheckpointWriter
    from dist_train.distributed import World
    from dist_train.fragments import Fragment
    from dist_train.retention import Retention

    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    fragments = {"net": [Fragment("w", 0, torch.randn(25_000_000), {})]}  # 100 MB
    factor = torch.randn(1200, 1200)

    def passes() -> None:
        for _ in range(3):
            factor @ factor

    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), world, Retention(last=1))
        stalls, totals = [], []
        for images in range(1, 25):
            state = TrainState(images, images, {"net": 1})
            alone = _seconds(passes)
            began = time.perf_counter()
            writer.begin(state, fragments)
            if images % 2:
                passes()
                writer.wait_for_copy()
                stalls.append(time.perf_counter() - began - alone)
                while not writer.written:  # the loop goes on
                    time.sleep(0.001)
                stalls[-1] += _seconds(writer.commit)
            writer.finish()
            if not images % 2:
                totals.append(time.perf_counter() - began)
    stall, total = statistics.median(stalls[1:]), statistics.median(totals[1:])
    print(f"checkpoint of 100 MB: stall {stall:.3f} s of {total:.3f} s = {stall / total:.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--fused", action="store_true", help="Adam of the bare loop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        arguments = (options.ranks, options.steps, options.fused)
        run_ranks(options.ranks, _run, Path(temporary), *arguments)
