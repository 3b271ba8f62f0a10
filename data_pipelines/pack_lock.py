"""One packer per destination."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DestinationBusy(ValueError):  # noqa: N818 (a state of the destination)
    """Another process is packing into the same destination."""


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock on `path` that the system releases however this process ends.

    File systems without locks (some network mounts) are used without one.

    Raises:
        DestinationBusy: Another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DestinationBusy(
            f"another process is packing into {path.parent.parent}; wait for it to end"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        os.close(descriptor)
