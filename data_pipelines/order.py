"""The sample order: which image, and which mirror image, stands at each global position.

Everything is a pure function of (seed, position), evaluated by arithmetic for any set of positions
at once: no table, no state, no cost that grows with the position or with the size of the set. A
pipeline on any number of ranks therefore visits the same images, and resumes from one integer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS = 8
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


@dataclass(frozen=True)
class SampleOrder:
    """The endless global order over a set.

    Attributes:
        num_samples: Images per epoch.
        seed: The run's seed.
        shuffle: Visit the images in a new random order each epoch; else in file order.
        flip: Mirror each visit with probability 1/2.
    """

    num_samples: int
    seed: int
    shuffle: bool = True
    flip: bool = False

    def samples(self, positions: Integers) -> Integers:
        """Return the sample index at each global position, int64 [N]."""
        epochs, places = np.divmod(positions, self.num_samples)
        if not self.shuffle:
            return places
        return permute(places, self.num_samples, hash_words(self.seed, _purpose("order"), epochs))

    def flips(self, positions: Integers) -> NDArray[np.bool_]:
        """Return whether the visit at each global position is mirrored, bool [N]."""
        if not self.flip:
            return np.zeros(len(positions), bool)
        words = hash_words(self.seed, _purpose("flip"), positions)
        return (words >> np.uint64(63)).astype(bool)


def _purpose(name: str) -> int:
    """Return a number that keeps the words of different uses of one seed apart."""
    return int.from_bytes(name.encode(), "little")
