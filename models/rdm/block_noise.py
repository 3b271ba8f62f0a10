"""Block noise: Gaussian noise whose spectrum is that of up-sampled low-resolution noise."""

from __future__ import annotations

import torch
from torch import Tensor


def block_noise(gaussian: Tensor, size: int) -> Tensor:
    """Return 1/s times the sum of the s x s periodic shifts of iid noise.

    See docs/reference/rdm.md#5.3:

    out[y, x] = (1/s) sum_{i,j=0}^{s-1} g[(y-i) mod H, (x-j) mod W]: unit variance, tile-sized
    correlation, power s^2 at frequency 0.

    Args:
        gaussian: iid standard normal values, [..., H, W].
        size: Block edge s in pixels.
    """
    return block_sum_(gaussian.clone(), size, torch.empty_like(gaussian)).div_(size)


def block_sum_(gaussian: Tensor, size: int, spare: Tensor) -> Tensor:
    """Return size times the block noise, in the memory of one of the two tensors.

    Both are overwritten: at image size, fresh memory costs as much as the sums themselves.
    """
    for dim in (-2, -1):
        gaussian, spare = _running_sum_(gaussian, size, dim, spare)
    return gaussian


def _running_sum_(x: Tensor, count: int, dim: int, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Return the periodic sums of each entry and the count - 1 before it, and free memory."""
    if count & (count - 1):
        spare.copy_(x)
        for shift in range(1, count):
            spare.add_(x.roll(shift, dim))
        return spare, x
    reach = 1  # a power of two is reached by doubling
    while reach < count:
        _add_earlier(x, reach, dim, out=spare)
        x, spare = spare, x
        reach *= 2
    return x, spare


def _add_earlier(x: Tensor, shift: int, dim: int, out: Tensor) -> None:
    """Write x[k] + x[(k - shift) mod n] along dim to `out`."""
    length = x.shape[dim]
    shift %= length
    for to, origin, count in ((shift, 0, length - shift), (0, length - shift, shift)):
        parts = x.narrow(dim, to, count), x.narrow(dim, origin, count)
        torch.add(*parts, out=out.narrow(dim, to, count))
