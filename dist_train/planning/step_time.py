"""Seconds of a training step, by what bounds it: arithmetic, memory, launches, network or data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

from data_pipelines.pipeline import DataConfig
from dist_train.config import RunConfig
from dist_train.engine.deepspeed_config import used_stage
from dist_train.planning.communication import messages
from dist_train.planning.flops import Footprint
from dist_train.planning.hardware import Machine
from dist_train.planning.memory import FLOAT
from dist_train.planning.roofline import MEMORY_EFFICIENCY, Bounds, roofline, total

DECODE_SECONDS, DECODE_SECONDS_PER_PIXEL = 0.34e-3, 16e-9
"""Of one core for a packed image: DALI with JPEG of 64 and of 256 pixels (docs/performance.md)."""
JPEG_BYTES_PER_PIXEL = 0.27
"""ImageNet at 256 pixels and quality 90 (docs/reference/deepspeed.md#3.5)."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step that each of these accounts for; they add up.

    Attributes:
        arithmetic: Products and convolutions at the peak of their dtype.
        memory: Reading and writing, the optimizer's and the averages' included.
        launches: Operations too small for anything else to count.
        network: What is sent while nothing is computed.
        data: Decoding images for longer than all that.
    """

    arithmetic: float
    memory: float
    launches: float
    network: float = 0.0
    data: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.computing + self.network + self.data

    @property
    def computing(self) -> float:
        """What a single rank without data to wait for would take."""
        return self.arithmetic + self.memory + self.launches

    @property
    def bound(self) -> str:
        """Name of the largest share."""
        shares: dict[str, float] = asdict(self)
        return max(shares, key=shares.__getitem__)

    def describe(self) -> str:
        """Return the shares above half a per cent: `arithmetic 60%, memory 38%, launches 2%`."""
        shares = sorted(asdict(self).items(), key=lambda item: -item[1])
        return ", ".join(f"{n} {s / self.seconds:.0%}" for n, s in shares if s > self.seconds / 200)


def step_time(config: RunConfig, footprint: Footprint, micro: int, machine: Machine) -> StepTime:
    """Estimate a step.

    Args:
        config: The run.
        footprint: Of one micro-batch.
        micro: Its samples.
        machine: Where it runs.
    """
    passes = -(-config.global_batch_size // (micro * machine.ranks))
    bounds = {
        part: roofline(operations, machine.gpu, config.compute.tf32)
        for part, operations in footprint.operations.items()
    }
    if machine.mfu is not None:
        bounds = _at_mfu(bounds, footprint.flops / (machine.gpu.peak_flops * machine.mfu))
    computed = total(bounds.values()).times(passes)
    updating = update_bytes(config, footprint, machine.ranks, passes) / _bandwidth(machine)
    network = sum(
        messages(config.sharding, size, machine.ranks, passes).exposed(
            passes, bounds[name, "forward"].seconds, bounds[name, "backward"].seconds, machine
        )
        for name, size in footprint.parameters.items()
    )
    step = StepTime(computed.arithmetic, computed.memory + updating, computed.launches, network)
    waiting = data_needs(config.data).seconds * passes * micro - step.seconds
    return StepTime(**asdict(step) | {"data": max(waiting, 0.0)})


def _bandwidth(machine: Machine) -> float:
    return machine.gpu.bandwidth * MEMORY_EFFICIENCY


def _at_mfu(bounds: dict[tuple[str, str], Bounds], seconds: float) -> dict[tuple[str, str], Bounds]:
    """Return bounds that take so many seconds in all, which a measured MFU says is arithmetic."""
    whole = total(bounds.values()).seconds
    return {part: Bounds(arithmetic=b.seconds * seconds / whole) for part, b in bounds.items()}


def update_bytes(config: RunConfig, footprint: Footprint, ranks: int, passes: int) -> float:
    """Return what a rank reads and writes for an update besides the losses' passes.

    Adam reads and writes weights and two moments and reads gradients, the averages are read and
    written; sharded stages do a rank's part of both. Every micro-batch but the first adds its
    gradients to what is there. Several ranks copy all gradients to where they are reduced.
    """
    size = FLOAT * sum(footprint.parameters.values())
    sampled = FLOAT * footprint.parameters[config.objective.build().sampled_network]
    part = ranks if used_stage(config.sharding, ranks) else 1
    adam, averages = 7 * size / part, 3 * len(config.ema) * sampled / ranks
    copies = 2 * size if ranks > 1 else 0
    return adam + averages + copies + 3 * size * (passes - 1)


class DataNeeds(NamedTuple):
    """What an image costs before it is on the GPU.

    Attributes:
        seconds: Of decoding, by all threads of a rank.
        bytes: Read from storage.
    """

    seconds: float
    bytes: float


def data_needs(data: DataConfig) -> DataNeeds:
    """Return the cost of a packed JPEG of the run's resolution; that of generated images is 0."""
    if data.backend == "synthetic":
        return DataNeeds(0.0, 0.0)
    pixels = data.resolution**2
    decoding = DECODE_SECONDS + DECODE_SECONDS_PER_PIXEL * pixels
    return DataNeeds(decoding / data.workers, JPEG_BYTES_PER_PIXEL * pixels)
