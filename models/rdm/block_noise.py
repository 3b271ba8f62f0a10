"""Block noise: Gaussian noise whose spectrum is that of up-sampled low-resolution noise."""

from __future__ import annotations

import torch
from torch import Tensor


def block_noise(gaussian: Tensor, size: int) -> Tensor:
    """Return (1/s) times the sum of the s x s periodic shifts of iid noise (spec/RDM.md 5.3).

    out[y, x] = (1/s) sum_{i,j=0}^{s-1} g[(y-i) mod H, (x-j) mod W]: unit variance, tile-sized
    correlation, power s^2 at frequency 0.

    Args:
        gaussian: iid standard normal values, [..., H, W]; not differentiated.
        size: Block edge s in pixels.
    """
    return block_sum(gaussian, size) / size


def block_sum(gaussian: Tensor, size: int) -> Tensor:
    """Return size times the block noise."""
    return running_sum(running_sum(gaussian, size, -2), size, -1)


def running_sum(x: Tensor, count: int, dim: int) -> Tensor:
    """Return the periodic sum of each entry and the count - 1 entries before it along dim.

    Sums are doubled as often as possible: about log2(count) passes over the data.
    """
    window, reach = x, 1  # sums of `reach` entries
    total, covered = x, 0  # sums of `covered` entries; nothing yet if that is 0
    while reach <= count:
        if count & reach:
            total = _plus_earlier(total, window, covered, dim) if covered else window
            covered += reach
        if 2 * reach <= count:
            window = _plus_earlier(window, window, reach, dim)
        reach *= 2
    return total


def _plus_earlier(x: Tensor, earlier: Tensor, shift: int, dim: int) -> Tensor:
    """Return x[k] + earlier[(k - shift) mod n] along dim."""
    length = x.shape[dim]
    shift %= length
    out = torch.empty_like(x)
    for to, origin, count in ((shift, 0, length - shift), (0, length - shift, shift)):
        parts = x.narrow(dim, to, count), earlier.narrow(dim, origin, count)
        torch.add(*parts, out=out.narrow(dim, to, count))
    return out
