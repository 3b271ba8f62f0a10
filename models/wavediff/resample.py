"""FIR resampling with the kernel (1, 3, 3, 1), as depth-wise convolutions without zero-stuffing.

Images are zero outside (docs/reference/wavediff.md#3.1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel(like: Tensor, gain: float = 1.0) -> Tensor:
    """Return the 4x4 smoothing kernel, its sum being `gain`, in the dtype and device of `like`."""
    taps = torch.tensor(_TAPS, dtype=like.dtype)
    kernel = torch.outer(taps, taps) * (gain / 64)
    return kernel.to(like.device, non_blocking=True)  # else a GPU would be waited for


def fir_down(x: Tensor) -> Tensor:
    """Smooth and take every second pixel, [B, C, H, W] -> [B, C, H/2, W/2]."""
    return _down(x, 1.0)


def fir_up(x: Tensor) -> Tensor:
    """Double the size: out[2i] = (x[i-1] + 3 x[i])/4, out[2i+1] = (3 x[i] + x[i+1])/4 per axis."""
    return _up(x, 4.0)


class _Down(torch.autograd.Function):
    """Strided depth-wise convolution.

    Its gradient is _Up, whose gradient is _Down again: R1 differentiates twice, and PyTorch's own
    second derivative of a depth-wise convolution convolves channel by channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float) -> Tensor:
        ctx.gain = gain
        return F.conv2d(x, _depthwise(x, gain), stride=2, padding=1, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _up(gradients[0], ctx.gain), None


class _Up(torch.autograd.Function):
    """Strided depth-wise transposed convolution, the transpose of _Down."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float) -> Tensor:
        ctx.gain = gain
        return F.conv_transpose2d(x, _depthwise(x, gain), stride=2, padding=1, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _down(gradients[0], ctx.gain), None


def _down(x: Tensor, gain: float) -> Tensor:
    return _Down.apply(x, gain)  # type: ignore[no-any-return, no-untyped-call]


def _up(x: Tensor, gain: float) -> Tensor:
    return _Up.apply(x, gain)  # type: ignore[no-any-return, no-untyped-call]


def _depthwise(x: Tensor, gain: float) -> Tensor:
    return fir_kernel(x, gain).repeat(x.shape[1], 1, 1, 1)


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
