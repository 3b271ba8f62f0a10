"""The sample order: which image is at each global position, and whether it is flipped.

Everything is a pure function of (seed, position), computed by arithmetic for any set of positions
at once: no table, no state, no cost that grows with the position or with the size of the set. A
pipeline on any number of ranks therefore visits the same images, and resumes from one integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS = 8
COUNTED_BATCHES = 16
"""Batches in which `classes_per_batch` counts."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(words: Words) -> Words:
    """Scramble 64-bit words: the finaliser of SplitMix64, a bijection with full avalanche."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_words(*parts: int | Integers | Words) -> Words:
    """Return one pseudo-random 64-bit word per row of the broadcast integer parts."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        word = np.atleast_1d(np.asarray(part)).astype(np.uint64)
        state = mix((state ^ word) + _GOLDEN)
    return state


def permute(values: Integers, size: int, keys: Words) -> Integers:
    """Apply a keyed pseudo-random permutation of 0..size-1 to each value.

    A Feistel network over the next power of two, whose halves scramble each other in turn; a result
    outside the range is fed through again until it falls inside (cycle walking, fewer than two
    passes on average), which keeps the map a bijection.

    Args:
        values: Integers in [0, size), int64 [N].
        size: Length of the permuted range.
        keys: The permutation's key, uint64 [N] or [1]; equal keys give the same permutation.
    """
    keys = np.broadcast_to(keys, values.shape)
    result = _feistel(values.astype(np.uint64), keys, size)
    while len(outside := np.flatnonzero(result >= np.uint64(size))):
        result[outside] = _feistel(result[outside], keys[outside], size)
    return result.astype(np.int64)


def _feistel(values: Words, keys: Words, size: int) -> Words:
    bits = max(2, (size - 1).bit_length())
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    high, low = values >> low_bits, values & low_mask
    for _ in range(ROUNDS):
        keys = mix(keys + _GOLDEN)
        high ^= mix(low ^ keys) & high_mask
        low ^= mix(high ^ ~keys) & low_mask
    return (high << low_bits) | low


class Order(Protocol):
    """An endless global order over numbered samples."""

    def samples(self, positions: Integers) -> Integers:
        """Return the sample index at each global position, int64 [N]."""

    def flips(self, positions: Integers) -> NDArray[np.bool_]:
        """Return whether the visit at each global position is flipped horizontally, bool [N]."""


@dataclass(frozen=True, eq=False)
class SampleOrder:
    """The endless global order over one set.

    Attributes:
        num_samples: Samples per epoch.
        seed: The run's seed.
        shuffle: Visit the samples in a new random order each epoch; otherwise in file order.
        flip: Flip each visit horizontally with probability 1/2.
        window: Shuffle the shards, and then the samples within windows of this many, so that
            few shards are in use at a time; None shuffles all samples.
        bounds: For a window: where each shard's samples start, and the end, int64 [shards + 1].
    """

    num_samples: int
    seed: int
    shuffle: bool = True
    flip: bool = False
    window: int | None = None
    bounds: Integers | None = None

    def samples(self, positions: Integers) -> Integers:
        """Return the sample index at each global position, int64 [N]."""
        epochs, places = np.divmod(positions, self.num_samples)
        if not self.shuffle:
            return places
        keys = hash_words(self.seed, _purpose("order"), epochs)
        if self.window is None:
            return permute(places, self.num_samples, keys)
        return self._in_windows(places, keys, self.window)

    def flips(self, positions: Integers) -> NDArray[np.bool_]:
        """Return whether the visit at each global position is flipped horizontally, bool [N]."""
        if not self.flip:
            return np.zeros(len(positions), bool)
        words = hash_words(self.seed, _purpose("flip"), positions)
        return (words >> np.uint64(63)).astype(bool)

    def _in_windows(self, places: Integers, keys: Words, window: int) -> Integers:
        """Shuffle within windows of a sequence that joins the shards in a new order each epoch."""
        starts = places // window * window
        sizes = np.minimum(window, self.num_samples - starts)
        shuffled = places.copy()
        for size in np.unique(sizes):
            rows = np.flatnonzero(sizes == size)
            row_keys = hash_words(keys[rows], starts[rows])
            inside = permute(places[rows] - starts[rows], int(size), row_keys)
            shuffled[rows] = starts[rows] + inside
        return self._across_shards(shuffled, keys)

    def _across_shards(self, places: Integers, keys: Words) -> Integers:
        """Map places of the joined sequence to samples, epoch by epoch."""
        assert self.bounds is not None
        sizes = np.diff(self.bounds)
        samples = np.empty_like(places)
        for key in np.unique(keys):
            shards = permute(np.arange(len(sizes)), len(sizes), np.array([key]))
            ends = np.cumsum(sizes[shards])
            rows = np.flatnonzero(keys == key)
            turn = np.searchsorted(ends, places[rows], side="right")
            within = places[rows] - (ends[turn] - sizes[shards[turn]])
            samples[rows] = self.bounds[shards[turn]] + within
        return samples


@dataclass(frozen=True, eq=False)
class SelectedOrder:
    """An order over some of a set's samples.

    Attributes:
        order: The order over the selection.
        selection: The set's samples that are selected, int64 [num_samples of the order].
    """

    order: Order
    selection: Integers

    def samples(self, positions: Integers) -> Integers:
        """Return the sample index at each global position, int64 [N]."""
        return self.selection[self.order.samples(positions)]

    def flips(self, positions: Integers) -> NDArray[np.bool_]:
        """Return whether the visit at each global position is flipped horizontally, bool [N]."""
        return self.order.flips(positions)


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """An order over several sets, numbered one after the other, in fixed proportions.

    Positions come in cycles in which each set has its quota, at places that are reshuffled in
    each cycle; a set's visits continue through its own order from cycle to cycle.

    Attributes:
        orders: The sets' own orders.
        sizes: Number of samples of each set (not of its selection).
        quotas: Visits of each set per cycle.
        seed: The run's seed.
    """

    orders: tuple[Order, ...]
    sizes: tuple[int, ...]
    quotas: tuple[int, ...]
    seed: int

    def samples(self, positions: Integers) -> Integers:
        """Return the sample index at each global position, int64 [N]."""
        cycles, places = np.divmod(positions, sum(self.quotas))
        keys = hash_words(self.seed, _purpose("mix"), cycles)
        slots = permute(places, sum(self.quotas), keys)
        samples = np.empty_like(positions)
        first_slot = first_sample = 0
        for order, size, quota in zip(self.orders, self.sizes, self.quotas, strict=True):
            rows = np.flatnonzero((slots >= first_slot) & (slots < first_slot + quota))
            visits = cycles[rows] * quota + slots[rows] - first_slot
            samples[rows] = first_sample + order.samples(visits)
            first_slot += quota
            first_sample += size
        return samples

    def flips(self, positions: Integers) -> NDArray[np.bool_]:
        """Return whether the visit at each global position is flipped horizontally, bool [N]."""
        return self.orders[0].flips(positions)


def quotas(weights: Sequence[float], cycle: int = 1000) -> tuple[int, ...]:
    """Return how often each set is visited per cycle of about `cycle` positions, at least once."""
    return tuple(max(1, round(cycle * weight / sum(weights))) for weight in weights)


def classes_per_batch(order: Order, labels: Integers, batch_size: int) -> float:
    """Return how many classes a global batch holds: the mean of batches all over the first epoch.

    Args:
        order: The order over the samples.
        labels: Class index of each sample, int [N].
        batch_size: Global batch size, at most N.
    """
    starts = np.linspace(0, len(labels) - batch_size, COUNTED_BATCHES).astype(np.int64)
    batches = (labels[order.samples(start + np.arange(batch_size))] for start in starts)
    return float(np.mean([len(np.unique(batch)) for batch in batches]))


def subset(num_samples: int, count: int) -> Integers:
    """Return `count` samples of a set, spread at random but always the same, in file order."""
    return np.sort(permute(np.arange(count), num_samples, hash_words(_purpose("subset"))))


def _purpose(name: str) -> int:
    """Return a number that makes the hashes of different uses of one seed independent."""
    return int.from_bytes(name.encode(), "little")
