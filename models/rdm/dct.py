"""Tile-wise cosine transform and blur (docs/reference/rdm.md#5.1, #5.2).

An image is cut into s x s tiles. Both the transform and the blur are small matrices that multiply a
tile from both sides; the blur never visits the frequency domain.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

CPU = torch.device("cpu")


@lru_cache(maxsize=64)
def dct_matrix(size: int, device: torch.device = CPU) -> Tensor:
    """Return the orthonormal DCT-II matrix C[k, n], float64 [size, size].

    Cached by device: copying it in every training step would wait for the device.
    """
    k = torch.arange(size, dtype=torch.float64).unsqueeze(1)
    n = torch.arange(size, dtype=torch.float64)
    matrix: Tensor = (torch.pi * (2 * n + 1) * k / (2 * size)).cos() * (2 / size) ** 0.5
    matrix[0] = (1 / size) ** 0.5
    return matrix.to(device)


def frequencies(size: int, device: torch.device = CPU) -> Tensor:
    """Return the angular frequencies pi k / size of the DCT, float64 [size]."""
    return torch.pi * torch.arange(size, dtype=torch.float64, device=device) / size


def attenuation(blur_sigma: Tensor, size: int, min_scale: float) -> Tensor:
    """Return the factors a[i, j] of a tile's coefficients, [B, size, size] in blur_sigma's dtype.

    a = (1 - m) exp(-(f_i^2 + f_j^2) b^2 / 2) + m, for blur_sigma b [B] and min_scale m.
    """
    squares = frequencies(size, blur_sigma.device).to(blur_sigma.dtype) ** 2
    sums = squares.unsqueeze(1) + squares
    return (1 - min_scale) * torch.exp(-sums * blur_sigma[:, None, None] ** 2 / 2) + min_scale


def tile_blur(x: Tensor, blur_sigma: Tensor, size: int, min_scale: float) -> Tensor:
    """Blur each tile of [B, C, H, W] by heat dissipation; blur_sigma [B] is in pixels.

    Means of tiles are preserved; min_scale is left of the highest frequencies.

    Raises:
        ValueError: size does not divide H and W.
    """
    axes = blur_axes(blur_sigma, size, min_scale).to(x.dtype)
    return map_tile_axes(axes, x, added=min_scale)


def blur_axes(blur_sigma: Tensor, size: int, min_scale: float) -> Tensor:
    """Return the blur along one axis, A = sqrt(1 - m) C^T diag(exp(-f^2 b^2 / 2)) C, [B, s, s]."""
    device = blur_sigma.device
    basis, frequency = dct_matrix(size, device), frequencies(size, device)
    decay = torch.exp(-(frequency * blur_sigma.unsqueeze(1)).square() / 2)
    plain: Tensor = (basis.T * decay.unsqueeze(1)) @ basis
    return plain.mul_((1 - min_scale) ** 0.5)


def map_tile_axes(matrix: Tensor, x: Tensor, added: float = 0.0) -> Tensor:
    """Replace each tile P of x by matrix P matrix^T + added P.

    Args:
        matrix: [s, s], or one per sample [B, s, s].
        x: [B, C, H, W].
        added: Factor of the unchanged tile.

    Raises:
        ValueError: s does not divide H and W.
    """
    size = matrix.shape[-1]
    check_tiles(x, size)
    batch, width = x.shape[0], x.shape[3]
    matrices = matrix.expand(batch, size, size)
    across = x.reshape(batch, -1, size) @ matrices.mT
    mapped: Tensor = matrices.unsqueeze(1) @ across.view(batch, -1, size, width)
    mapped = mapped.view(x.shape)
    return mapped.add_(x, alpha=added) if added else mapped


def map_tiles(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply each flattened tile (row by row) of x by a matrix.

    Args:
        matrix: [s^2, s^2].
        x: [B, C, H, W].

    Raises:
        ValueError: s does not divide H and W.
    """
    size = round(matrix.shape[0] ** 0.5)
    check_tiles(x, size)
    batch, width = x.shape[0], x.shape[3]
    strips = x.reshape(batch, -1, size, width // size, size).permute(0, 2, 4, 1, 3)
    mixed = matrix @ strips.reshape(batch, size**2, -1)
    tiles = mixed.view(strips.shape).permute(0, 3, 1, 4, 2)
    return tiles.reshape(x.shape)


def check_tiles(x: Tensor, size: int) -> None:
    """Raise ValueError unless tiles of the given edge cover images [..., H, W]."""
    height, width = x.shape[-2:]
    if height % size or width % size:
        raise ValueError(
            f"images of {height}x{width} pixels cannot be cut into {size}x{size} tiles;"
            f" use a resolution that is a multiple of upscale={size}"
        )
