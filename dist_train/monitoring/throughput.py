"""How fast training is, and where the time of a step goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from dist_train.planning.flops import peak_flops, step_flops
from dist_train.runtime.world import World
from models.families import AnyObjective


class Throughput:
    """Images per second, model FLOPs utilisation and the time of each phase.

    Args:
        objective: What is trained: its operations are counted when first asked for.
        peak_tflops: Of the device; None takes those of known GPUs.
        global_batch_size: Images per step.
        world: The process group.

    Attributes:
        timer: Where the time of a step goes.
    """

    def __init__(
        self,
        objective: AnyObjective,
        peak_tflops: float | None,
        global_batch_size: int,
        world: World,
    ) -> None:
        self.timer = PhaseTimer(world.device)
        self._objective, self._batch, self._world = objective, global_batch_size, world
        self._peak_flops = peak_flops(peak_tflops, world.device)

    def read(self, images: int) -> dict[str, float]:
        """Return the metrics of an interval of so many images, the one that ends here."""
        seconds, phases = self.timer.read()
        steps = images // self._batch
        metrics = {
            "speed/images_per_second": images / seconds,
            "speed/data_wait_fraction": phases["data_wait"] / seconds,
            "memory/peak_gb": peak_memory(self._world.device),
            **{f"seconds/{name}": total / steps for name, total in phases.items()},
        }
        if self._peak_flops and self._world.rank == 0:  # who counts operations, and logs
            rate = step_flops(self._objective) * images / seconds / self._world.size
            metrics |= {"speed/tflops_per_rank": rate / 1e12, "speed/mfu": rate / self._peak_flops}
        return metrics

    def prepare(self) -> None:
        """Count operations before training starts, where they will be wanted."""
        if self._peak_flops and self._world.rank == 0:
            step_flops(self._objective)


PHASES = ("data_wait", "forward", "backward", "update", "ema", "save")


class PhaseTimer:
    """Adds up the seconds of named phases of the loop.

    On a GPU, phases are bracketed by events that are read when the interval is reported, so that
    kernels are timed and not their launch; `data_wait` and `save` are what the host waits.

    Args:
        device: Where the networks compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._began = time.monotonic()

    @contextlib.contextmanager
    def phase(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Time a phase; `host` measures this thread's time even where there is a GPU."""
        if host or self._device.type != "cuda":
            began = time.monotonic()
            yield
            self._seconds[name] += time.monotonic() - began
            return
        begin, end = _event(), _event()
        begin.record()
        yield
        end.record()
        self._events.append((name, begin, end))

    def read(self) -> tuple[float, dict[str, float]]:
        """Return the wall seconds since the last call, and those of each phase; start anew."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        now = time.monotonic()
        result = now - self._began, self._seconds
        self._events, self._seconds, self._began = [], dict.fromkeys(PHASES, 0.0), now
        return result


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def peak_memory(device: torch.device) -> float:
    """Return the most gigabytes that this process has held: of the GPU, or else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e9
