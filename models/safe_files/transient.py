"""Trying again after errors that pass by themselves: a network file system that stumbles."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

DELAYS = (0.1, 0.5, 2.0)
"""Seconds before the second, third and last attempt."""

TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT,
     errno.EREMOTEIO, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ENETDOWN,
     errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)  # fmt: skip
"""Errors of reading and writing that may be gone a moment later."""

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of writing that pass when others clean up."""


def is_transient(error: OSError, errors: frozenset[int] = TRANSIENT) -> bool:
    """Tell whether an error may be gone a moment later."""
    return error.errno in errors


def retried(
    action: Callable[[], T],
    what: str,
    *,
    delays: Sequence[float] = DELAYS,
    errors: frozenset[int] = TRANSIENT,
) -> T:
    """Return the action's result; try again, with back-off, after a transient error.

    Args:
        action: What to do; it must be safe to do it again.
        what: What it does, for the log: `reading shards/000001.tar`.
        delays: Seconds before each further attempt.
        errors: Error numbers that are tried again.

    Raises:
        OSError: Another error, or the last attempt's.
    """
    for delay in delays:
        try:
            return action()
        except OSError as error:
            if not is_transient(error, errors):
                raise
            logger.warning("%s: %s; trying again in %g s", what, error, delay)
            time.sleep(delay)
    return action()
