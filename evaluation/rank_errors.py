"""Failures of commands that ranks share: one line that says what is wrong, printed once."""

from __future__ import annotations

import sys
import time

from torch import distributed as dist

from dist_train.runtime.watchdog import EXIT_LOST
from dist_train.runtime.world import World
from evaluation.features import short_hash

EXIT_REJECTED = 2
PATIENCE = 1.0
"""Seconds that ranks wait to hear that another one has reported the same."""


def reject(error: Exception, world: World | None) -> int:
    """Print what was wrong, once for all ranks that fail with it; returns the exit code."""
    if world is None or world.store is None:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REJECTED
    key = f"rejected/{short_hash(str(error))}"
    others = [f"{key}/{rank}" for rank in range(1, world.size)]
    if world.rank == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _report(world, [key, "rejected"])
        _is_reported(world, others)  # the store ends with this process
    else:
        _report(world, [f"{key}/{world.rank}", "rejected"])
        if not _is_reported(world, [key]):
            print(f"error: rank {world.rank}: {error}", file=sys.stderr, flush=True)
    return EXIT_REJECTED


def is_lost_contact(error: RuntimeError) -> bool:
    """Tell whether a collective failed because another rank is gone."""
    return isinstance(error, dist.DistError) or any(w in str(error) for w in ("gloo", "NCCL"))


def lose_contact(world: World) -> int:
    """Say that another rank is gone, unless one has reported why; returns the exit code."""
    time.sleep(PATIENCE)  # a launcher ends the others meanwhile
    if not _is_reported(world, ["rejected"]):
        print(
            f"error: rank {world.rank} lost contact with another rank; finished work is on disk;"
            " run the same command again to resume",
            file=sys.stderr,
        )
    return EXIT_LOST


def _report(world: World, keys: list[str]) -> None:
    try:
        for key in keys:
            world.store.set(key, "1")
    except RuntimeError:  # rank 0, which holds the store, is gone
        return


def _is_reported(world: World, keys: list[str]) -> bool:
    """Tell whether all keys are set in time (by polling: waiting in the store prints warnings)."""
    deadline = time.monotonic() + PATIENCE
    try:
        while not world.store.check(keys):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
    except RuntimeError:
        return False
    return True
