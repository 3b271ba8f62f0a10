"""Random draws keyed by samples, not by ranks.

Each sample has a random stream of its own, seeded by what the sample *is* (its seed, or its
position in the global sample order), so that the number of ranks and the split into micro-batches
change nothing, and a resumed run needs no stored generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Source of a batch's random draws; every result has one leading row per sample."""

    def __len__(self) -> int: ...

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return iid standard normal values, [B, *shape]."""

    def rand(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Return iid uniform values in [0, 1), [B, *shape]."""

    def randint(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Return iid integers in [0, high), int64 [B, *shape]."""


class SampleStreams:
    """One generator per sample: row b of every draw depends on seeds[b] and on the draws before it.

    The streams of CPU and CUDA generators differ; on one kind of device they are exact
    (docs/reference/rdm.md#10.2; docs/reference/evaluation.md#5.2).

    Args:
        seeds: One integer per sample, taken modulo 2^64.
        device: Where the generators and the draws live.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [
            torch.Generator(self.device).manual_seed(seed % (1 << 64)) for seed in seeds
        ]

    def __len__(self) -> int:
        return len(self._generators)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return iid standard normal values, [B, *shape]."""
        draws = torch.empty(len(self), *shape, dtype=dtype, device=self.device)
        for row, generator in zip(draws, self._generators, strict=True):
            row.normal_(generator=generator)
        return draws

    def rand(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Return iid uniform values in [0, 1), [B, *shape]."""
        draws = torch.empty(len(self), *shape, dtype=dtype, device=self.device)
        for row, generator in zip(draws, self._generators, strict=True):
            row.uniform_(generator=generator)
        return draws

    def randint(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Return iid integers in [0, high), int64 [B, *shape]."""
        draws = torch.empty(len(self), *shape, dtype=torch.int64, device=self.device)
        for row, generator in zip(draws, self._generators, strict=True):
            row.random_(0, high, generator=generator)
        return draws


def stream_seed(seed: int, purpose: str, index: int) -> int:
    """Derive the 63-bit seed of one sample's stream from the run's seed, a purpose and an index.

    A cryptographic hash, because neighbouring seeds of a Mersenne Twister are correlated.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
