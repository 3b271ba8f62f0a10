"""Tile-wise cosine transform and blur (spec/RDM.md sections 5.1 and 5.2).

An image is cut into s x s tiles. Both the transform and the blur act on each tile alone, so each
is one s^2 x s^2 matrix for the tile's pixels; the blur never visits the frequency domain.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache(maxsize=16)
def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix C[k, n], float64 [size, size] on the CPU."""
    k = torch.arange(size, dtype=torch.float64).unsqueeze(1)
    n = torch.arange(size, dtype=torch.float64)
    matrix: Tensor = (torch.pi * (2 * n + 1) * k / (2 * size)).cos() * (2 / size) ** 0.5
    matrix[0] = (1 / size) ** 0.5
    return matrix


def frequencies(size: int) -> Tensor:
    """Return the angular frequencies pi k / size of the DCT, float64 [size] on the CPU."""
    return torch.pi * torch.arange(size, dtype=torch.float64) / size


def tile_dct(x: Tensor, size: int) -> Tensor:
    """Replace each tile by its 2-D coefficients in place (DC at the tile's corner), [B, C, H, W].

    Raises:
        ValueError: size does not divide H and W.
    """
    matrix = dct_matrix(size).to(x.device, x.dtype)
    return apply_to_tiles(torch.kron(matrix, matrix), x)


def tile_idct(coefficients: Tensor, size: int) -> Tensor:
    """Invert tile_dct."""
    matrix = dct_matrix(size).to(coefficients.device, coefficients.dtype).T.contiguous()
    return apply_to_tiles(torch.kron(matrix, matrix), coefficients)


def attenuation(blur_sigma: Tensor, size: int, min_scale: float) -> Tensor:
    """Return the factors a[i, j] of a tile's coefficients, [B, size, size] in blur_sigma's dtype.

    a = (1 - m) exp(-(f_i^2 + f_j^2) b^2 / 2) + m, for blur_sigma b [B] and min_scale m.
    """
    squares = frequencies(size).to(blur_sigma) ** 2
    sums = squares.unsqueeze(1) + squares
    return (1 - min_scale) * torch.exp(-sums * blur_sigma[:, None, None] ** 2 / 2) + min_scale


def blur_matrix(blur_sigma: Tensor, size: int, min_scale: float) -> Tensor:
    """Return the blur of a flattened tile, m I + (1 - m) A kron A, [B, size^2, size^2].

    A = C^T diag(exp(-f^2 b^2 / 2)) C is the plain blur along one axis.
    """
    basis = dct_matrix(size).to(blur_sigma)
    decay = torch.exp(-(frequencies(size).to(blur_sigma) ** 2) * blur_sigma.unsqueeze(1) ** 2 / 2)
    axis = (basis.T * decay.unsqueeze(1)) @ basis
    both = torch.einsum("bik,bjl->bijkl", axis, axis).reshape(-1, size**2, size**2)
    return (1 - min_scale) * both + min_scale * torch.eye(size**2).to(blur_sigma)


def tile_blur(x: Tensor, blur_sigma: Tensor, size: int, min_scale: float) -> Tensor:
    """Blur each tile of [B, C, H, W] by heat dissipation; blur_sigma [B] is in pixels.

    Means of tiles are preserved; min_scale is left of the highest frequencies.

    Raises:
        ValueError: size does not divide H and W.
    """
    return apply_to_tiles(blur_matrix(blur_sigma, size, min_scale).to(x.dtype), x)


def apply_to_tiles(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply each flattened tile (row by row) of x by a matrix.

    Args:
        matrix: [s^2, s^2], or one per sample [B, s^2, s^2].
        x: [B, C, H, W].

    Raises:
        ValueError: s does not divide H and W.
    """
    size = round(matrix.shape[-1] ** 0.5)
    check_tiles(x, size)
    batch, channels, height, width = x.shape
    tiles = F.pixel_unshuffle(x, size).view(batch, channels, size**2, -1)
    if matrix.dim() == 3:
        matrix = matrix.unsqueeze(1)
    mixed = (matrix @ tiles).view(batch, channels * size**2, height // size, width // size)
    return F.pixel_shuffle(mixed, size)


def check_tiles(x: Tensor, size: int) -> None:
    """Raise ValueError unless tiles of the given edge cover images [..., H, W]."""
    height, width = x.shape[-2:]
    if height % size or width % size:
        raise ValueError(
            f"images of {height}x{width} pixels cannot be cut into {size}x{size} tiles;"
            f" use a resolution that is a multiple of upscale={size}"
        )
