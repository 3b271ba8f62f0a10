"""Time of counted operations: each takes the longest of arithmetic, memory and its launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dist_train.planning.flops import Operation
from dist_train.planning.hardware import Gpu

ARITHMETIC_EFFICIENCY = 0.6
"""Of the peak, in products and convolutions; with MEMORY_EFFICIENCY fitted to the two published
stage-2 runs (docs/scaling.md#against-published-compute)."""
MEMORY_EFFICIENCY = 0.8
"""Of the bandwidth, in operations that read and write."""
LAUNCH_SECONDS = 6e-6
"""That PyTorch needs per operation in eager mode."""


class Bounds(NamedTuple):
    """Seconds of the operations that each of these bounds."""

    arithmetic: float
    memory: float
    launches: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.arithmetic + self.memory + self.launches

    def describe(self) -> str:
        """Return the shares, e.g. `arithmetic 60 %, memory 38 %, launches 2 %`."""
        shares = sorted(self._asdict().items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {share / self.seconds:.0%}" for name, share in shares)


def roofline(operations: Mapping[Operation, float], gpu: Gpu, tf32: bool) -> Bounds:
    """Return the time of operations on a GPU, by what bounds them.

    Args:
        operations: How often each kind runs.
        gpu: The device.
        tf32: Whether float32 products may use TF32.
    """
    bounds = [0.0, 0.0, 0.0]
    for operation, count in operations.items():
        half = operation.dtype in ("bfloat16", "float16")
        peak = gpu.peak_flops if half else gpu.tf32_flops if tf32 else gpu.float32_flops
        times = (
            operation.flops / (peak * ARITHMETIC_EFFICIENCY),
            operation.bytes / (gpu.bandwidth * MEMORY_EFFICIENCY),
            LAUNCH_SECONDS,
        )
        bounds[times.index(max(times))] += count * max(times)
    return Bounds(*bounds)
