"""The device under test: clocks and memory counters, the processor standing in for a GPU."""

from __future__ import annotations

import contextlib
import itertools
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from dist_train.planning.flops import CostMeter


class Device(Protocol):
    """What tasks need of a device."""

    torch_device: torch.device
    debug: bool
    """Whether recipes of debug size stand in for those of full size."""

    def describe(self) -> dict[str, Any]:
        """Return what identifies the machine, as JSON."""

    def seconds(self, function: Callable[[], object], rounds: int, warm_up: int) -> list[float]:
        """Return the seconds of each of some calls, after others that are not timed."""

    def peak_bytes(self, function: Callable[[], object]) -> int:
        """Return the most bytes of tensors that were in use while a function ran."""

    @property
    def memory_bytes(self) -> int:
        """All memory of the device."""


class Processor:
    """The CPU, on which the logic of the tasks is tested."""

    torch_device = torch.device("cpu")

    def __init__(self, debug: bool = True) -> None:
        self.debug = debug
        if debug:
            torch.set_num_threads(1)  # several, on a busy machine, wait for each other

    def describe(self) -> dict[str, Any]:
        return {"card": f"none ({platform.machine()} processor)", "torch": torch.__version__}

    def seconds(self, function: Callable[[], object], rounds: int, warm_up: int) -> list[float]:
        times = []
        for number in range(warm_up + rounds):
            began = time.perf_counter()
            function()
            if number >= warm_up:
                times.append(time.perf_counter() - began)
        return times

    def peak_bytes(self, function: Callable[[], object]) -> int:
        meter = CostMeter()
        with meter:
            function()
        return meter.peak

    @property
    def memory_bytes(self) -> int:
        return 16 * 2**30


class Gpu:
    """A CUDA device.

    Args:
        debug: Whether recipes of debug size stand in for those of full size.
        cuda: `torch.cuda`, or what stands in for it in a test.
    """

    torch_device = torch.device("cuda")

    def __init__(self, debug: bool = False, cuda: Any = torch.cuda) -> None:
        self.debug, self._cuda = debug, cuda

    def describe(self) -> dict[str, Any]:
        properties = self._cuda.get_device_properties(0)
        return {
            "card": self._cuda.get_device_name(0),
            "memory": properties.total_memory,
            "capability": ".".join(map(str, self._cuda.get_device_capability(0))),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        }

    def seconds(self, function: Callable[[], object], rounds: int, warm_up: int) -> list[float]:
        for _ in range(warm_up):
            function()
        marks = [self._cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        self._cuda.synchronize()
        marks[0].record()
        for mark in marks[1:]:
            function()
            mark.record()
        self._cuda.synchronize()
        pairs = itertools.pairwise(marks)
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]

    def peak_bytes(self, function: Callable[[], object]) -> int:
        self._cuda.empty_cache()
        before = self._cuda.memory_allocated()
        self._cuda.reset_peak_memory_stats()
        function()
        self._cuda.synchronize()
        peak: int = self._cuda.max_memory_allocated()
        return peak - before

    @property
    def memory_bytes(self) -> int:
        total: int = self._cuda.get_device_properties(0).total_memory
        return total


@contextlib.contextmanager
def float32_mode(tf32: bool) -> Iterator[None]:
    """Let float32 products and convolutions of GPUs use TF32, or not."""
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before
