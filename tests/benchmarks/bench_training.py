"""Training speed as ratios: a step against a bare loop, and the stall of a checkpoint.

    python -m tests.benchmarks.bench_training [--ranks 1] [--zero-stage 1] [NAME ...] [stall]

Steps: both loops take turns step by step in one process, first one and then the other first, so
that what else the machine does hits both alike; the median over blocks of steps and its quartiles
are printed. Ours is what `Trainer.fit` does for a step, with the ranks' agreement after each and a
report, written and checked, after each block. The bare loop is what one would write by hand:
networks, losses, torch's fused Adam, gradients averaged by DistributedDataParallel (by hand where
there is R1, whose double backward DDP does not support), an EMA; no metrics, checks or timers.

Stall: in the real loop, with a state of 210 MB. What the loop waits is measured where it waits
(starting a checkpoint, the copy, committing); by how much the steps around a checkpoint are slower
than as many without is measured as well.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed as dist
from torch import nn

from dist_train.config import RunConfig, ShardingConfig
from dist_train.recipes import RECIPES
from models.objective import Example
from models.rdm.config import EdmConfig
from tests.ranks import run_ranks

NAMES = ("quickstart_edm16", "quickstart_relay64", "quickstart_wavediff64")
BLOCK = 10
"""Steps whose times are added: the interval of the pair's lazy R1."""
STEPS_PER_CHECKPOINT = 6
"""Enough for a checkpoint to be written meanwhile."""


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
        logging=replace(config.logging, wandb_project=None),
    )


def wide(zero_stage: int) -> RunConfig:
    """Return a run whose weights outweigh its activations, one sample for each rank."""
    config = benchmarked("quickstart_edm16")
    assert isinstance(config.objective, EdmConfig)
    unet = replace(config.objective.unet, model_channels=128)
    return replace(
        config,
        objective=replace(config.objective, unet=unet),
        sharding=ShardingConfig(zero_stage=zero_stage),  # type: ignore[arg-type]
        global_batch_size=2,
        logging=replace(config.logging, grid_seeds=0),
    )


class BareLoop:
    """What one would write by hand."""

    def __init__(self, config: RunConfig, ranks: int, rank: int) -> None:
        from data_pipelines.backends.build import build_pipeline
        from data_pipelines.pipeline import Share

        self.objective = config.objective.build()
        networks = self.objective.build_networks()
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
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
        self.layout = (
            torch.channels_last if config.compute.channels_last else torch.contiguous_format
        )

    def step(self) -> None:
        batch = next(self.batches)
        labels = batch.labels if self.labelled else None
        x = self.objective.prepare(batch.images).contiguous(memory_format=self.layout)
        example = Example(x, labels, batch.positions, 0)
        for name, loss_fn in self.objective.losses().items():
            if len(self.networks) > 1:
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


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _spread(values: Sequence[float], form: str) -> str:
    """Return the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def _compare(root: Path, names: Sequence[str], steps: int, zero_stage: Literal[0, 1]) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.preemption import StopRequest
    from dist_train.runtime.world import init_world

    world, stop = init_world(), StopRequest()
    for name in names:
        config = replace(benchmarked(name), sharding=ShardingConfig(zero_stage=zero_stage))
        trainer = build_trainer(config, root / name, world)
        trainer.parts.reporter.open(0)
        examples = trainer._examples()
        bare = BareLoop(config, world.size, world.rank)

        def ours(trainer: Any = trainer, examples: Any = examples) -> None:
            trainer._train_step(examples)
            trainer._agree_to_stop(stop)
            if trainer.step % BLOCK == 0:
                trainer._report()

        ratios, seconds = [], []
        for _ in range(BLOCK):  # warm up
            ours(), bare.step()
        for _ in range(steps // BLOCK):
            block = [(_seconds(ours), _seconds(bare.step)) for _ in range(BLOCK // 2)]
            block += [(_seconds(bare.step), _seconds(ours))[::-1] for _ in range(BLOCK // 2)]
            mine, theirs = (sum(times) for times in zip(*block, strict=True))
            ratios.append(mine / theirs)
            seconds.append(theirs / BLOCK)
        if world.rank == 0:
            print(
                f"{name:24} bare {statistics.median(seconds) * 1e3:7.1f} ms/step"
                f"   ours / bare {_spread(ratios, '.3f')}",
                flush=True,
            )
        _end(trainer)


def _measure_stall(root: Path, checkpoints: int) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.preemption import StopRequest
    from dist_train.runtime.world import init_world

    world, stop = init_world(), StopRequest()
    trainer = build_trainer(wide(1), root / "stall", world)
    examples = trainer._examples()

    def steps() -> None:
        for _ in range(STEPS_PER_CHECKPOINT):
            trainer._train_step(examples)
            trainer._agree_to_stop(stop)

    def written() -> float:
        began = time.perf_counter()
        trainer._begin_checkpoint()
        trainer.parts.checkpoints.finish()
        return time.perf_counter() - began

    steps(), written()
    waited, slower = [], []
    for _ in range(checkpoints):
        alone = _seconds(steps)
        whole = written()
        trainer.parts.reporter.timer.read()
        began = time.perf_counter()
        trainer._begin_checkpoint()
        steps()
        prolonged = time.perf_counter() - began - alone
        writer = trainer.parts.checkpoints
        committing = _seconds(writer.commit) if writer.pending else 0.0
        waited.append((trainer.parts.reporter.timer.read()[1]["save"] + committing) / whole)
        slower.append(prolonged / whole)
        trainer.parts.checkpoints.finish()
    if world.rank == 0:
        print(
            f"a checkpoint, written while the loop waits: {whole:.3f} s; asynchronously, of that,"
        )
        print(f"  the loop waits {_spread(waited, '.2%')}, taking {_spread(slower, '.1%')} longer")
    _end(trainer)


def _end(trainer: Any) -> None:
    trainer.parts.reporter.close()
    for engine in trainer.engines.values():
        engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=[*NAMES, "stall"])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--zero-stage", type=int, default=1, help="0 replicates, as DDP does")
    parser.add_argument("--checkpoints", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        recipes = [name for name in options.names if name in NAMES]
        arguments = (Path(temporary), recipes, options.steps, options.zero_stage)
        run_ranks(options.ranks, _compare, *arguments)
        if "stall" in options.names:
            run_ranks(options.ranks, _measure_stall, Path(temporary), options.checkpoints)
