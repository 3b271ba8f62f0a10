"""The one-level Haar transform of images as closed forms: strided sums, no matrices, no padding.

Subband order is LL, LH, HL, HH; the first letter filters along the height, so that LH is
PyWavelets' cV and HL its cH. Signs are PyWavelets' (spec/WAVEDIFF.md section 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def haar_dwt(x: Tensor, scale: float = 1.0) -> Tensor:
    """Return `scale` times the orthonormal Haar coefficients, [B, C, H, W] -> [B, 4C, H/2, W/2].

    The bands follow each other as groups of C channels: LL, LH, HL, HH. Images in [-1, 1] have
    coefficients in [-2, 2] at scale 1; the networks work at scale 1/2, where LL is the 2x2 mean.

    Raises:
        ValueError: H or W is odd.
    """
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(
            f"the Haar transform needs even sizes, got {x.shape[-2]}x{x.shape[-1]} pixels;"
            " crop or resize the images"
        )
    return _analysis(x, 0.5 * scale)


def haar_idwt(y: Tensor, scale: float = 1.0) -> Tensor:
    """Invert haar_dwt of the same scale exactly, [B, 4C, H, W] -> [B, C, 2H, 2W].

    Raises:
        ValueError: The channels are no four groups.
    """
    if y.shape[1] % 4:
        raise ValueError(f"{y.shape[1]} channels are not four subbands; expected a multiple of 4")
    return _synthesis(y, 0.5 / scale)


class _Analysis(torch.autograd.Function):
    """The four signed sums of each 2x2 square, times a factor; its gradient is the synthesis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return _analyse(x, factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _synthesis(gradients[0], ctx.factor), None


class _Synthesis(torch.autograd.Function):
    """The transpose of the analysis."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return _synthesise(y, factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _analysis(gradients[0], ctx.factor), None


def _analysis(x: Tensor, factor: float) -> Tensor:
    return _Analysis.apply(x, factor)  # type: ignore[no-any-return, no-untyped-call]


def _synthesis(y: Tensor, factor: float) -> Tensor:
    return _Synthesis.apply(y, factor)  # type: ignore[no-any-return, no-untyped-call]


def _analyse(x: Tensor, factor: float) -> Tensor:
    even, odd = x[..., ::2, :], x[..., 1::2, :]
    low, high = even + odd, even - odd
    bands = [
        low[..., ::2] + low[..., 1::2],
        low[..., ::2] - low[..., 1::2],
        high[..., ::2] + high[..., 1::2],
        high[..., ::2] - high[..., 1::2],
    ]
    return torch.cat(bands, 1).mul_(factor)


def _synthesise(y: Tensor, factor: float) -> Tensor:
    ll, lh, hl, hh = (y * factor).chunk(4, 1)
    low_even, low_odd = ll + lh, ll - lh
    high_even, high_odd = hl + hh, hl - hh
    batch, channels, height, width = ll.shape
    x = ll.new_empty(batch, channels, 2 * height, 2 * width)
    x[..., ::2, ::2] = low_even + high_even
    x[..., ::2, 1::2] = low_odd + high_odd
    x[..., 1::2, ::2] = low_even - high_even
    x[..., 1::2, 1::2] = low_odd - high_odd
    return x
