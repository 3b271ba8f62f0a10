"""Shards of unknown sizes as one endless order that no number of ranks changes.

In each epoch the shards, in a new order, are dealt to streams. A stream's samples come as its tars
hold them, shuffled within windows. The streams are slices of the global batch: slots 0..w-1 of each
batch are stream 0's next w samples, the following w slots stream 1's, and so on. So which sample is
at a position depends on the seed, the shards and the global batch size alone; a rank reads the
streams whose slots are its own, and nobody has to know how many samples a shard holds, except to
start in the middle.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from data_pipelines.sample_order import hash_words, permute

T = TypeVar("T")
MOST_STREAMS = 128
"""Streams, and so tars, that one rank alone reads at a time."""


@dataclass(frozen=True)
class StreamOrder:
    """How shards are dealt to streams, and streams to positions.

    Attributes:
        num_shards: Number of shards.
        batch: Global batch size, in samples.
        seed: The run's seed.
        shuffle: Whether shards, and samples within windows, are shuffled; otherwise there is one
            stream, the shards one after the other.
        window: Samples, of all streams together, that are shuffled with each other.
    """

    num_shards: int
    batch: int
    seed: int
    shuffle: bool
    window: int

    @property
    def streams(self) -> int:
        """Number of streams: as many as divide the batch, and have a shard each."""
        most = min(self.num_shards, self.batch, MOST_STREAMS) if self.shuffle else 1
        return next(count for count in range(most, 0, -1) if self.batch % count == 0)

    @property
    def stream_window(self) -> int:
        """Samples of one stream that are shuffled with each other."""
        return max(1, self.window // self.streams)

    def place(self, position: int) -> tuple[int, int]:
        """Return the stream of a global position, and the number of its sample in the stream."""
        width = self.batch // self.streams
        step, slot = divmod(position, self.batch)
        return slot // width, step * width + slot % width

    def shards(self, stream: int, epoch: int) -> list[int]:
        """Return the shards of a stream in an epoch, in order."""
        shards = np.arange(self.num_shards)
        if self.shuffle:
            shards = permute(shards, self.num_shards, hash_words(self.seed, _SHARDS, epoch))
        return [int(shard) for shard in shards[stream :: self.streams]]

    def shuffled(self, samples: list[T], stream: int, epoch: int, place: int) -> list[T]:
        """Return the samples of a window that starts at a place of a stream's epoch, as visited."""
        if not self.shuffle:
            return samples
        keys = hash_words(self.seed, _WINDOW, stream, epoch, place)
        order = permute(np.arange(len(samples)), len(samples), keys)
        return [samples[number] for number in order]


_SHARDS, _WINDOW = (int.from_bytes(name.encode(), "little") for name in ("shards", "window"))


@dataclass(frozen=True)
class Window(Generic[T]):
    """Consecutive samples of a stream.

    Attributes:
        start: Number of the first one in the stream.
        samples: As they are visited.
    """

    start: int
    samples: list[T]


class Stream(Generic[T]):
    """Reads a stream from a sample on; the next window is read while one is delivered.

    Args:
        order: The order of all streams.
        number: The stream.
        first: Number of the first sample that will be taken.
        read: Yields the samples of a shard, from a number on.
        count: Returns how many samples a shard holds, if need be by reading it.
        pool: Reads ahead.
    """

    def __init__(
        self,
        order: StreamOrder,
        number: int,
        first: int,
        read: Callable[[int, int], Iterator[T]],
        count: Callable[[int], int],
        pool: Executor,
    ) -> None:
        self._order, self._number = order, number
        self._read, self._count, self._pool = read, count, pool
        self._windows = self._from(first)
        self._coming: Future[Window[T]] = pool.submit(next, self._windows)
        self._window: Window[T] = Window(0, [])

    def take(self, number: int) -> tuple[list[T], int]:
        """Return a sample as its window and its place there; numbers must not descend."""
        while number >= self._window.start + len(self._window.samples):
            self._window = self._coming.result()
            self._coming = self._pool.submit(next, self._windows)
        return self._window.samples, number - self._window.start

    def _from(self, first: int) -> Iterator[Window[T]]:
        """Yield the windows from the one on that holds the sample of a number."""
        start = 0  # number of the first sample of the epoch
        for epoch in itertools.count():
            shards = self._order.shards(self._number, epoch)
            ahead = max(first - start, 0)
            if ahead and (passed := self._samples_up_to(shards, ahead)) <= ahead:
                start += passed
                continue
            place = ahead - ahead % self._order.stream_window if self._order.shuffle else ahead
            samples = self._samples(shards, place)
            while window := list(itertools.islice(samples, self._order.stream_window)):
                shuffled = self._order.shuffled(window, self._number, epoch, place)
                yield Window(start + place, shuffled)
                place += len(window)
            start += place

    def _samples_up_to(self, shards: list[int], most: int) -> int:
        """Return the samples of all shards, or of as many as exceed a number."""
        total = 0
        for shard in shards:
            total += self._count(shard)
            if total > most:
                break
        return total

    def _samples(self, shards: list[int], skipped: int) -> Iterator[T]:
        """Yield the samples of shards after the first ones; shards of these alone are not read."""
        for shard in shards:
            if skipped and skipped >= (held := self._count(shard)):
                skipped -= held
                continue
            yield from self._read(shard, skipped)
            skipped = 0
