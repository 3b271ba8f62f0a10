"""Geometric augmentation, whose parameters condition the network (docs/reference/rdm.md#7).

Flips act on pixels; scaling, rotation, anisotropy and translation are one affine resampling between
a 2x up-sampling and down-sampling with the sym6 wavelet's low-pass filter. Geometry is drawn and
composed on the CPU, because it decides the size of the padding: nothing waits for the device.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from models.sample_rng import Draws

LABEL_WIDTH = 9
SCALE_STD = 0.2
ANISOTROPY_STD = 0.2
TRANSLATION_STD = 0.125
SYM6_LOW_PASS = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
MARGIN = len(SYM6_LOW_PASS) // 4  # pixels that the filters reach beyond the image


def augment(images: Tensor, probability: float, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return transformed images and the labels that describe the transformations.

    Args:
        images: Float32 [B, C, H, W].
        probability: Probability of each transformation (1/2 for the hflip, if this is positive).
        draws: Source of the geometry, on the CPU.

    Returns:
        Images [B, C, H, W], and float32 [B, 9]: hflip, vflip, scale, cos(rotation) - 1,
        sin(rotation), anisotropy times cosine and sine of its direction, translation x, y.
    """
    gate = _Gate(probability, draws)
    hflip = gate(draws.randint(2), multiplier=1e8)
    vflip = gate(draws.randint(2))
    scale = gate(draws.randn(()))
    rotation = gate((draws.rand() * 2 - 1) * math.pi)
    anisotropy = draws.randn(())
    direction = (draws.rand() * 2 - 1) * math.pi
    anisotropy = gate(anisotropy)
    direction = torch.where(draws.rand() < 0.5, direction, 0)
    shift = draws.randn((2,))
    shift = torch.where((draws.rand() < probability).unsqueeze(1), shift, 0)
    labels = torch.stack(
        [hflip, vflip, scale, rotation.cos() - 1, rotation.sin(),
         anisotropy * direction.cos(), anisotropy * direction.sin(), shift[:, 0], shift[:, 1]],
        dim=1)  # fmt: skip
    images = _flip_where(_flip_where(images, hflip, 3), vflip, 2)
    height, width = images.shape[2:]
    stretch = 2 ** (ANISOTROPY_STD * anisotropy)
    zoom = 2 ** (SCALE_STD * scale)
    inverse = _compose(
        _scaling(1 / zoom, 1 / zoom),
        _rotation(rotation),
        _rotation(-direction),
        _scaling(1 / stretch, stretch),
        _rotation(direction),
        _translation(*(-TRANSLATION_STD * shift * torch.tensor([width, height])).unbind(1)),
    )
    return warp(images, inverse), labels.to(images.device, non_blocking=True)


class _Gate:
    """Lets each sample's value through with a probability, else makes it 0."""

    def __init__(self, probability: float, draws: Draws) -> None:
        self.probability = probability
        self.draws = draws

    def __call__(self, values: Tensor, multiplier: float = 1.0) -> Tensor:
        is_open = self.draws.rand() < multiplier * self.probability
        return torch.where(is_open, values, 0).to(torch.float32)


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Resample images by affine maps from output to input pixels, origin at the image's centre.

    Args:
        images: [B, C, H, W].
        inverse: [B, 3, 3] on the CPU, acting on (x, y, 1).
    """
    channels, (height, width) = images.shape[1], images.shape[2:]
    left, top, right, bottom = _margins(inverse, width, height)
    padded = F.pad(images, (left, right, top, bottom), mode="reflect")
    half = torch.tensor(0.5)
    inverse = _translation((left - right) * half, (top - bottom) * half) @ inverse
    inverse = _compose(_scaling(2, 2), inverse, _scaling(half, half))
    inverse = _compose(_translation(-half, -half), inverse, _translation(half, half))
    taps = torch.tensor(SYM6_LOW_PASS).to(images, non_blocking=True)
    fine = _upsample(_upsample(padded, taps.flip(0), 3), taps.flip(0), 2)
    canvas = ((height + 2 * MARGIN) * 2, (width + 2 * MARGIN) * 2)
    to_unit = _scaling(2 / fine.shape[3], 2 / fine.shape[2])
    inverse = _compose(to_unit, inverse, _scaling(canvas[1] / 2, canvas[0] / 2))
    size = [len(images), channels, *canvas]
    grid = F.affine_grid(inverse[:, :2].to(images, non_blocking=True), size, align_corners=False)
    fine = F.grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _downsample(_downsample(fine, taps, 3), taps, 2)


def _margins(inverse: Tensor, width: int, height: int) -> list[int]:
    """Return the reflected border that the batch needs: left, top, right, bottom in pixels."""
    cx, cy = (width - 1) / 2, (height - 1) / 2
    corners = torch.tensor([[-cx, -cy, 1], [cx, -cy, 1], [cx, cy, 1], [-cx, cy, 1]]).T
    x, y, _ = (inverse @ corners).unbind(dim=1)
    reach = torch.stack([-x.min(), -y.min(), x.max(), y.max()])
    reach = reach + 2 * MARGIN - torch.tensor([cx, cy, cx, cy])
    limits = torch.tensor([width - 1, height - 1, width - 1, height - 1])
    return [int(margin) for margin in reach.clamp(min=0).minimum(limits).ceil()]


def _flip_where(images: Tensor, chosen: Tensor, dim: int) -> Tensor:
    mask = (chosen > 0).view(-1, 1, 1, 1).to(images.device, non_blocking=True)
    return torch.where(mask, images.flip(dim), images)


def _upsample(x: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Double [B, C, H, W] along dim: zeros in between (none at the end), then the filter."""
    shape = list(x.shape)
    shape[dim] = 2 * shape[dim] - 1
    spread = x.new_zeros(shape)
    spread[(slice(None),) * dim + (slice(None, None, 2),)] = x
    return _filter(spread, taps, dim, stride=1, padding=(len(taps) + 1) // 2)


def _downsample(x: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Halve [B, C, H, W] along dim by the filter, and cut the margin off both sides."""
    x = _filter(x, taps, dim, stride=2, padding=(len(taps) - 1) // 2)
    return x.narrow(dim, MARGIN, x.shape[dim] - 2 * MARGIN)


def _filter(x: Tensor, taps: Tensor, dim: int, stride: int, padding: int) -> Tensor:
    channels = x.shape[1]
    kernel = taps.view(1, 1, -1, 1) if dim == 2 else taps.view(1, 1, 1, -1)
    strides, paddings = ((stride, 1), (padding, 0)) if dim == 2 else ((1, stride), (0, padding))
    return F.conv2d(
        x, kernel.expand(channels, -1, -1, -1), stride=strides, padding=paddings, groups=channels
    )


def _compose(*matrices: Tensor) -> Tensor:
    return reduce(torch.matmul, matrices)


def _matrix(rows: list[list[Tensor | float]]) -> Tensor:
    entries = [torch.as_tensor(entry, dtype=torch.float32) for row in rows for entry in row]
    shape = torch.broadcast_shapes(*(entry.shape for entry in entries))  # type: ignore[no-untyped-call]
    return torch.stack([entry.expand(shape) for entry in entries], -1).view(*shape, 3, 3)


def _translation(x: Tensor, y: Tensor) -> Tensor:
    return _matrix([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _scaling(x: Tensor | float, y: Tensor | float) -> Tensor:
    return _matrix([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _matrix([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
