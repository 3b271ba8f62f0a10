"""3x3 convolutions on processors by Winograd's minimal filtering F(2x2, 3x3).

Squares of 2x2 results come from overlapping squares of 4x4 inputs with 16 products instead of 36:
both squares and filters are transformed by sums, multiplied position by position as 16 matrix
products over the channels, and transformed back (Lavin & Gray, "Fast Algorithms for Convolutional
Neural Networks", 2016, section 4.1). The transforms only add, subtract and halve, so rounding
errors do not grow: results are nearer to float64 than those of PyTorch's convolution, whose sums
over 9 C products are longer. Larger squares would need fewer products and lose that; F(4x4, 3x3)
was no faster here.

GPU libraries choose such algorithms by themselves; the library that PyTorch uses on processors does
not. Gradients, to any order, are the same three products: the form <conv(x, u), g> is linear in x,
in the transformed filters u and in g, and its derivatives by each are the functions of the others
(_Convolve, _Spread, _Correlate). So filters are transformed once per use of a layer.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LEAST_CHANNELS = 128
"""In and out; with fewer, transforms take more time than products save."""
LEAST_NUMBERS = 8192
"""Channels times pixels of an image; below, transforms of the filters do."""
TILES_AT_ONCE = 512
"""Tiles whose transforms are in memory at a time (about: at least those of one row)."""

_FILTER = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
_TURNED = (3, 1, 2, 0)
"""Where the transform of a filter turned by 180 degrees has the rows and columns of this one's."""


def suits(x: Tensor, weight: Tensor) -> bool:
    """Tell whether `conv2d` is meant for this input and filter, and faster than PyTorch's.

    It depends on the shape of single images only, so that a batch that is split among ranks is
    computed in the same way.
    """
    return (
        type(x) is Tensor  # none without data, as in a plan of a run
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and weight.shape[1] == x.shape[1]
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and min(weight.shape[:2]) * x.shape[2] * x.shape[3] >= LEAST_NUMBERS
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and not torch.compiler.is_compiling()
    )


def transform(weight: Tensor) -> Tensor:
    """Return G w G^T of filters [O, I, 3, 3], for `conv2d`: [16, O, I], differentiable."""
    return _Transform.apply(weight)  # type: ignore[no-any-return, no-untyped-call]


def conv2d(x: Tensor, filters: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with stride 1 and a border of one zero, as F.conv2d(x, weight, bias, padding=1).

    Args:
        x: float32 [B, I, H, W] with even H and W, fastest in channels_last.
        filters: `transform(weight)`. (Gradients take the filters to be some weight's: sums of
            those of all uses are right for the weight, not for filters that are set freely.)
        bias: [O].

    Returns:
        [B, O, H, W] in channels_last, differentiable to any order.
    """
    return _Convolve.apply(x, filters, bias)  # type: ignore[no-any-return, no-untyped-call]


class _Transform(torch.autograd.Function):
    """u = G w G^T of filters w [O, I, 3, 3], as [16, O, I]."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        both = torch.kron(_FILTER, _FILTER).to(weight.dtype)
        return (both @ weight.reshape(-1, 9).t()).view(16, *weight.shape[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Restore.apply(gradients[0])  # type: ignore[no-any-return, no-untyped-call]


class _Restore(torch.autograd.Function):
    """The transpose of _Transform; autograd's own order of products takes three times as long."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        by_offset = torch.kron(_FILTER, _FILTER).t().to(u.dtype) @ u.view(16, -1)
        return by_offset.t().contiguous().view(*u.shape[1:], 3, 3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Transform.apply(gradients[0])  # type: ignore[no-any-return, no-untyped-call]


class _Convolve(torch.autograd.Function):
    """conv(x, u) + bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, u)
        return _multiply(x, u.transpose(1, 2), bias, order=(0, 1, 2, 3))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, u) = gradients, ctx.saved_tensors
        by_x, by_u, by_bias = ctx.needs_input_grad
        return (
            _Spread.apply(g, u) if by_x else None,  # type: ignore[no-untyped-call]
            _Correlate.apply(x, g) if by_u else None,  # type: ignore[no-untyped-call]
            g.sum((0, 2, 3)) if by_bias else None,
        )


class _Spread(torch.autograd.Function):
    """The transpose of conv(., u): a convolution with the filters turned around."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, u: Tensor) -> Tensor:
        ctx.save_for_backward(g, u)
        return _multiply(g, u, None, order=_TURNED)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (h,), (g, u) = gradients, ctx.saved_tensors
        by_g, by_u = ctx.needs_input_grad
        return (
            _Convolve.apply(h, u, None) if by_g else None,  # type: ignore[no-untyped-call]
            _Correlate.apply(h, g) if by_u else None,  # type: ignore[no-untyped-call]
        )


class _Correlate(torch.autograd.Function):
    """The transpose of conv(x, .), from g to the transformed filters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor) -> Tensor:
        ctx.save_for_backward(x, g)
        return _gather(x, g)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (h,), (x, g) = gradients, ctx.saved_tensors
        by_x, by_g = ctx.needs_input_grad
        return (
            _Spread.apply(g, h) if by_x else None,  # type: ignore[no-untyped-call]
            _Convolve.apply(x, h, None) if by_g else None,  # type: ignore[no-untyped-call]
        )


def _multiply(x: Tensor, u: Tensor, bias: Tensor | None, order: tuple[int, ...]) -> Tensor:
    """Return the convolution of x [B, I, H, W] with transformed filters [16, I, O].

    Args:
        x: The images.
        u: The filters.
        bias: What is added, [O].
        order: Rows and columns of the tiles' transforms by which those of u are multiplied, and
            those of the products that this gives.
    """
    shape = (len(x), u.shape[2], *x.shape[2:])
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    blocks, padded = _blocks(out), _padded(x)
    for images, rows in _pieces(x):
        tiles = _tiles(padded[images], rows, order)
        products = _scratch(x, "products", 16, tiles.shape[1], u.shape[2])
        torch.bmm(tiles, u, out=products)
        _assemble(products, blocks[images, rows], bias, order)
    return out


def _gather(x: Tensor, g: Tensor) -> Tensor:
    """Return the sum over tiles of the transforms of g times those of x, [16, O, I]."""
    blocks, padded = _blocks(g), _padded(x)
    total: Tensor | None = None
    for images, rows in _pieces(x):
        pair = _spread_blocks(blocks[images, rows]).transpose(1, 2), _tiles(padded[images], rows)
        total = torch.bmm(*pair) if total is None else total.baddbmm_(*pair)
    assert total is not None
    return total


def _pieces(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of images and of rows of tiles, so that their tiles stay in the caches."""
    batch, height, width = len(x), x.shape[2] // 2, x.shape[3] // 2
    at_once = max(1, TILES_AT_ONCE // (height * width))
    rows = height if at_once > 1 else min(height, max(1, TILES_AT_ONCE // width))
    for image in range(0, batch, at_once):
        for row in range(0, height, rows):
            yield slice(image, image + at_once), slice(row, min(row + rows, height))


def _blocks(x: Tensor) -> Tensor:
    """Return [B, H / 2, 2, W / 2, 2, C] of x [B, C, H, W], a view if x is in channels_last."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)


def _padded(x: Tensor) -> Tensor:
    """Return [B, H + 2, W + 2, C] with a border of zeros."""
    batch, channels, height, width = x.shape
    out = _scratch(x, "padded", batch, height + 2, width + 2, channels)
    out[:, :: height + 1] = 0
    out[:, :, :: width + 1] = 0
    out[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    return out


def _tiles(padded: Tensor, rows: slice, order: tuple[int, ...] = (0, 1, 2, 3)) -> Tensor:
    """Return B^T d B of the 4x4 squares of some rows of tiles, [16, tiles, C]."""
    padded = padded[:, 2 * rows.start : 2 * rows.stop + 2]
    batch, height, width, channels = padded.shape
    high, wide = height // 2 - 1, width // 2 - 1
    half = _scratch(padded, "half", 4, batch, high, width, channels)
    _differences([padded[:, i : i + 2 * high : 2] for i in range(4)], half.unbind(0), order)
    out = _scratch(padded, "tiles", 4, 4, batch, high, wide, channels)
    _differences([half[:, :, :, i : i + 2 * wide : 2] for i in range(4)], out.unbind(1), order)
    return out.view(16, -1, channels)


def _differences(d: list[Tensor], out: tuple[Tensor, ...], order: tuple[int, ...]) -> None:
    torch.sub(d[0], d[2], out=out[order[0]])
    torch.add(d[1], d[2], out=out[order[1]])
    torch.sub(d[2], d[1], out=out[order[2]])
    torch.sub(d[1], d[3], out=out[order[3]])


def _assemble(products: Tensor, out: Tensor, bias: Tensor | None, order: tuple[int, ...]) -> None:
    """Write A^T m A of products [16, tiles, O] (+ bias) to out [B, H / 2, 2, W / 2, 2, O]."""
    m = products.view(4, 4, *out.shape[:2], out.shape[3], out.shape[5])
    half = _scratch(m, "half", 2, *m.shape[1:])
    _sums(m, half.unbind(0), order)
    if bias is not None:  # the corner that enters all four pixels once
        half[:, order[1]] += bias
    for row in (0, 1):
        _sums(half[row], out[:, :, row].unbind(3), order)


def _sums(m: Tensor, out: tuple[Tensor, ...], order: tuple[int, ...]) -> None:
    first, second, third, fourth = (m[i] for i in order)
    torch.add(second, third, out=out[0]).add_(first)
    torch.sub(second, third, out=out[1]).sub_(fourth)


def _spread_blocks(g: Tensor) -> Tensor:
    """Return A g A^T of the 2x2 blocks of g [B, H / 2, 2, W / 2, 2, O]: [16, tiles, O]."""
    batch, high, _, wide, _, channels = g.shape
    half = _scratch(g, "half", 4, batch, high, wide, 2, channels)
    _copies(g[:, :, 0], g[:, :, 1], half.unbind(0))
    out = _scratch(g, "products", 4, 4, batch, high, wide, channels)
    _copies(half[..., 0, :], half[..., 1, :], out.unbind(1))
    return out.view(16, -1, channels)


def _copies(first: Tensor, second: Tensor, out: tuple[Tensor, ...]) -> None:
    out[0].copy_(first)
    torch.add(first, second, out=out[1])
    torch.sub(first, second, out=out[2])
    torch.neg(second, out=out[3])


class _Scratch(threading.local):
    """Memory of intermediate results, kept: given back, the system would have to clear it anew."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}


_SCRATCH = _Scratch()


def _scratch(like: Tensor, name: str, *shape: int) -> Tensor:
    """Return memory of a thread that the next call of this name takes again."""
    size, kept = math.prod(shape), _SCRATCH.kept.get(name)
    if kept is None or kept.numel() < size or kept.dtype != like.dtype:
        with torch.inference_mode(False):
            kept = _SCRATCH.kept[name] = torch.empty(size, dtype=like.dtype)
    return kept[:size].view(shape)
