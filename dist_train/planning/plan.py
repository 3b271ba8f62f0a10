"""`relaywave train plan RECIPE`: what a run needs, before a GPU is asked for.

Parameters, operations and activations are counted on the recipe's own networks (flops.py); memory
follows from how DeepSpeed, with float32 weights and gradients, lays it out (`memory`; the tests
compare it with real runs). Times are estimates from named assumptions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dist_train.config import RunConfig
from dist_train.engine.deepspeed_config import MAX_BUCKET
from dist_train.planning.checks import (
    check_best_metric,
    check_networks,
    check_resolution,
    plan_batches,
)
from dist_train.planning.flops import Footprint, measure_step
from dist_train.planning.hardware import GPUS, Gpu
from dist_train.planning.roofline import roofline
from dist_train.precision import compute_dtypes, settle_precision
from dist_train.recipes import resolve_config
from models.command_line import add_settings, settings_of
from models.config_io import ConfigError, did_you_mean

FLOAT = 4
"""Bytes of a weight, a gradient, a moment or an average."""
RESERVE = 0.08
"""Fraction of a GPU's memory left to CUDA, NCCL and fragmentation."""
ASSUMED_MFU = 0.35
"""Of convolutional U-Nets in bfloat16 on A100s, for estimates without a roofline."""
GPU_HOURS_PER_FAILURE = 50_700
"""Llama 3 405B: 419 stops in 54 days on 16,384 GPUs (docs/reference/deepspeed.md#3.3)."""
COPY_BYTES = 10e9
"""Bytes per second from a GPU to the memory of its host: what a checkpoint stalls training for."""


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan`."""
    parser.description = "Estimate the memory, traffic and time that a recipe needs."
    add_settings(parser)
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes (default: 1)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="GPUs per node (default: 8)")
    parser.add_argument("--gpu", default="a100-40g", help=f"one of {', '.join(GPUS)}")
    parser.add_argument(
        "--network-gbit", type=float, default=800.0, help="Gbit/s between a node and the others"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        help="fraction of the GPU's peak that a run reached (default: estimated by roofline)",
    )
    parser.add_argument(
        "--gpu-hours-per-failure",
        type=float,
        default=GPU_HOURS_PER_FAILURE,
        help=f"mean GPU-hours between failures (default: {GPU_HOURS_PER_FAILURE:,})",
    )
    parser.set_defaults(run_command=plan_command)


def plan_command(options: argparse.Namespace) -> int:
    """Print the plan of a recipe; returns the exit code.

    Raises:
        ConfigError: Unknown recipe, setting or GPU, or numbers that make no sense.
    """
    if options.gpu not in GPUS:
        similar = did_you_mean(options.gpu, [*GPUS])
        raise ConfigError(f"--gpu={options.gpu} is not one of {', '.join(GPUS)}{similar}")
    for name in ("nodes", "gpus_per_node", "network_gbit", "mfu", "gpu_hours_per_failure"):
        if (value := getattr(options, name)) is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')}={value} must be positive, and finite")
    gpu = GPUS[options.gpu]
    config = resolve_config(*settings_of(options))
    config = settle_precision(config, gpu.bfloat16)
    _check(config, options.nodes * options.gpus_per_node)
    network = options.network_gbit / 8 * 1e9
    machine = Machine(gpu, options.nodes, options.gpus_per_node, network, options.mfu)
    for line in describe_plan(config, machine, options.gpu_hours_per_failure):
        print(line)
    return 0


def _check(config: RunConfig, ranks: int) -> None:
    """Raise ConfigError if training would reject the settings."""
    objective = config.objective.build()
    plan_batches(config.global_batch_size, config.micro_batch_size, objective.batch_multiple, ranks)
    check_resolution(config.data, objective)
    check_networks(config.optim, config.sharding, objective)
    check_best_metric(config)


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
    offload = config.sharding.offload
    if offload != "none":
        moved = "optimizer is" if offload == "optimizer" else "optimizer and weights are"
        yield f"sharding.offload={offload}: the {moved} in the host's memory instead"
    yield ""
    yield from _pace(replace(config, micro_batch_size=micro), machine, gpu_hours_per_failure)


def _pace(config: RunConfig, machine: Machine, gpu_hours: float) -> Iterator[str]:
    micro, stage = config.micro_batch_size or 1, config.sharding.zero_stage
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
    bounds = roofline(footprint.operations, machine.gpu, config.compute.tf32 is not False)
    basis = "by roofline" if machine.mfu is None else f"{machine.mfu:.0%} MFU"
    yield f"ZeRO-{stage}, {passes} passes of {micro} per step, {basis}"
    yield f"bound by          {bounds.describe()}"
    yield f"step              {computed:.3f} s computing + {sending:.3f} s sending (not overlapped)"
    yield f"communication     {sent / 1e9:.2f} GB sent per GPU and step"
    yield f"                  {traffic_seconds(sent, machine):.3f} s at the slowest link"
    yield f"speed             {rate:,.0f} images/s, {rate / machine.ranks:,.1f} per GPU"
    yield f"to the end        {config.total_images / 1e6:,.1f}M images in {duration(wall)}"
    yield f"                  {wall * machine.ranks / 86400:,.0f} GPU-days"
    yield f"checkpoint        {size / 1e9:.2f} GB, stalls training for {stall:.2f} s"
    yield (
        f"best interval     {interval / 60:,.0f} min (Young/Daly, a failure per"
        f" {gpu_hours:,.0f} GPU-hours) = {interval * rate:,.0f} images"
    )


def duration(seconds: float) -> str:
    """Return days, or hours of less than two days, or minutes of less than two hours."""
    for size, name in ((86400, "days"), (3600, "hours")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds / 60:,.1f} minutes"


def _stages(config: RunConfig) -> range:
    objective = config.objective.build()
    return range(3 if objective.second_order or len(config.optim) > 1 else 4)


@dataclass(frozen=True)
class Memory:
    """Bytes per rank, by what they are for, at the moment when most is in use."""

    weights: float
    gradients: float
    optimizer: float
    ema: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


@dataclass(frozen=True)
class Machine:
    """Where a run is to be.

    Attributes:
        gpu: Kind of GPU.
        nodes: Number of nodes.
        gpus_per_node: GPUs of each.
        network_bytes: Bytes per second between nodes, per node and direction.
        mfu: Fraction of the GPU's peak that the networks reach, measured by a run; None estimates
            their time by roofline.
    """

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    network_bytes: float
    mfu: float | None = None

    @property
    def ranks(self) -> int:
        """Number of GPUs."""
        return self.nodes * self.gpus_per_node


def memory(config: RunConfig, footprint: Footprint, zero_stage: int, ranks: int) -> Memory:
    """Return the memory of one rank.

    Gradients include the copy in which they are reduced: ZeRO-1's is of all of them, ZeRO-2's and
    3's of a bucket. ZeRO-1, and ZeRO-2 with a network that fits in one bucket, reduce when the
    activations are gone, so that only the greater of the two counts; the same is true of the
    temporary copy that ZeRO-0's Adam makes. The optimizer is the masters and
    both moments. ZeRO-3 gathers weights, up to a bucket of them. One rank shards nothing.

    Args:
        config: The run; its averages are counted.
        footprint: Of one micro-batch.
        zero_stage: 0 to 3.
        ranks: Number of ranks.
    """
    sizes = footprint.parameters
    everything, largest = FLOAT * sum(sizes.values()), FLOAT * max(sizes.values())
    bucket, part = min(largest, FLOAT * MAX_BUCKET), largest / ranks
    sampled = FLOAT * sizes[config.objective.build().sampled_network]
    averages = len(config.ema) * sampled / ranks
    activations, gradients = footprint.activation_bytes, footprint.gradient_bytes
    if zero_stage == 0 or ranks == 1:
        update = max(largest - activations, 0.0)
        return Memory(everything, gradients, 2 * everything + update, averages, activations)
    masters = 3 * everything / ranks
    if zero_stage == 1 or (zero_stage == 2 and largest <= bucket):
        at_the_end = max(gradients, 2 * largest - activations)
        return Memory(everything, at_the_end, masters, averages, activations)
    reducing = max(2 * bucket - activations, bucket) + part
    if zero_stage == 2:
        return Memory(everything, reducing, masters, averages, activations)
    small = FLOAT * footprint.small_parameters
    gathered = min(everything - small, FLOAT * MAX_BUCKET)
    weights = everything / ranks + small + gathered
    return Memory(weights, reducing + part, masters * 2 / 3, averages, activations)


def largest_micro_batch(config: RunConfig, zero_stage: int, ranks: int, gpu: Gpu) -> int:
    """Return the most samples per rank and pass that fit, a multiple of what the losses need; or 0.

    Activations grow linearly with the samples, so that two measurements tell all sizes.
    """
    unit = config.objective.build().batch_multiple
    one, two = (measure_step(config.objective, k * unit) for k in (1, 2))
    slope = two.activation_bytes - one.activation_bytes
    fixed = memory(config, one, zero_stage, ranks).total - slope
    room = gpu.memory_bytes * (1 - RESERVE) - fixed
    units = max(math.floor(room / slope), 0)
    return min(units * unit, config.global_batch_size // ranks)


def traffic(footprint: Footprint, zero_stage: int, ranks: int, accumulation_steps: int) -> float:
    """Return the bytes that a rank sends per step (docs/reference/deepspeed.md#3.2).

    ZeRO-2 reduces the gradients of each micro-batch, ZeRO-3 also gathers the weights twice for
    each, or once a step if they fit in a bucket; the other stages reduce once a step.
    """
    size = sum(footprint.parameters.values())
    everything = FLOAT * size * (ranks - 1) / ranks
    if zero_stage < 2:
        return 2 * everything
    if zero_stage == 2 or size <= MAX_BUCKET:
        return (1 + accumulation_steps) * everything
    return 3 * accumulation_steps * everything


def traffic_seconds(sent: float, machine: Machine) -> float:
    """Return the time of a ring over all ranks: that of its slowest link.

    Within a node each GPU has a link of its own; between nodes all of a node's GPUs share one.
    """
    if machine.ranks == 1:
        return 0.0
    within = sent / machine.gpu.link_bytes
    if machine.nodes == 1:
        return within
    return max(within, sent / machine.network_bytes)


def step_seconds(
    config: RunConfig, footprint: Footprint, micro: int, zero_stage: int, machine: Machine
) -> tuple[float, float]:
    """Return the seconds of a step's computation, and those of its communication."""
    passes = config.global_batch_size / (micro * machine.ranks)
    if machine.mfu is None:
        tf32 = config.compute.tf32 is not False  # null leaves PyTorch's default for convolutions
        computed = roofline(footprint.operations, machine.gpu, tf32).seconds * passes
    else:
        computed = footprint.flops * passes / (machine.gpu.peak_flops * machine.mfu)
    sent = traffic(footprint, zero_stage, machine.ranks, math.ceil(passes))
    return computed, traffic_seconds(sent, machine)


def checkpoint_bytes(config: RunConfig, footprint: Footprint) -> float:
    """Return the size of a checkpoint: weights, two moments and the averages."""
    sampled = footprint.parameters[config.objective.build().sampled_network]
    averages = len(config.ema) * sampled
    return FLOAT * (3 * sum(footprint.parameters.values()) + averages)


def best_interval(stall_seconds: float, ranks: int, gpu_hours_per_failure: float) -> float:
    """Return the Young/Daly interval of checkpoints in seconds, sqrt(2 stall x time to failure)."""
    return math.sqrt(2 * stall_seconds * gpu_hours_per_failure * 3600 / ranks)
