"""Bytes of a run: on each GPU by ZeRO stage, on the hosts, and in a checkpoint.

With float32 weights and gradients, as DeepSpeed lays them out; the tests compare it with real runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dist_train.config import RunConfig
from dist_train.engine.deepspeed_config import MAX_BUCKET
from dist_train.planning.flops import Footprint, measure_step
from dist_train.planning.hardware import Machine

FLOAT = 4
"""Bytes of a weight, a gradient, a moment or an average."""
RESERVE = 0.08
"""Fraction of a GPU's memory left to CUDA, NCCL and fragmentation."""
MEASURED = (8, 16)
"""Groups of samples whose activations tell those of all sizes."""
PROCESS_BYTES = 4e9
"""Memory of its host that a rank takes: PyTorch, CUDA, buffers of the data pipeline."""


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


def largest_micro_batch(config: RunConfig, zero_stage: int, ranks: int, memory_bytes: float) -> int:
    """Return the most samples per rank and pass that fit, a multiple of what the losses need; or 0.

    Activations grow linearly with the samples, so that two measurements tell all sizes; with few
    samples they grow less, as other tensors are the most there.
    """
    unit = config.objective.build().batch_multiple
    few, many = (measure_step(config.objective, k * unit) for k in MEASURED)
    slope = (many.activation_bytes - few.activation_bytes) / (MEASURED[1] - MEASURED[0])
    fixed = memory(config, few, zero_stage, ranks).total - MEASURED[0] * slope
    room = memory_bytes * (1 - RESERVE) - fixed
    units = max(math.floor(room / slope), 0)
    return min(units * unit, config.global_batch_size // ranks)


def checkpoint_bytes(config: RunConfig, footprint: Footprint) -> float:
    """Return the size of a checkpoint: weights, two moments and the averages."""
    sampled = footprint.parameters[config.objective.build().sampled_network]
    averages = len(config.ema) * sampled
    return FLOAT * (3 * sum(footprint.parameters.values()) + averages)


def host_bytes(config: RunConfig, footprint: Footprint, machine: Machine) -> float:
    """Return the memory that a node needs for its ranks; the page cache of data comes on top.

    Each rank has its process, a copy of its part of a checkpoint while that is written, and what
    `sharding.offload` moves there: the optimizer's masters and moments, gradients to update them
    with, and weights.
    """
    size = FLOAT * sum(footprint.parameters.values())
    moved = {"none": 0, "optimizer": 4, "parameters": 5}[config.sharding.offload] * size
    parts = (checkpoint_bytes(config, footprint) + moved) / machine.ranks
    return machine.gpus_per_node * (PROCESS_BYTES + parts)
