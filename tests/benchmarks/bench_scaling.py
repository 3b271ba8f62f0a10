"""How a step grows with the number of processes at fixed work for each, and memory by ZeRO stage.

    python -m tests.benchmarks.bench_scaling [speed] [memory] [traffic] [--steps 30]

Speed: 1, 2 and 4 processes of one thread, each with the same micro-batch, under ZeRO-1. A machine
of two cores can at best keep the time of a step up to two processes and double it at four.

Memory: the peak of all tensor bytes of one of two ranks, in bytes per parameter, next to the
formulas of dist_train/planning/plan.py.

Traffic: the messages of a step on two ranks, from the collectives that are really called.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from collections import Counter
from pathlib import Path

from models.config_io import override
from tests.benchmarks.bench_training import NAMES, _seconds, benchmarked, wide
from tests.ranks import run_ranks
from tests.traffic import TrafficMeter

WARM_UP = 3


def _time_steps(root: Path, name: str, steps: int) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    world = init_world()
    config = override(
        benchmarked(name), [f"global_batch_size={8 * world.size}", "logging.grid_seeds=0"]
    )
    trainer = build_trainer(config, root / f"{name}-{world.size}", world)
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


def _measure_memory(root: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.planning.flops import CostMeter, measure_step
    from dist_train.planning.memory import memory
    from dist_train.runtime.world import init_world

    world = init_world()
    for zero_stage in range(4):
        config = wide(zero_stage)
        footprint = measure_step(config.objective, 1)
        size = sum(footprint.parameters.values())
        gc.collect()
        meter = CostMeter()
        with meter:
            trainer = build_trainer(config, root / f"memory-{zero_stage}", world)
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


def _measure_traffic(root: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.planning.communication import traffic
    from dist_train.planning.flops import measure_step
    from dist_train.runtime.world import init_world

    world = init_world()
    runs = [override(benchmarked(name), ["logging.grid_seeds=0"]) for name in NAMES]
    runs += [wide(stage) for stage in range(4)]
    for number, config in enumerate(runs):
        trainer = build_trainer(config, root / f"traffic-{number}", world)
        examples = trainer._examples()
        trainer._train_step(examples)
        with TrafficMeter(world.size) as meter:
            trainer._train_step(examples)
        footprint = measure_step(config.objective, trainer.batches.micro)
        size = sum(footprint.parameters.values())
        stage = config.sharding.zero_stage
        passes = trainer.batches.accumulation_steps
        planned = traffic(config.sharding, footprint.parameters.values(), world.size, passes)
        if world.rank == 0:
            kinds = Counter(name.strip("_") for name, _ in meter.messages)
            print(
                f"{config.recipe:24} {size / 1e6:5.1f}M  ZeRO-{stage}"
                f"  sent {meter.sent / size:5.2f}  planned {planned / size:5.2f} bytes/parameter"
                f"  in {', '.join(f'{count} {kind}' for kind, count in kinds.items())}",
                flush=True,
            )
        for engine in trainer.engines.values():
            engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["speed", "memory", "traffic"])
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if "speed" in options.parts:
            for chosen in NAMES:
                for ranks in (1, 2, 4):
                    run_ranks(ranks, _time_steps, Path(temporary), chosen, options.steps)
        if "memory" in options.parts:
            run_ranks(2, _measure_memory, Path(temporary))
        if "traffic" in options.parts:
            run_ranks(2, _measure_traffic, Path(temporary))
