"""FIR resampling with the kernel (1, 3, 3, 1), as depth-wise convolutions without zero-stuffing.

Images are zero outside (spec/WAVEDIFF.md section 3.1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel(like: Tensor, gain: float = 1.0) -> Tensor:
    """Return the 4x4 smoothing kernel, its sum being `gain`, in the dtype and device of `like`."""
    taps = torch.tensor(_TAPS, dtype=like.dtype, device=like.device)
    return torch.outer(taps, taps) * (gain / 64)


def fir_down(x: Tensor) -> Tensor:
    """Smooth and take every second pixel, [B, C, H, W] -> [B, C, H/2, W/2]."""
    channels = x.shape[1]
    kernel = fir_kernel(x).expand(channels, 1, 4, 4)
    return F.conv2d(x, kernel, stride=2, padding=1, groups=channels)


def fir_up(x: Tensor) -> Tensor:
    """Double the size: out[2i] = (x[i-1] + 3 x[i])/4, out[2i+1] = (3 x[i] + x[i+1])/4 per axis."""
    channels = x.shape[1]
    kernel = fir_kernel(x, gain=4.0).expand(channels, 1, 4, 4)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)


def mean_down(x: Tensor) -> Tensor:
    """Average 2x2 squares."""
    return F.avg_pool2d(x, 2)


def nearest_up(x: Tensor) -> Tensor:
    """Repeat every pixel in a 2x2 square."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def upfirdn2d(
    x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> Tensor:
    """Insert zeros, pad, convolve (a true convolution), take every `down`-th pixel.

    Args:
        x: [B, C, H, W].
        kernel: Filter [h, w], applied to each channel.
        up: Each pixel is followed by up - 1 zeros, on both axes.
        down: Stride of the result, on both axes.
        pad: Zeros before and after, on both axes; negative crops.

    Returns:
        [B, C, H', W'] with H' = floor((H * up + pad[0] + pad[1] - h) / down) + 1, W' likewise.
    """
    channels = x.shape[1]
    weight = kernel.to(x).expand(channels, 1, *kernel.shape)
    full = F.conv_transpose2d(x, weight, stride=up, groups=channels)
    before_y, before_x = (pad[0] - (size - 1) for size in kernel.shape)
    after_y, after_x = (pad[1] - (size - 1) + up - 1 for size in kernel.shape)
    return F.pad(full, (before_x, after_x, before_y, after_y))[..., ::down, ::down]
