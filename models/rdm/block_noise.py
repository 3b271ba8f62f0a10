"""Block noise: Gaussian noise whose spectrum is that of up-sampled low-resolution noise."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def block_noise(gaussian: Tensor, size: int) -> Tensor:
    """Return 1/s times the sum of the s x s periodic shifts of iid noise.

    See docs/reference/rdm.md#5.3:

    out[y, x] = (1/s) sum_{i,j=0}^{s-1} g[(y-i) mod H, (x-j) mod W]: unit variance, tile-sized
    correlation, power s^2 at frequency 0.

    Args:
        gaussian: iid standard normal values, [B, C, H, W].
        size: Block edge s in pixels.
    """
    before = size - 1
    periodic = F.pad(gaussian, (before, 0, before, 0), mode="circular")
    return F.avg_pool2d(periodic, size, stride=1, divisor_override=size)
