"""How many images go through a network at once: as many as the memory of its device takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TypeVar

import torch

from dist_train.runtime.world import World
from models.command_line import say

T = TypeVar("T")

AUTO = "auto"
"""The batch size of command lines that is chosen by memory."""
DEFAULT = 64
"""Images in a batch; on CPUs, whose caches decide, `auto` too."""
PROBE = 8
"""Images of which the memory that one takes is measured."""
MOST = 512
"""Images in a batch that `auto` chooses at most: larger ones are no faster."""
SHARE = 0.7
"""Of the free memory that a batch may take: allocators round, kernels need workspaces."""


class Passes:
    """Takes batches through a network, in parts where its device has not the memory for all.

    The parts of a batch give what it gives, but for the last bits, by which kernels round.

    Args:
        what: What computes, for the message.

    Attributes:
        size: Images at once since memory ran out; None if it never did.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.size: int | None = None

    def run(self, compute: Callable[[slice], T], count: int, most: int | None = None) -> list[T]:
        """Return what is computed of the slices that cut range(count).

        Args:
            compute: Called with each slice.
            count: Images of the batch.
            most: Images at once, if not all.

        Raises:
            torch.OutOfMemoryError: There is no memory for a single image.
        """
        while True:
            size = max(min(self.size or count, most or count, count), 1)
            starts = range(0, count, size)
            try:
                return [compute(slice(start, min(start + size, count))) for start in starts]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            self.size = (size + 1) // 2  # only here are the tensors of the failed pass gone
            torch.cuda.empty_cache()
            say(
                f"{self._what} has no memory for {size} images at once: from now on {self.size}",
                "warning",
            )


def least_sizes(passes: Mapping[str, Sequence[Passes]], world: World) -> dict[str, int]:
    """Return by name how many images went at once on the rank with least, where memory ran out."""
    own = [(name, p.size) for name, several in passes.items() for p in several if p.size]
    return dict(sorted(chain(*world.gather_objects(own)), reverse=True))  # the least comes last


def fitting_size(run: Callable[[int], object], device: torch.device) -> int:
    """Return how many images a device takes at once: a power of two, from its free memory.

    Args:
        run: Takes so many images through all networks.
        device: Where they are.
    """
    if device.type != "cuda":
        return DEFAULT
    run(1)  # loads weights, which stay
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run(PROBE)
    each = max(torch.cuda.max_memory_allocated(device) - before, 1) / PROBE
    torch.cuda.empty_cache()
    fitting = int(SHARE * torch.cuda.mem_get_info(device)[0] / each)
    return min(1 << max(fitting, 1).bit_length() - 1, MOST)
