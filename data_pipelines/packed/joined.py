"""Several packed sets as one collection: samples and shards are numbered set after set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from data_pipelines.packed.reader import Samples, ShardedImages
from data_pipelines.sample_order import Integers

Stored = TypeVar("Stored")


class Joined(Generic[Stored]):
    """The samples of several sets, numbered set after set."""

    def __init__(self, parts: Sequence[Samples[Stored]]) -> None:
        self.path = Path(" + ".join(str(part.path) for part in parts))
        self._samples = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> tuple[Stored, int | None]:
        """Return what is stored of a sample, and its label. Raises BadImage if it is damaged."""
        part, within = self._find(index)
        return part.read(within)

    def locate(self, index: int) -> str:
        """Return where a sample is stored, for messages."""
        part, within = self._find(index)
        return f"{part.locate(within)} of {part.path}"

    def close(self) -> None:
        """Close all sets."""
        for part in self._samples:
            part.close()

    def _find(self, index: int) -> tuple[Samples[Stored], int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._samples[number], index - int(self._ends[number]) + len(self._samples[number])


class JoinedImages(Joined[bytes]):
    """The samples of several sharded sets; their shards are numbered set after set, too."""

    def __init__(self, parts: Sequence[ShardedImages]) -> None:
        super().__init__(parts)
        self._parts = parts
        self._first_shards = np.cumsum([0, *(len(part.manifest.shards) for part in parts)])

    def shards_of(self, samples: Integers) -> Integers:
        """Return the shard that holds each sample."""
        numbers = np.searchsorted(self._ends, samples, side="right")
        shards = np.empty_like(samples)
        for number, part in enumerate(self._parts):
            rows = np.flatnonzero(numbers == number)
            within = samples[rows] - (self._ends[number] - len(part))
            shards[rows] = self._first_shards[number] + part.shards_of(within)
        return shards

    def num_bytes(self, shard: int) -> int:
        """Return the size of a remote shard, 0 for a local one."""
        part, within = self._find_shard(shard)
        return part.num_bytes(within)

    def fetch(self, shard: int) -> None:
        """Download a remote shard into the local cache. Raises Unreachable if that fails."""
        part, within = self._find_shard(shard)
        part.fetch(within)

    def _find_shard(self, shard: int) -> tuple[ShardedImages, int]:
        number = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        return self._parts[number], shard - int(self._first_shards[number])
