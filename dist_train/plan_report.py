"""The command that prints a plan."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dist_train.config import RunConfig
from dist_train.flops import measure_step
from dist_train.hardware import GPUS
from dist_train.plan import (
    Machine,
    best_interval,
    checkpoint_bytes,
    largest_micro_batch,
    memory,
    step_seconds,
    traffic,
    traffic_seconds,
)
from dist_train.precision import compute_dtypes, settle_precision
from dist_train.recipes import find_recipe
from models.config_io import ConfigError, override

ASSUMED_MFU = 0.35
"""Of convolutional U-Nets in bfloat16 on A100s; take a run's own `speed/mfu` where there is one."""
GPU_HOURS_PER_FAILURE = 50_700
"""Llama 3 405B: 419 stops in 54 days on 16,384 GPUs (spec/FIELD.md section 3)."""
COPY_BYTES = 10e9
"""Bytes per second from a GPU to the memory of its host: what a checkpoint stalls training for."""


def plan_command(arguments: Sequence[str]) -> int:
    """Print the plan of a recipe; returns the exit code.

    Raises:
        ConfigError: Unknown recipe, setting or GPU, or numbers that make no sense.
    """
    options = _parser().parse_intermixed_args(arguments)
    if options.gpu not in GPUS:
        raise ConfigError(f"--gpu={options.gpu} is not one of {', '.join(GPUS)}")
    for name in ("nodes", "gpus_per_node", "network_gbit", "mfu", "gpu_hours_per_failure"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be positive")
    gpu = GPUS[options.gpu]
    config = override(find_recipe(options.recipe)(), options.overrides)
    config = settle_precision(config, gpu.bfloat16)
    network = options.network_gbit / 8 * 1e9
    machine = Machine(gpu, options.nodes, options.gpus_per_node, network, options.mfu)
    for line in describe_plan(config, machine, options.gpu_hours_per_failure):
        print(line)
    return 0


def describe_plan(
    config: RunConfig, machine: Machine, gpu_hours_per_failure: float = GPU_HOURS_PER_FAILURE
) -> Iterator[str]:
    """Yield the lines of a plan."""
    ranks = machine.ranks
    micro = min(config.micro_batch_size or config.global_batch_size, config.global_batch_size)
    micro = max(min(micro, config.global_batch_size // ranks), 1)
    footprint = measure_step(config.objective, micro)
    parameters = "  ".join(f"{n} {p / 1e6:.1f}M" for n, p in footprint.parameters.items())
    computing = " and ".join(sorted(compute_dtypes(config.objective)))
    yield f"{config.recipe} on {machine.nodes} x {machine.gpus_per_node} GPUs, in {computing}"
    yield f"parameters        {parameters}"
    yield f"operations        {footprint.flops / micro / 1e9:,.1f} GFLOP per image, trained"
    yield ""
    yield f"GB per GPU at micro_batch_size={micro}"
    yield "ZeRO   weights  gradients  optimizer    EMA  activations   total  largest micro-batch"
    for stage in _stages(config):
        parts = memory(config, footprint, stage, ranks)
        fits = largest_micro_batch(config, stage, ranks, machine.gpu)
        yield (
            f"{stage:4} {parts.weights / 1e9:9.2f} {parts.gradients / 1e9:10.2f}"
            f" {parts.optimizer / 1e9:10.2f} {parts.ema / 1e9:6.2f}"
            f" {parts.activations / 1e9:12.2f} {parts.total / 1e9:7.2f} {fits or 'none':>12}"
        )
    if config.offload != "none":
        moved = "optimizer is" if config.offload == "optimizer" else "optimizer and weights are"
        yield f"offload={config.offload}: the {moved} in the host's memory instead"
    yield ""
    yield from _pace(replace(config, micro_batch_size=micro), machine, gpu_hours_per_failure)


def _pace(config: RunConfig, machine: Machine, gpu_hours: float) -> Iterator[str]:
    micro, stage = config.micro_batch_size or 1, config.zero_stage
    footprint = measure_step(config.objective, micro)
    passes = -(-config.global_batch_size // (micro * machine.ranks))
    sent = traffic(footprint, stage, machine.ranks, passes)
    computed, sending = step_seconds(config, footprint, micro, stage, machine)
    step = computed + sending
    rate = config.global_batch_size / step
    wall = config.total_images / rate
    size = checkpoint_bytes(config, footprint)
    stall = size / machine.ranks / COPY_BYTES
    interval = best_interval(stall, machine.ranks, gpu_hours)
    yield f"ZeRO-{stage}, {passes} passes of {micro} per step, {machine.mfu:.0%} MFU"
    yield f"step              {computed:.3f} s computing + {sending:.3f} s sending (not overlapped)"
    yield f"communication     {sent / 1e9:.2f} GB sent per GPU and step"
    yield f"                  {traffic_seconds(sent, machine):.3f} s at the slowest link"
    yield f"speed             {rate:,.0f} images/s, {rate / machine.ranks:,.1f} per GPU"
    yield f"to the end        {config.total_images / 1e6:,.1f}M images in {wall / 86400:,.1f} days"
    yield f"                  {wall * machine.ranks / 86400:,.0f} GPU-days"
    yield f"checkpoint        {size / 1e9:.2f} GB, stalls training for {stall:.2f} s"
    yield (
        f"best interval     {interval / 60:,.0f} min (Young/Daly, a failure per"
        f" {gpu_hours:,.0f} GPU-hours) = {interval * rate:,.0f} images"
    )


def _stages(config: RunConfig) -> range:
    objective = config.objective.build()
    return range(3 if objective.second_order or len(config.optim) > 1 else 4)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dist_train plan", description="What a recipe needs, and how long it takes."
    )
    parser.add_argument("recipe", help="name of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changed settings")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--gpu", default="a100-40g", help=", ".join(GPUS))
    parser.add_argument(
        "--network-gbit", type=float, default=800.0, help="Gbit/s of a node to the others"
    )
    parser.add_argument("--mfu", type=float, default=ASSUMED_MFU, help="assumed or measured")
    parser.add_argument(
        "--gpu-hours-per-failure",
        type=float,
        default=GPU_HOURS_PER_FAILURE,
        help=f"how reliable the cluster is (default: {GPU_HOURS_PER_FAILURE:,})",
    )
    return parser
