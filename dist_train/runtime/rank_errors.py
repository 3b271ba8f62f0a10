"""Failures of commands that ranks share: one line that says what is wrong, printed once."""

from __future__ import annotations

import hashlib
import os

from dist_train.runtime.watchdog import LostRankError
from dist_train.runtime.world import World
from models import command_line

FAILED = "failed"
"""Key of the group's store that says that a rank has printed why it ends."""


class PartError(ValueError):
    """What is wrong in a rank's part of the work, which is likely to be so in those of others.

    Args:
        text: The line about it, with what is this rank's own, e.g. the number of an image.
        cause: What is wrong on all these ranks; the first one to fail by it speaks for them.
    """

    def __init__(self, text: str, cause: str) -> None:
        super().__init__(text)
        self.cause = cause


def fail(error: BaseException, world: World | None) -> int:
    """Print what went wrong, once for all ranks that end by it; returns the exit code.

    A rank that fails takes the others with it, so theirs is not said: that they lost contact. The
    store is our launcher's, or torchrun's. Without them, as in jobs of Slurm, it ends with rank 0;
    then each rank prints its line, into a log of its own.

    Args:
        error: Why this rank ends.
        world: Its process group; None if it has not joined one. Then all ranks fail alike, on
            their common command line, and rank 0 speaks for them.
    """
    code = command_line.exit_code(error)
    if world is None:
        speaks = os.environ.get("RANK", "0") == "0" or code != command_line.EXIT_REJECTED
    elif isinstance(error, LostRankError):
        speaks = not _is_said(world)
    else:
        cause = error.cause if isinstance(error, PartError) else command_line.describe(error)
        speaks = _claim(world, cause)
    return command_line.fail(error) if speaks else code


def _claim(world: World, text: str) -> bool:
    """Tell whether this rank is the first to fail with this."""
    if world.store is None:
        return True
    digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
    try:
        world.store.set(FAILED, "1")
        return bool(world.store.add(f"{FAILED}/{digest}", 1) == 1)
    except RuntimeError:  # the process that holds the store is gone
        return True


def _is_said(world: World) -> bool:
    try:
        return world.store is not None and bool(world.store.check([FAILED]))
    except RuntimeError:
        return False
