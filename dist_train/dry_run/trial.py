"""`train RECIPE --dry-run --steps N`: real steps, measured beside what is planned for them."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from dist_train.build import build_trainer
from dist_train.config import LoggingConfig, RunConfig
from dist_train.engine.deepspeed_config import used_stage
from dist_train.planning.flops import CostMeter
from dist_train.planning.hardware import Gpu, Machine, find_gpu
from dist_train.planning.memory import memory
from dist_train.planning.micro_batch import explained, settle_micro_batch
from dist_train.planning.plan import Plan, duration, make_plan
from dist_train.planning.roofline import FLOAT32_EFFICIENCY, HALF_EFFICIENCY, MEMORY_EFFICIENCY
from dist_train.precision import set_float32_mode
from dist_train.runtime import rank_errors
from dist_train.runtime.run_dir import validate_config
from dist_train.runtime.world import World, init_world

ASSUMED_NETWORK_BYTES = 100e9
"""Bytes per second between nodes: the default of `plan`."""


class Measured(NamedTuple):
    """A step as it was.

    Attributes:
        seconds: Median of a step; a lazy penalty's part by its share of the steps.
        bytes: Most bytes of tensors of this rank, from the first weight to the second step.
    """

    seconds: float
    bytes: float


def try_steps(config: RunConfig, run_dir: Path, steps: int, allow_changes: bool) -> int:
    """Train some steps in this process group and print the plan beside them; returns the exit code.

    Everything that is written goes to a temporary directory.

    Args:
        config: The resolved configuration.
        run_dir: Where the run is to be, which is left as it is.
        steps: How many to time, after two that are not.
        allow_changes: Whether harmless settings may differ from those of a run that is there.
    """
    world = None
    try:
        world = init_world()
        config = validate_config(run_dir, config, allow_changes, world.device)
        set_float32_mode(config.compute)
        config = settle_micro_batch(config, None, world)
        gpu = find_gpu(_device_name(world.device)) or calibrated(world.device)
        with _scratch(run_dir, world) as scratch:
            plan, measured = _measure(config, scratch, world, gpu, steps)
        if world.rank == 0:
            for line in _compare(plan, measured, world, steps):
                print(line)
    except Exception as error:
        return rank_errors.fail(explained(error, config, world), world)
    world.close()
    return 0


@contextlib.contextmanager
def _scratch(run_dir: Path, world: World) -> Iterator[Path]:
    """Yield a directory that all ranks see, until all are done: beside the run's, on many nodes."""
    if world.rank:
        yield Path(world.broadcast_object())
        world.barrier()
        return
    shared = next(path for path in run_dir.absolute().parents if path.exists())
    place = shared if world.size > _ranks_per_node(world) else None
    with TemporaryDirectory(prefix=".trial-", dir=place) as scratch:
        yield Path(world.broadcast_object(scratch))
        world.barrier()


def _ranks_per_node(world: World) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", world.size))


def _measure(
    config: RunConfig, scratch: Path, world: World, gpu: Gpu, steps: int
) -> tuple[Plan, Measured]:
    quiet = LoggingConfig(every_images=config.total_images, grid_seeds=0)
    config = replace(config, logging=quiet)
    on_gpu = world.device.type == "cuda"
    meter = CostMeter()
    with contextlib.nullcontext() if on_gpu else meter:
        trainer = build_trainer(config, scratch, world)
        numbers = [0, 0, *([0] * steps), *([1] * steps)]  # R1 comes at multiples of its interval
        times = trainer.timed_steps(numbers)
        for _ in islice(times, 2):  # the second has moments
            pass
    try:
        peak = torch.cuda.max_memory_allocated() if on_gpu else meter.peak
        lazy, usual = (statistics.median(islice(times, steps)) for _ in range(2))
    finally:
        trainer.close()
    interval = getattr(config.objective, "r1_interval", 1)
    per_node = _ranks_per_node(world)
    machine = Machine(gpu, world.size // per_node, per_node, ASSUMED_NETWORK_BYTES)
    plan = make_plan(config, trainer.batches, machine)
    return plan, Measured(usual + (lazy - usual) / interval, peak)


def _compare(plan: Plan, measured: Measured, world: World, steps: int) -> Iterator[str]:
    stage = used_stage(plan.config.sharding, world.size)
    planned = memory(plan.config, plan.footprint, stage, world.size).total
    batch, gpu = plan.batches.total, plan.machine.gpu
    device = _device_name(world.device)
    where = f"{world.size} x {device}" if world.size > 1 else device
    yield f"{plan.config.recipe}: {steps} steps of {batch} images on {where}, ZeRO-{stage}"
    yield f"{'':10} {'measured':>16} {'planned':>16}  measured / planned"
    rows = (
        ("step", measured.seconds, plan.step.seconds, duration),
        ("images/s", batch / measured.seconds, plan.images_per_second, "{:,.1f}".format),
        ("memory", measured.bytes, planned, lambda size: f"{size / 1e9:,.3f} GB"),
    )
    for name, real, estimate, shown in rows:
        yield f"{name:10} {shown(real):>16} {shown(estimate):>16} {real / estimate:19.2f}"
    yield f"planned as bound by {plan.step.describe()}"
    if find_gpu(device) is None:
        products = gpu.float32_flops * FLOAT32_EFFICIENCY / 1e9
        copies = gpu.bandwidth * MEMORY_EFFICIENCY / 1e9
        yield (
            f"for {products:,.0f} GFLOP/s in float32 and {copies:,.1f} GB/s, measured now:"
            " plans do not know this device"
        )


def calibrated(device: torch.device) -> Gpu:
    """Return a device that plans do not know, by the rates that it reaches in simple operations."""
    edge, length = 1024, 1 << 24

    def products(dtype: torch.dtype) -> float:
        x = torch.ones(edge, edge, dtype=dtype, device=device)
        return 2 * edge**3 / _fastest(lambda: x @ x, device)

    ones = torch.ones(length, device=device)
    copies = 2 * 4 * length / _fastest(lambda: ones.clone(), device)
    float32 = products(torch.float32) / FLOAT32_EFFICIENCY
    return Gpu(
        memory_bytes=float("inf"),
        peak_flops=products(torch.bfloat16) / HALF_EFFICIENCY,
        tf32_flops=float32,
        float32_flops=float32,
        bandwidth=copies / MEMORY_EFFICIENCY,
        link_bytes=copies,
    )


def _fastest(function: Callable[[], object], device: torch.device, rounds: int = 4) -> float:
    """Return the seconds of the fastest of some calls."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this processor"
