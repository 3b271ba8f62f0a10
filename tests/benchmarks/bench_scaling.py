"""How a step grows with the number of processes at fixed work for each, and memory by ZeRO stage.

    python -m tests.benchmarks.bench_scaling [--steps 30]

Speed: 1, 2 and 4 processes of one thread, each with the same micro-batch, under ZeRO-1. A machine
of two cores can at best keep the time of a step up to two processes and double it at four.

Memory: the peak of all tensor bytes of one of two ranks, in bytes per parameter, beside the
formulas of dist_train/plan.py.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from dist_train.config import RunConfig
from models.rdm.objective import EdmConfig
from tests.benchmarks.bench_training import NAMES, _seconds, benchmarked
from tests.ranks import run_ranks

WARM_UP = 3


def _time_steps(root: Path, name: str, steps: int) -> None:
    from dist_train.distributed import init_world
    from dist_train.loop import Trainer

    world = init_world()
    config = replace(benchmarked(name), global_batch_size=8 * world.size, grid_seeds=0)
    trainer = Trainer(config, root / f"{name}-{world.size}", world)
    examples = trainer._examples()
    times = [_seconds(lambda: trainer._train_step(examples)) for _ in range(WARM_UP + steps)]
    step = statistics.median(times[WARM_UP:])
    if world.rank == 0:
        rate = config.global_batch_size / step
        print(
            f"{name:24} {world.size} ranks  {step * 1e3:7.1f} ms/step  {rate:6.1f} images/s",
            flush=True,
        )
    for engine in trainer.engines.values():
        engine.close()


def _wide(zero_stage: int) -> RunConfig:
    """Return a run whose weights outweigh its activations, one sample for each rank."""
    config = benchmarked("quickstart_edm16")
    assert isinstance(config.objective, EdmConfig)
    unet = replace(config.objective.unet, model_channels=128)
    return replace(
        config,
        objective=replace(config.objective, unet=unet),
        zero_stage=zero_stage,  # type: ignore[arg-type]
        global_batch_size=2,
        grid_seeds=0,
    )


def _measure_memory(root: Path) -> None:
    from dist_train.distributed import init_world
    from dist_train.flops import CostMeter, measure_step
    from dist_train.loop import Trainer
    from dist_train.plan import memory

    world = init_world()
    for zero_stage in range(4):
        config = _wide(zero_stage)
        footprint = measure_step(config.objective, 1)
        size = sum(footprint.parameters.values())
        gc.collect()
        meter = CostMeter()
        with meter:
            trainer = Trainer(config, root / f"memory-{zero_stage}", world)
            examples = trainer._examples()
            for _ in range(3):
                trainer._train_step(examples)
        planned = memory(config, footprint, zero_stage, world.size)
        if world.rank == 0:
            print(
                f"ZeRO-{zero_stage}  measured {meter.peak / size:5.1f}"
                f"  planned {planned.total / size:5.1f} bytes per parameter"
                f" ({planned.activations / size:.1f} of them activations; {size:,} parameters)",
                flush=True,
            )
        for engine in trainer.engines.values():
            engine.close()
        del trainer, examples, meter


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for chosen in NAMES:
            for ranks in (1, 2, 4):
                run_ranks(ranks, _time_steps, Path(temporary), chosen, options.steps)
        run_ranks(2, _measure_memory, Path(temporary))
