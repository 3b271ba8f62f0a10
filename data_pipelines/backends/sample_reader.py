"""From global positions to stored samples; damaged ones are replaced by the next in the order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from data_pipelines.images import BadImage
from data_pipelines.packed.prefetch import ShardPrefetcher
from data_pipelines.packed.reader import Samples
from data_pipelines.sample_order import Order

T = TypeVar("T")
Stored = TypeVar("Stored")
MAX_REPLACEMENTS = 1000
logger = logging.getLogger(__name__)


class SampleReader(Generic[Stored]):
    """Maps global positions to samples; a damaged sample is replaced by the next one of the order.

    The replacement depends on the position and on the files alone, so it is the same on any number
    of ranks.

    Args:
        images: The packed set.
        order: The global order over it.
        max_corrupt: Tolerated fraction of damaged samples in the set, see CorruptBudget.
        prefetcher: Downloads the shards of remote sets ahead of the reads; None if all are local.

    Attributes:
        corrupt: Reason by sample index of all damaged samples met so far.
    """

    def __init__(
        self,
        images: Samples[Stored],
        order: Order,
        max_corrupt: float,
        prefetcher: ShardPrefetcher | None = None,
    ) -> None:
        self.images = images
        self._prefetcher = prefetcher
        self.order = order
        self._budget = CorruptBudget(max_corrupt, str(images.path), len(images))
        self.corrupt = self._budget.corrupt

    def load(
        self, positions: range, convert: Callable[[int, Stored], T]
    ) -> tuple[list[T], list[int]]:
        """Return the samples at `positions`, converted, and their labels (-1: none).

        Args:
            positions: Global positions.
            convert: Maps a sample's index and its stored content to the result; raises BadImage
                if the content is unusable.

        Raises:
            TooManyCorrupt: The tolerated fraction of damaged samples is exceeded.
        """
        if self._prefetcher:
            self._prefetcher.advance(positions.start)
        indices = self.order.samples(np.arange(positions.start, positions.stop))
        loaded = [
            self._load_one(position, int(index), convert)
            for position, index in zip(positions, indices, strict=True)
        ]
        return [item for item, _ in loaded], [label for _, label in loaded]

    def close(self) -> None:
        """Stop reading ahead, and close the set."""
        if self._prefetcher:
            self._prefetcher.close()
        self.images.close()

    def _load_one(
        self, position: int, index: int, convert: Callable[[int, Stored], T]
    ) -> tuple[T, int]:
        for candidate in range(position + 1, position + 1 + MAX_REPLACEMENTS):
            try:
                stored, label = self.images.read(index)
                return convert(index, stored), -1 if label is None else label
            except BadImage as error:
                where = f"{self.images.locate(index)} of {self.images.path}"
                self._budget.record(index, str(error), where)
                index = int(self.order.samples(np.array([candidate]))[0])
        raise TooManyCorrupt(
            f"{MAX_REPLACEMENTS} consecutive samples are damaged from position {position} on;"
            f" run `relaywave data check {self.images.path}`"
        )


class CorruptBudget:
    """Counts damaged samples, and says when there are too many.

    Args:
        max_corrupt: Tolerated fraction of damaged samples in the set; see `allowed_corrupt`.
        path: The set, for messages.
        num_samples: Its size; None if it is not known: then the fraction is of those `seen`, of
            which ten may always be damaged.

    Attributes:
        corrupt: Reason by sample index of all damaged samples met so far.
        seen: Samples that were delivered so far.
    """

    def __init__(self, max_corrupt: float, path: str, num_samples: int | None = None) -> None:
        self.corrupt: dict[int, str] = {}
        self.seen = 0
        self._max_corrupt, self._path, self._num_samples = max_corrupt, path, num_samples
        self._lock = threading.Lock()

    def record(self, index: int, reason: str, where: str) -> None:
        """Count and log a damaged sample, once. Raises TooManyCorrupt while they are too many."""
        with self._lock:
            new = index not in self.corrupt
            self.corrupt[index] = reason
            count = len(self.corrupt)
        if new:
            logger.warning("%s is replaced by the next in the order: %s", where, reason)
        total = self.seen if self._num_samples is None else self._num_samples
        if count > allowed_corrupt(self._max_corrupt, total, 1 if self._num_samples else 10):
            raise TooManyCorrupt(
                f"{count} of {total} samples are damaged, more than"
                f" max_corrupt={self._max_corrupt} allows (the last: {where}: {reason});"
                f" find all with `relaywave data check {self._path}`,"
                " then copy or pack the set again"
            )


def allowed_corrupt(max_corrupt: float, num_samples: int, least: int = 1) -> int:
    """Return how many of a set's samples may be damaged: `least`, unless the fraction is 0."""
    return max(least, int(max_corrupt * num_samples)) if max_corrupt else 0


class TooManyCorrupt(RuntimeError):  # noqa: N818 (reads better where it is raised)
    """More samples of the set are damaged than `max_corrupt` allows."""
