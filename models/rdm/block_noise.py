"""Block noise: Gaussian noise whose spectrum is that of up-sampled low-resolution noise."""

from __future__ import annotations

import torch
from torch import Tensor


def block_noise(gaussian: Tensor, size: int) -> Tensor:
    """Return (1/s) times the sum of the s x s periodic shifts of iid noise (spec/RDM.md 5.3).

    out[y, x] = (1/s) sum_{i,j=0}^{s-1} g[(y-i) mod H, (x-j) mod W]: unit variance, tile-sized
    correlation, power s^2 at frequency 0.

    Args:
        gaussian: iid standard normal values, [..., H, W], H and W at least s.
        size: Block edge s in pixels; 1 returns the input itself.
    """
    if size == 1:
        return gaussian
    return running_sum(running_sum(gaussian, size, -2), size, -1).div_(size)


def running_sum(x: Tensor, count: int, dim: int) -> Tensor:
    """Return the periodic sum of each entry and the count - 1 entries before it along dim.

    Sums are doubled as often as possible: about log2(count) passes over the data.
    """
    length = x.shape[dim]
    window = torch.cat([x.narrow(dim, length - count + 1, count - 1), x], dim)
    total, covered, reach = window, 0, 1  # `window` holds sums of `reach` entries
    while reach <= count:
        if count & reach:
            total = _plus_earlier(total, window, covered, dim) if covered else window
            covered += reach
        if 2 * reach <= count:
            window = _plus_earlier(window, window, reach, dim)
        reach *= 2
    return total


def _plus_earlier(x: Tensor, earlier: Tensor, shift: int, dim: int) -> Tensor:
    """Return x[k] + earlier[k - shift] where both exist; the tensors end at the same place."""
    length = min(x.shape[dim], earlier.shape[dim] - shift)
    start = earlier.shape[dim] - shift - length
    return x.narrow(dim, x.shape[dim] - length, length) + earlier.narrow(dim, start, length)
