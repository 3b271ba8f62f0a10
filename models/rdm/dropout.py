"""Dropout whose masks are a pure function of (sample, layer, element).

A counter-based hash replaces the generator: masks are the same on any rank, in any micro-batch
split, on any device, and when activation checkpointing runs a block a second time; there is no
state to save, nothing to synchronise, and torch.compile fuses the hash into the multiplication.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN_RATIO = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed 64-bit integer
LAYER_STEP = 0xD1B54A32D192ED03 - (1 << 64)
LANES = 4  # 16-bit decisions per 64-bit hash


def keyed_dropout(x: Tensor, keys: Tensor, layer: int, p: float) -> Tensor:
    """Zero each element with probability p and scale the others by 1 / (1 - p).

    Args:
        x: [B, ...], any floating dtype.
        keys: One 64-bit key per sample, int64 [B] on the device of x.
        layer: Number of the layer, so that one key serves a whole network.
        p: Probability in [0, 1), rounded to a multiple of 2^-16.
    """
    dropped = min(round(p * 65536), 65535)
    count = x[0].numel()
    words = splitmix(keys + layer * LAYER_STEP % (1 << 63), -(-count // LANES))
    keep = words.view(torch.int16)[:, :count].reshape(x.shape) >= dropped - 32768
    return x * (keep.to(x.dtype) * (65536 / (65536 - dropped)))


def splitmix(keys: Tensor, count: int) -> Tensor:
    """Return the first outputs of each key's SplitMix64 generator, int64 [B, count]."""
    counter = torch.arange(1, count + 1, device=keys.device)
    z = keys.unsqueeze(1) + counter * GOLDEN_RATIO
    z = (z ^ _shift_right(z, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ _shift_right(z, 27)) * (0x94D049BB133111EB - (1 << 64))
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift without sign extension, as the generator is defined on unsigned integers."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
