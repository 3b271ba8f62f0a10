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
"""Seconds that ranks wait to hear that another one has said the same."""


def reject(error: Exception, world: World | None) -> int:
    """Print what was wrong, for all ranks that fail alike once; returns the exit code."""
    if world is None or world.store is None:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REJECTED
    key = f"rejected/{short_hash(str(error))}"
    others = [f"{key}/{rank}" for rank in range(1, world.size)]
    if world.rank == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _tell(world, [key, "rejected"])
        _heard(world, others)  # the store ends with this process
    else:
        _tell(world, [f"{key}/{world.rank}", "rejected"])
        if not _heard(world, [key]):
            print(f"error: rank {world.rank}: {error}", file=sys.stderr, flush=True)
    return EXIT_REJECTED


def is_lost_contact(error: RuntimeError) -> bool:
    """Tell whether a collective failed because another rank is gone."""
    return isinstance(error, dist.DistError) or any(w in str(error) for w in ("gloo", "NCCL"))


def lose_contact(world: World) -> int:
    """Say that another rank is gone, unless one has said why it ended; returns the exit code."""
    time.sleep(PATIENCE)  # a launcher ends the others meanwhile
    if not _heard(world, ["rejected"]):
        print(
            f"error: rank {world.rank} lost contact with another rank; what is finished is kept,"
            " run the same command again",
            file=sys.stderr,
        )
    return EXIT_LOST


def _tell(world: World, keys: list[str]) -> None:
    try:
        for key in keys:
            world.store.set(key, "1")
    except RuntimeError:  # rank 0, which keeps the store, is gone
        return


def _heard(world: World, keys: list[str]) -> bool:
    """Tell whether all keys are set in time (by asking: waiting in the store prints warnings)."""
    deadline = time.monotonic() + PATIENCE
    try:
        while not world.store.check(keys):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
    except RuntimeError:
        return False
    return True
