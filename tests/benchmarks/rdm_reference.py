"""The definitions, written out plainly: what the benchmarks measure against.

Transforms by FFT per tile, block noise by s^2 rolls, sums in float64, samplers in DCT space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.rdm.process import RelayProcess


def dct_last(x: Tensor) -> Tensor:
    """Orthonormal DCT-II along the last axis, by an FFT of the reordered values."""
    n = x.shape[-1]
    reordered = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    phase = -torch.arange(n, dtype=x.dtype, device=x.device) * torch.pi / (2 * n)
    spectrum = torch.fft.fft(reordered)
    out = 2 * (spectrum.real * phase.cos() - spectrum.imag * phase.sin())
    scale = torch.full((n,), math.sqrt(1 / (2 * n)), dtype=x.dtype, device=x.device)
    scale[0] = math.sqrt(1 / (4 * n))
    return out * scale


def idct_last(x: Tensor) -> Tensor:
    """Invert dct_last."""
    n = x.shape[-1]
    scale = torch.full((n,), math.sqrt(2 * n), dtype=x.dtype, device=x.device)
    scale[0] = math.sqrt(4 * n)
    values = x * scale / 2
    phase = torch.arange(n, dtype=x.dtype, device=x.device) * torch.pi / (2 * n)
    imaginary = torch.cat([torch.zeros_like(values[..., :1]), -values.flip(-1)[..., :-1]], dim=-1)
    real_part = values * phase.cos() - imaginary * phase.sin()
    imaginary_part = values * phase.sin() + imaginary * phase.cos()
    reordered = torch.fft.ifft(torch.complex(real_part, imaginary_part)).real
    out = torch.empty_like(reordered)
    out[..., ::2] = reordered[..., : n - n // 2]
    out[..., 1::2] = reordered[..., n - n // 2 :].flip(-1)
    return out


def on_tiles(x: Tensor, size: int, transform) -> Tensor:
    """Apply a 1-D transform to both axes of every tile of [B, C, H, W]."""
    b, c, h, w = x.shape
    tiles = x.view(b, c, h // size, size, w // size, size).transpose(3, 4)
    tiles = transform(transform(tiles).transpose(-1, -2)).transpose(-1, -2)
    return tiles.transpose(3, 4).reshape(b, c, h, w)


def tile_dct(x: Tensor, size: int) -> Tensor:
    return on_tiles(x, size, dct_last)


def tile_idct(x: Tensor, size: int) -> Tensor:
    return on_tiles(x, size, idct_last)


def blur(x: Tensor, blur_sigma: Tensor, size: int, min_scale: float) -> Tensor:
    frequency = torch.pi * torch.arange(size) / size
    squares = frequency.square().unsqueeze(1) + frequency.square()
    factor = torch.exp(-squares * blur_sigma.view(-1, 1, 1) ** 2 / 2) * (1 - min_scale) + min_scale
    tiled = factor.repeat(1, x.shape[2] // size, x.shape[3] // size).unsqueeze(1)
    return tile_idct(tile_dct(x, size) * tiled, size)


def block_noise(gaussian: Tensor, size: int) -> Tensor:
    shifts = [gaussian.roll((i, j), (-2, -1)) for i in range(size) for j in range(size)]
    return sum(shifts) / size


def corrupt(images: Tensor, process: RelayProcess) -> tuple[Tensor, Tensor]:
    """Return noisy images and weights, with the official draws and promotions."""
    time = torch.rand(len(images), 1, 1, 1)
    smallest = process.prob_length * torch.special.ndtr(
        torch.tensor((math.log(process.truncate_sigma) - process.p_mean) / process.p_std)
    )
    time = time.clamp(min=float(smallest))
    blur_sigma = process.blur_sigma_max * (torch.pi * time / 2).sin() ** 2
    quantile = torch.special.ndtri((time * process.prob_length).double())
    sigma = (process.p_mean + process.p_std * quantile).exp()
    weight = (sigma**2 + process.sigma_data**2) / (sigma * process.sigma_data) ** 2
    blurred = blur(images, blur_sigma, process.upscale, process.min_scale)
    torch.randn_like(images)  # the official loss draws this and throws it away
    noise = torch.randn_like(images) * sigma
    blocks = block_noise(torch.randn_like(images), process.upscale)
    return blurred + noise + blocks * sigma * process.block_noise_alpha, weight.clamp(max=1e5)


def heun_step(
    x: Tensor, first: Tensor, second: Tensor, noises: tuple[Tensor, Tensor],
    a: Tensor, a_next: Tensor, t: float, t_next: float, eta: float, size: int,
) -> Tensor:  # fmt: skip
    """One relay step in DCT space, outputs and noise given (docs/reference/rdm.md#9.3)."""
    edge = x.shape[-1] // size
    a, a_next = a.repeat(edge, edge), a_next.repeat(edge, edge)
    gamma = math.sqrt(1 - eta**2) * t_next / t
    u = tile_dct(x, size)
    slope = (u - tile_dct(first, size)) / t
    keep, move = a_next + gamma - gamma * a, t * (gamma * a - a_next)
    middle = tile_idct(keep * u + move * slope, size) + eta * t_next * noises[0]
    slope_next = (tile_dct(middle, size) - tile_dct(second, size)) / t_next
    out = tile_idct(keep * u + move * (slope + slope_next) / 2, size)
    return out + eta * t_next * noises[1]
