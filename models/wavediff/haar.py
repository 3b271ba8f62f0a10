"""The one-level Haar transform of images, exact and near the speed of memory.

The four pixels of each 2x2 square are mixed by a 4x4 orthogonal matrix of signs: one permuting copy
and one product with a constant, where the official layer multiplies by two dense (N/2) x N matrices
per axis. Subband order is LL, LH, HL, HH; the first letter filters along the height, so that LH is
PyWavelets' cV and HL its cH. Signs are PyWavelets' (spec/WAVEDIFF.md section 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

SIGNS = (
    (1, 1, 1, 1),  # LL: sum of the square's pixels, row by row
    (1, -1, 1, -1),  # LH: high along the width
    (1, 1, -1, -1),  # HL: high along the height
    (1, -1, -1, 1),  # HH
)


def haar_dwt(x: Tensor, scale: float = 1.0) -> Tensor:
    """Return `scale` times the orthonormal Haar coefficients, [B, C, H, W] -> [B, 4C, H/2, W/2].

    The bands follow each other as groups of C channels: LL, LH, HL, HH. Images in [-1, 1] have
    coefficients in [-2, 2] at scale 1; the networks work at scale 1/2, where LL is the 2x2 mean.

    Raises:
        ValueError: H or W is odd.
    """
    batch, channels, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(
            f"the Haar transform needs even sizes, got {height}x{width} pixels;"
            " crop or resize the images"
        )
    squares = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    pixels = squares.permute(0, 3, 5, 1, 2, 4).reshape(batch, 4, -1)
    bands = torch.matmul(_mixing(x, 0.5 * scale), pixels)
    return bands.view(batch, 4 * channels, height // 2, width // 2)


def haar_idwt(y: Tensor, scale: float = 1.0) -> Tensor:
    """Invert haar_dwt of the same scale exactly, [B, 4C, H, W] -> [B, C, 2H, 2W].

    Raises:
        ValueError: The channels are no four groups.
    """
    batch, channels, height, width = y.shape
    if channels % 4:
        raise ValueError(f"{channels} channels are not four subbands; expected a multiple of 4")
    pixels = torch.matmul(_mixing(y, 0.5 / scale).t(), y.reshape(batch, 4, -1))
    squares = pixels.view(batch, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
    return squares.reshape(batch, channels // 4, 2 * height, 2 * width)


def _mixing(like: Tensor, factor: float) -> Tensor:
    signs = torch.tensor(SIGNS, dtype=like.dtype) * factor
    return signs.to(like.device, non_blocking=True)  # else a GPU would be waited for
