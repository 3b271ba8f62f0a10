"""Part c: speed, memory and MFU of the real step; traces; the official formulations beside ours."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dist_train.build import build_trainer
from dist_train.config import RunConfig
from dist_train.planning.flops import measure_step
from dist_train.planning.hardware import Machine, find_gpu
from dist_train.planning.step_time import step_time
from dist_train.precision import compute_dtypes, set_float32_mode
from dist_train.runtime.world import World
from models.objective import Example
from models.rdm.config import RelayConfig
from models.rdm.sampler import NetworkDenoiser
from models.wavediff.config import WaveDiffConfig
from tests.benchmarks import rdm_reference
from tests.benchmarks.bench_wavediff import Pair, PlainPair
from tests.benchmarks.timing import seconds_in_turn
from tests.gpu.cases import computing_in, families, one_gpu_run, recipe_names
from tests.gpu.device import Device
from tests.gpu.ledger import Outcome, Task

VARIANTS = {
    "eager": {"compile": False, "channels_last": False},
    "channels_last": {"compile": False, "channels_last": True},
    "compiled": {"compile": True, "channels_last": False},
    "compiled_channels_last": {"compile": True, "channels_last": True},
}
ROUNDS, WARM_UP = 8, 3
PLAN_TOLERANCE = 0.15
"""By how much a planned step may be off."""


def tasks(debug: bool) -> list[Task]:
    names = recipe_names(debug)
    speeds = [
        Task("c", f"{variant}/{name}", partial(measure_speed, name, variant))
        for variant in (["eager", "channels_last"] if debug else VARIANTS)
        for name in names
    ]
    telling = families(names)
    traces = [Task("c", f"trace/{name}", partial(trace, name)) for name in telling]
    official = [Task("c", f"official/{name}", partial(compare, name)) for name in telling]
    first = len(telling)
    return [*speeds[:first], *traces, *official, *speeds[first:]]


def measure_speed(name: str, variant: str, device: Device, work: Path) -> Outcome:
    """Time steps of the real trainer, R1 by its share of them, and watch their memory."""
    config = one_gpu_run(name, **VARIANTS[variant])
    interval = getattr(config.objective, "r1_interval", 1)
    rounds, warm_up = (2, 1) if device.debug else (ROUNDS, WARM_UP)
    outcome = Outcome({"micro_batch_size": config.micro_batch_size})
    with stepping(config, device, work) as (trainer, step):
        kinds = {}
        peak = device.peak_bytes(lambda: step(0))
        for kind, number in (("every", 1), ("lazy", 0)):
            run = partial(step, number)
            if kind == "every" or interval > 1:
                kinds[kind] = statistics.median(device.seconds(run, rounds, warm_up))
    usual, lazy = kinds["every"], kinds.get("lazy", kinds["every"])
    seconds = usual + (lazy - usual) / interval
    micro = config.micro_batch_size or 1
    footprint = measure_step(config.objective, micro)
    flops = footprint.flops
    gpu = find_gpu(str(device.describe()["card"]))
    outcome.numbers |= {
        "seconds": seconds,
        "seconds_with_r1": kinds.get("lazy"),
        "images_per_second": config.global_batch_size / seconds,
        "peak_bytes_of_a_step": peak,
        "flops": flops,
        "computing_in": sorted(compute_dtypes(config.objective)),
        "mfu": None if gpu is None else flops / seconds / gpu.peak_flops,
    }
    if gpu is not None:
        planned = step_time(config, footprint, micro, Machine(gpu, 1, 1, 1.0)).seconds
        outcome.numbers["planned_seconds"] = planned
        if variant == "eager":  # which is what plans are for
            outcome.bound("plan_off_by", abs(seconds / planned - 1), PLAN_TOLERANCE)
    del trainer
    return outcome


@contextlib.contextmanager
def stepping(config: RunConfig, device: Device, work: Path) -> Iterator[tuple[Any, Any]]:
    """Yield a trainer, and a function that does its step number N (R1 comes at multiples)."""
    work.mkdir(parents=True, exist_ok=True)
    set_float32_mode(config.compute)
    trainer = build_trainer(config, work, World(0, 0, 1, device.torch_device))
    examples = trainer._examples()

    def step(number: int) -> None:
        trainer.step = number
        trainer._train_step(examples)

    try:
        yield trainer, step
    finally:
        trainer.parts.examples.close()
        for engine in trainer.engines.values():
            engine.close()
        trainer.parts.reporter.close()


def trace(name: str, device: Device, work: Path) -> Outcome:
    """Trace one step, after others that warm it up, and name the operations that take longest."""
    kinds = [ProfilerActivity.CPU]
    if device.torch_device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    with stepping(one_gpu_run(name), device, work / name) as (_, step):
        for _ in range(2):
            step(1)
        with profile(activities=kinds) as traced:
            step(1)
    raw = work / f"trace_{name}.json"
    traced.export_chrome_trace(str(raw))
    with raw.open("rb") as source, gzip.open(f"{raw}.gz", "wb") as target:
        shutil.copyfileobj(source, target)
    raw.unlink()
    total = "self_device_time_total" if len(kinds) > 1 else "self_cpu_time_total"
    events = sorted(traced.key_averages(), key=lambda e: -getattr(e, total))
    longest = {event.key[:80]: [getattr(event, total) / 1e3, event.count] for event in events[:12]}
    return Outcome({"ms_and_calls": longest, "calls": sum(event.count for event in events)})


def compare(name: str, device: Device, work: Path) -> Outcome:
    """Time a step in the official formulation and in ours, in turn in one process."""
    del work
    run = one_gpu_run(name)
    set_float32_mode(run.compute)
    rounds = 2 if device.debug else 5
    with torch.device(device.torch_device):
        functions = _formulations(run, device)
        if not functions:
            return Outcome({"note": "no part of this step has another formulation"})
        times = seconds_in_turn(functions, rounds)
    medians = {which: statistics.median(values) for which, values in times.items()}
    pairs = zip(times["official"], times["ours"], strict=True)
    return Outcome({**medians, "ratio": statistics.median(a / b for a, b in pairs)})


def _formulations(run: RunConfig, device: Device) -> dict[str, Any]:
    config, batch = run.objective, run.global_batch_size
    if isinstance(config, WaveDiffConfig):
        config = computing_in(run, "float32")  # as published, and as the plain filters are
        plain, ours = PlainPair(config.build(), batch), Pair(config.build(), batch)
        return {"official": lambda: plain.iterate(1), "ours": lambda: ours.iterate(1)}
    if not isinstance(config, RelayConfig):
        return {}
    process, objective = config.process, config.build()
    network = objective.build_networks()[objective.sampled_network]
    edge = objective.resolution
    images = torch.randint(0, 256, (batch, 3, edge, edge), dtype=torch.uint8)
    x = objective.prepare(images)
    labels = torch.zeros(batch, dtype=torch.int64) if config.label_dim else None
    example = Example(x, labels, tuple(range(batch)), 0)
    denoise = NetworkDenoiser(network, process.sigma_data)

    def official() -> None:
        noisy, weight = rdm_reference.corrupt(x, process)
        denoised = denoise(noisy, torch.ones(batch), labels)
        (weight * (denoised - x).square()).mean().backward()

    def ours() -> None:
        objective.losses()["denoiser"]({"denoiser": network}, example, 1)[0].backward()

    return {"official": official, "ours": ours}
