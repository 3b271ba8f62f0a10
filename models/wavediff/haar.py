"""The one-level Haar transform of images in closed form: strided sums and differences of pixels.

Rows are combined first, then the pixels of a row, into memory that is laid out like the input
(channels_last or not): no matrices, no padding, no permuted copies. The official layer
multiplies by two dense (N/2) x N matrices per axis. Subband order is LL, LH, HL, HH;
the first letter filters along the height, so that LH is PyWavelets' cV and HL its cH. Signs are
PyWavelets' (docs/reference/wavediff.md#1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def haar_dwt(x: Tensor, scale: float = 1.0) -> Tensor:
    """Return `scale` times the orthonormal Haar coefficients, [B, C, H, W] -> [B, 4C, H/2, W/2].

    The bands follow each other as groups of C channels: LL, LH, HL, HH. Images in [-1, 1] have
    coefficients in [-2, 2] at scale 1; the networks work at scale 1/2, where LL is the 2x2 mean.

    Raises:
        ValueError: H or W is odd.
    """
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(
            f"the Haar transform needs even sizes, got {height}x{width} pixels;"
            " crop or resize the images"
        )
    return _analyse(x, 0.5 * scale)


def haar_idwt(y: Tensor, scale: float = 1.0) -> Tensor:
    """Invert haar_dwt of the same scale exactly, [B, 4C, H, W] -> [B, C, 2H, 2W].

    Raises:
        ValueError: The channels are no four groups.
    """
    if y.shape[1] % 4:
        raise ValueError(f"{y.shape[1]} channels are not four subbands; expected a multiple of 4")
    return _synthesise(y, 0.5 / scale)


class _Analysis(torch.autograd.Function):
    """Bands of factor * (+-1 +-1 +-1 +-1); its gradient is the synthesis of the same factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        if torch.compiler.is_compiling():
            return _bands(x * factor)
        _, channels, height, width = x.shape
        bands = _empty_like(x, 4 * channels, height // 2, width // 2)
        ll, lh, hl, hh = bands.chunk(4, 1)
        x = x * factor
        upper, lower = x[:, :, ::2], x[:, :, 1::2]
        for rows, low, high in ((upper + lower, ll, lh), (upper - lower, hl, hh)):
            torch.add(rows[..., ::2], rows[..., 1::2], out=low)
            torch.sub(rows[..., ::2], rows[..., 1::2], out=high)
        return bands

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _synthesise(gradients[0], ctx.factor), None


class _Synthesis(torch.autograd.Function):
    """The transpose of _Analysis of the same factor, which is its gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        if torch.compiler.is_compiling():
            return _pixels(y * factor)
        _, channels, height, width = y.shape
        x = _empty_like(y, channels // 4, 2 * height, 2 * width)
        ll_lh, hl_hh = (y * factor).chunk(2, 1)
        for rows, bands in ((x[:, :, ::2], ll_lh + hl_hh), (x[:, :, 1::2], ll_lh - hl_hh)):
            low, high = bands.chunk(2, 1)
            torch.add(low, high, out=rows[..., ::2])
            torch.sub(low, high, out=rows[..., 1::2])
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _analyse(gradients[0], ctx.factor), None


def _analyse(x: Tensor, factor: float) -> Tensor:
    return _Analysis.apply(x, factor)  # type: ignore[no-any-return, no-untyped-call]


def _synthesise(y: Tensor, factor: float) -> Tensor:
    return _Synthesis.apply(y, factor)  # type: ignore[no-any-return, no-untyped-call]


def _bands(x: Tensor) -> Tensor:
    """Return what _Analysis does of factor 1, without writing into parts of memory.

    torch.compile knows no such `out`, and fuses; exported graphs would index every pixel.
    """
    upper, lower = x[:, :, ::2], x[:, :, 1::2]
    pairs = [(rows[..., ::2], rows[..., 1::2]) for rows in (upper + lower, upper - lower)]
    return torch.cat([band for left, right in pairs for band in (left + right, left - right)], 1)


def _pixels(y: Tensor) -> Tensor:
    """Return what _Synthesis does of factor 1, as `_bands`."""
    ll_lh, hl_hh = y.chunk(2, 1)
    pairs = [rows.chunk(2, 1) for rows in (ll_lh + hl_hh, ll_lh - hl_hh)]
    squares = [pixel for low, high in pairs for pixel in (low + high, low - high)]
    return F.pixel_shuffle(torch.stack(squares, 2).flatten(1, 2), 2)


def _empty_like(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return memory of another size that is laid out like a tensor."""
    channels_last = like.stride(1) < like.stride(3)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    size = (like.shape[0], channels, height, width)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)
