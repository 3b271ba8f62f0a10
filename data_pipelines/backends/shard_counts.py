"""The index of a WebDataset: how many samples each shard holds, known once it was read to its end.

With it a run starts at any position, on any number of ranks, without reading what came before. The
ranks of all nodes append to one file; a line that was written badly is left out, and its shard
counted again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from pathlib import Path


class ShardCounts:
    """Numbers of samples by shard.

    Args:
        file: Where they are recorded; None keeps them in memory only.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._counts: dict[int, int] = {}
        if file is not None and file.is_file():
            for line in file.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    shard, count, check = map(int, line.split())
                    if check == _check(shard, count):
                        self._counts[shard] = count

    def get(self, shard: int) -> int | None:
        """Return a shard's number of samples, None if it is not known."""
        return self._counts.get(shard)

    def record(self, shard: int, count: int) -> None:
        """Record a shard that was read to its end, in memory only if the file cannot be written."""
        with self._lock:
            if self._counts.get(shard) == count:
                return
            self._counts[shard] = count
            if self._file is None:
                return
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                line = f"\n{shard} {count} {_check(shard, count)}\n"
                descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                try:
                    os.write(descriptor, line.encode())
                finally:
                    os.close(descriptor)


def _check(shard: int, count: int) -> int:
    """Return a checksum of a line."""
    return zlib.crc32(f"{shard} {count}".encode())
