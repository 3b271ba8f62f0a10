"""Comparing implementations: time, in turn within one process; operations launched; bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from tests.launches import Launches

Run = Callable[[], object]


def seconds_in_turn(functions: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of functions in each round, after one that warms up and compiles.

    Their order changes from round to round, so that what ran before affects each alike.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for number in range(rounds + 1):
        for name in names:
            synchronise()
            start = time.perf_counter()
            functions[name]()
            synchronise()
            if number:
                times[name].append(time.perf_counter() - start)
        names = names[1:] + names[:1] if number % 2 else names[::-1]
    return times


def compare(what: str, functions: dict[str, Run], rounds: int) -> None:
    """Print time, launches and bytes of functions, and ratios of the first one's time to theirs."""
    times = seconds_in_turn(functions, rounds)
    plain, *_ = functions
    print(f"  {what}")
    for name, function in functions.items():
        with Launches() as counted:
            function()
        pairs = zip(times[plain], times[name], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        print(
            f"    {name:24} {statistics.median(times[name]) * 1e3:9.2f} ms, {ratio:6.2f}x,"
            f" {len(counted.names):6} operations, {counted.bytes / 2**20:10.1f} MiB",
            flush=True,
        )


def synchronise() -> None:
    """Wait for the device, if there is one to wait for."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
