"""Training speed as ratios: a step against a bare loop, and the stall of a checkpoint.

    python -m tests.benchmarks.bench_training [--ranks 1]

Both loops run in turn in one process, so that what else the machine does hits both alike; the
median over blocks of steps is reported.
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

from dist_train.config import RunConfig
from dist_train.recipes import RECIPES
from models.objective import Example
from tests.ranks import run_ranks

NAMES = ("quickstart_edm16", "quickstart_relay64", "quickstart_wavediff64")
BLOCKS, STEPS = 9, 4


def _config(name: str) -> RunConfig:
    config = RECIPES[name]()
    data = replace(config.data, backend="synthetic")
    if name == "quickstart_wavediff64":
        return replace(config, data=data, global_batch_size=8, wandb_project=None)
    unet = replace(config.objective.unet, label_dim=4)  # type: ignore[union-attr]
    objective = replace(config.objective, unet=unet)  # type: ignore[arg-type]
    return replace(config, objective=objective, data=data, wandb_project=None)


class BareLoop:
    """What one would write by hand: networks, Adam, losses, gradients averaged, EMA."""

    def __init__(self, config: RunConfig, ranks: int, rank: int) -> None:
        from data_pipelines.pipeline import Share, build_pipeline

        self.objective = config.objective.build()
        self.networks = self.objective.build_networks()
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), lr=1e-4) for name, net in self.networks.items()
        }
        followed = self.networks[self.objective.sampled_network]
        self.average = [p.detach().clone() for p in followed.parameters()]
        self.followed = list(followed.parameters())
        share = Share(rank, ranks, config.global_batch_size // ranks)
        self.batches = build_pipeline(config.data, seed=0, share=share).batches(0)
        self.labelled, self.ranks, self.done = config.objective.label_dim > 0, ranks, 0

    def step(self) -> None:
        batch = next(self.batches)
        labels = batch.labels if self.labelled else None
        example = Example(self.objective.prepare(batch.images), labels, batch.positions, 0)
        for name, loss_fn in self.objective.losses().items():
            for other, network in self.networks.items():
                network.requires_grad_(other == name)
            self.optimizers[name].zero_grad()
            loss_fn(self.networks, example, self.done)[0].backward()
            if self.ranks > 1:
                gradients = [p.grad for p in self.networks[name].parameters() if p.grad is not None]
                flat = torch._utils._flatten_dense_tensors(gradients)
                dist.all_reduce(flat)
                flat /= self.ranks
                parts = torch._utils._unflatten_dense_tensors(flat, gradients)
                torch._foreach_copy_(gradients, parts)
            self.optimizers[name].step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.followed], 1e-3)
        self.done += 1


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - began) / STEPS


def _run(root: Path, ranks: int) -> None:
    from dist_train.distributed import init_world
    from dist_train.loop import Trainer

    world = init_world()
    for name in NAMES:
        config = _config(name)
        trainer = Trainer(config, root / name, world)
        examples = trainer._examples()
        bare = BareLoop(config, ranks, world.rank)
        pairs = []
        for block in range(BLOCKS + 1):
            ours = _seconds(lambda: trainer._train_step(examples))  # noqa: B023
            theirs = _seconds(bare.step)
            if block:  # the first warms up
                pairs.append((ours, theirs))
        ratio = statistics.median(a / b for a, b in pairs)
        theirs = statistics.median(b for _, b in pairs)
        if world.rank == 0:
            print(f"{name:24} bare {theirs * 1e3:7.1f} ms/step   ours / bare {ratio:.3f}")
        for engine in trainer.engines.values():
            engine.close()
    if world.rank == 0:
        _stall()


def _stall() -> None:
    """Print what a checkpoint costs the loop, asynchronous over synchronous."""
    from dist_train.checkpoint import TrainState
    from dist_train.checkpoint_writer import CheckpointWriter
    from dist_train.distributed import World
    from dist_train.fragments import Fragment
    from dist_train.retention import Retention

    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    values = torch.randn(25_000_000)  # 100 MB
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), world, Retention(last=1))
        stalls, totals = [], []
        for images in range(1, 6):
            began = time.perf_counter()
            fragment = Fragment("w", 0, values, {})
            writer.begin(TrainState(images, images, {"net": 1}), {"net": [fragment]})
            stalls.append(time.perf_counter() - began)
            writer.finish()
            totals.append(time.perf_counter() - began)
    stall, total = statistics.median(stalls), statistics.median(totals)
    print(f"checkpoint of 100 MB: stall {stall:.3f} s of {total:.3f} s = {stall / total:.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=1)
    chosen = parser.parse_args().ranks
    with tempfile.TemporaryDirectory() as temporary:
        run_ranks(chosen, _run, Path(temporary), chosen)
