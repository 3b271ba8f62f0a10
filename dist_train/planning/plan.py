"""`relaywave train plan RECIPE`: what a run needs, before a GPU is asked for.

Parameters, operations and activations are counted on the recipe's own networks (flops.py). Times
are estimates from named assumptions: roofline.py, communication.py and step_time.py.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import NamedTuple

from dist_train.config import RunConfig
from dist_train.engine.deepspeed_config import used_stage
from dist_train.planning.checks import Batches
from dist_train.planning.communication import traffic
from dist_train.planning.flops import Footprint, measure_step
from dist_train.planning.hardware import GPUS, NETWORK_GBIT, Machine
from dist_train.planning.memory import checkpoint_bytes, host_bytes, largest_micro_batch, memory
from dist_train.planning.published import SAMPLING, SAMPLING_GPU, TRAINING
from dist_train.planning.roofline import roofline
from dist_train.planning.sampling import measure_sampling, usual_batch
from dist_train.planning.step_time import StepTime, data_needs, step_time
from dist_train.precision import compute_dtypes
from models.command_line import add_settings
from models.config_io import ConfigError, did_you_mean

GPU_HOURS_PER_FAILURE = 50_700
"""Llama 3 405B: 419 stops in 54 days on 16,384 GPUs (docs/reference/deepspeed.md#3.3)."""
COPY_BYTES = 10e9
"""Bytes per second from a GPU to the memory of its host: what a checkpoint stalls training for."""


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan`."""
    parser.description = "Estimate the memory, traffic and time that a recipe needs."
    add_settings(parser)
    parser.add_argument("--nodes", type=int, help="number of nodes (default: sharding.nodes)")
    parser.add_argument(
        "--gpus-per-node", type=int, help="GPUs per node (default: sharding.gpus_per_node)"
    )
    parser.add_argument("--gpu", default="a100-40g", help=f"one of {', '.join(GPUS)}")
    parser.add_argument(
        "--network-gbit",
        type=float,
        default=NETWORK_GBIT,
        help="Gbit/s between a node and the others",
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


def planned_machine(options: argparse.Namespace, config: RunConfig) -> Machine:
    """Return the machine that a command line describes.

    Raises:
        ConfigError: An unknown GPU, or a number that makes no sense.
    """
    if options.gpu not in GPUS:
        similar = did_you_mean(options.gpu, [*GPUS])
        raise ConfigError(f"--gpu={options.gpu} is not one of {', '.join(GPUS)}{similar}")
    for name in ("nodes", "gpus_per_node", "network_gbit", "mfu", "gpu_hours_per_failure"):
        if (value := getattr(options, name)) is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')}={value} must be positive, and finite")
    if options.mfu is not None and options.mfu > 1:
        raise ConfigError(f"--mfu={options.mfu} is a fraction of the peak; it must be at most 1")
    return Machine(
        gpu=GPUS[options.gpu],
        nodes=options.nodes or config.sharding.nodes,
        gpus_per_node=options.gpus_per_node or config.sharding.gpus_per_node,
        network_bytes=options.network_gbit / 8 * 1e9,
        mfu=options.mfu,
    )


class Plan(NamedTuple):
    """A run on a machine, counted."""

    config: RunConfig
    batches: Batches
    machine: Machine
    footprint: Footprint
    step: StepTime

    @property
    def images_per_second(self) -> float:
        """Of all ranks."""
        return self.batches.total / self.step.seconds

    @property
    def wall_seconds(self) -> float:
        """Of the whole run."""
        return self.config.total_images / self.images_per_second


def make_plan(config: RunConfig, batches: Batches, machine: Machine) -> Plan:
    """Count a run, its precision settled, and estimate its step."""
    footprint = measure_step(config.objective, batches.micro)
    step = step_time(config, footprint, batches.micro, machine)
    return Plan(config, batches, machine, footprint, step)


def describe_plan(
    plan: Plan, gpu_hours_per_failure: float = GPU_HOURS_PER_FAILURE
) -> Iterator[str]:
    """Yield the lines of a plan."""
    config, batches, machine, footprint, _ = plan
    parameters = "  ".join(f"{n} {p / 1e6:.1f}M" for n, p in footprint.parameters.items())
    computing = " and ".join(sorted(compute_dtypes(config.objective)))
    yield f"{config.recipe} on {machine.nodes} x {machine.gpus_per_node} GPUs, in {computing}"
    yield f"parameters        {parameters}"
    yield (
        f"operations        {footprint.flops / batches.micro / 1e9:,.1f} GFLOP per image, trained,"
        f" in {footprint.launches():,.0f} launches per pass"
    )
    yield ""
    yield from _memory_lines(plan)
    yield ""
    yield from _time_lines(plan)
    yield from _failure_lines(plan, gpu_hours_per_failure)
    yield from _sampling_lines(plan)


def _memory_lines(plan: Plan) -> Iterator[str]:
    config, machine = plan.config, plan.machine
    yield f"GB per GPU at micro_batch_size={plan.batches.micro}"
    yield "ZeRO   weights  gradients  optimizer    EMA  activations   total  largest micro-batch"
    for stage in _stages(config):
        parts = memory(config, plan.footprint, stage, machine.ranks)
        fits = largest_micro_batch(config, stage, machine.ranks, machine.gpu.memory_bytes)
        yield (
            f"{stage:4} {parts.weights / 1e9:9.2f} {parts.gradients / 1e9:10.2f}"
            f" {parts.optimizer / 1e9:10.2f} {parts.ema / 1e9:6.2f}"
            f" {parts.activations / 1e9:12.2f} {parts.total / 1e9:7.2f} {fits or 'none':>12}"
        )
    offload = config.sharding.offload
    if offload != "none":
        moved = "optimizer is" if offload == "optimizer" else "optimizer and weights are"
        yield f"sharding.offload={offload}: the {moved} in the host's memory instead"
    host = host_bytes(config, plan.footprint, machine)
    yield f"memory of a host  {host / 1e9:,.0f} GB for its ranks, besides cached data"


def _time_lines(plan: Plan) -> Iterator[str]:
    config, batches, machine, footprint, step = plan
    passes, rate = batches.accumulation_steps, plan.images_per_second
    sent = traffic(config.sharding, footprint.parameters.values(), machine.ranks, passes)
    basis = "by roofline" if machine.mfu is None else f"{machine.mfu:.0%} MFU"
    stage = used_stage(config.sharding, machine.ranks)
    yield f"ZeRO-{stage}, {passes} passes of {batches.micro} per step, {basis}"
    waiting = f"{step.network:.3f} s wait for the network"
    yield f"step              {step.seconds:.3f} s, of which {waiting}"
    yield f"bound by          {step.describe()}"
    yield f"communication     {sent / 1e9:.2f} GB sent per GPU and step"
    data = data_needs(config.data)
    fed = f"{1 / data.seconds:,.0f} a GPU decoded" if data.seconds else "generated"
    of_node = rate / machine.nodes
    yield (
        f"data              {rate / machine.ranks:,.1f} images/s per GPU needed, {fed};"
        f" {of_node * data.bytes / 1e6:,.1f} MB/s per node read"
    )
    yield f"speed             {rate:,.0f} images/s"
    days = plan.wall_seconds * machine.ranks / 86400
    images = f"{config.total_images:,} images"
    yield f"to the end        {images} in {duration(plan.wall_seconds)}, {gpu_time(days)}"
    if published := TRAINING.get(config.recipe):
        took = f"{duration(published.seconds)} on {published.ranks} {published.gpu}"
        yield f"published         {took} (docs/scaling.md#against-published-figures)"


def _failure_lines(plan: Plan, gpu_hours: float) -> Iterator[str]:
    ranks = plan.machine.ranks
    size = checkpoint_bytes(plan.config, plan.footprint)
    stall = size / ranks / COPY_BYTES
    interval = best_interval(stall, ranks, gpu_hours)
    yield f"checkpoint        {size / 1e9:.2f} GB, stalls training for {stall:.2f} s"
    yield (
        f"best interval     {interval / 60:,.0f} min (Young/Daly, a failure per"
        f" {gpu_hours:,.0f} GPU-hours) = {interval * plan.images_per_second:,.0f} images"
    )


def _sampling_lines(plan: Plan) -> Iterator[str]:
    config, batch = plan.config, usual_batch(plan.config.data.resolution)
    cost = measure_sampling(config.objective, batch)
    bounds = roofline(cost.operations, plan.machine.gpu, config.compute.tf32)
    yield (
        f"sampling          {duration(bounds.seconds)} per batch of {batch} on a GPU,"
        f" {cost.evaluations} evaluations of the network, {StepTime(*bounds).describe()}"
    )
    if published := SAMPLING.get(config.recipe):
        yield f"published         {duration(published)} on {SAMPLING_GPU}"


def duration(seconds: float) -> str:
    """Return days, or hours of less than two days, and so on, down to ms."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    if seconds >= 2:
        return f"{seconds:,.1f} seconds"
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def gpu_time(days: float) -> str:
    """Return GPU-days, or GPU-hours of less than two days."""
    return f"{days:,.0f} GPU-days" if days >= 2 else f"{24 * days:.3g} GPU-hours"


def _stages(config: RunConfig) -> range:
    objective = config.objective.build()
    return range(3 if objective.second_order or len(config.optim) > 1 else 4)


def best_interval(stall_seconds: float, ranks: int, gpu_hours_per_failure: float) -> float:
    """Return the Young/Daly interval of checkpoints in seconds, sqrt(2 stall x time to failure)."""
    return math.sqrt(2 * stall_seconds * gpu_hours_per_failure * 3600 / ranks)
