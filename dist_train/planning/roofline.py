"""Time of counted operations: each takes the longest of arithmetic, memory and its launch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dist_train.planning.flops import Operation, Operations
from dist_train.planning.hardware import Gpu

# Fitted once (docs/scaling.md#against-published-figures), all in eager mode: HALF and MEMORY to the
# two published stage-2 runs, TF32 to the published sampling times; FLOAT32 is taken like HALF.
HALF_EFFICIENCY = 0.6
"""Of the peak of bfloat16 and float16, in products and convolutions."""
TF32_EFFICIENCY = 0.25
"""Of the peak of TF32."""
FLOAT32_EFFICIENCY = 0.6
"""Of the peak of float32 without tensor cores."""
MEMORY_EFFICIENCY = 0.8
"""Of the bandwidth, in operations that read and write."""
LAUNCH_SECONDS = 6e-6
"""That PyTorch needs per operation."""


class Bounds(NamedTuple):
    """Seconds of the operations that each of these bounds."""

    arithmetic: float = 0.0
    memory: float = 0.0
    launches: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self)

    def times(self, factor: float) -> Bounds:
        """Return that of so many repetitions."""
        return Bounds(*(factor * seconds for seconds in self))


def total(parts: Iterable[Bounds]) -> Bounds:
    """Return the sums."""
    return Bounds(*map(sum, zip(*parts, strict=True)))


def roofline(operations: Operations, gpu: Gpu, tf32: bool | None) -> Bounds:
    """Return the time of operations on a GPU, by what bounds them.

    Args:
        operations: How often each kind runs.
        gpu: The device.
        tf32: Whether float32 products may use TF32; None: convolutions only, PyTorch's default.
    """
    bounds = [0.0, 0.0, 0.0]
    for operation, count in operations.items():
        times = (
            operation.flops / _rate(operation, gpu, tf32),
            operation.bytes / (gpu.bandwidth * MEMORY_EFFICIENCY),
            LAUNCH_SECONDS,
        )
        bounds[times.index(max(times))] += count * max(times)
    return Bounds(*bounds)


def _rate(operation: Operation, gpu: Gpu, tf32: bool | None) -> float:
    """Return the operations per second that products of this kind reach."""
    if operation.dtype in ("bfloat16", "float16"):
        return gpu.peak_flops * HALF_EFFICIENCY
    allowed = operation.is_convolution if tf32 is None else tf32
    if operation.dtype == "float32" and allowed and gpu.tf32_flops > gpu.float32_flops:
        return max(gpu.tf32_flops * TF32_EFFICIENCY, gpu.float32_flops * FLOAT32_EFFICIENCY)
    return gpu.float32_flops * FLOAT32_EFFICIENCY
