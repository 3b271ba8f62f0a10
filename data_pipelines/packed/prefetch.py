"""Downloading the shards that come next in the sample order while the current ones are read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from data_pipelines.remote_files import Unreachable
from data_pipelines.sample_order import Integers, Order

BLOCK = 1024
"""Positions looked up at a time; the list of coming shards is renewed after as many."""

CLOSE_SECONDS = 5.0
logger = logging.getLogger(__name__)


class RemoteShards(Protocol):
    """Samples in shards that may have to be downloaded."""

    def __len__(self) -> int: ...

    def shards_of(self, samples: Integers) -> Integers:
        """Return the shard that holds each sample."""

    def num_bytes(self, shard: int) -> int:
        """Return a shard's size, 0 if it is local."""

    def fetch(self, shard: int) -> None:
        """Download a shard into the local cache, or mark it as just used. Raises Unreachable."""


class ShardPrefetcher:
    """A thread that downloads shards ahead of the reader.

    Args:
        images: The samples.
        order: Their order.
        max_bytes: Total size of the shards to hold in the cache, those in use included.
    """

    def __init__(self, images: RemoteShards, order: Order, max_bytes: int) -> None:
        self._images, self._order, self._max_bytes = images, order, max_bytes
        self._position = -1
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="shard prefetch", daemon=True)

    def advance(self, position: int) -> None:
        """Report that the reader has reached a global position."""
        with self._changed:
            first, self._position = self._position < 0, position
            if first and not self._closed:
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Stop the thread; a hanging download is left to its own time limit."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def coming(self, position: int) -> Iterator[int]:
        """Yield the shards in the order of their first use from a position on, while they fit."""
        seen: set[int] = set()
        space = self._max_bytes
        for first in range(position, position + len(self._images), BLOCK):
            samples = self._order.samples(np.arange(first, first + BLOCK))
            for shard in dict.fromkeys(self._images.shards_of(samples).tolist()):
                if shard in seen:
                    continue
                seen.add(shard)
                space -= self._images.num_bytes(shard)
                if space < 0:
                    return
                yield shard

    def _run(self) -> None:
        listed = self._position
        while not self._closed:
            self._fetch_from(listed)
            listed = self._next_position(listed)

    def _fetch_from(self, position: int) -> None:
        try:
            for shard in self.coming(position):
                if self._is_outdated(position):
                    return
                self._images.fetch(shard)
        except (Unreachable, OSError) as error:  # the reader will fail on it too, and stop the run
            logger.warning("reading ahead: %s", error)

    def _next_position(self, listed: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._is_outdated(listed))
            return self._position

    def _is_outdated(self, listed: int) -> bool:
        return self._closed or abs(self._position - listed) >= BLOCK
