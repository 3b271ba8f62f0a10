"""Where the time of a step goes, measured without making the accelerator wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

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
