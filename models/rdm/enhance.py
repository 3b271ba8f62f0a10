"""The 8-bit operations of the official scripts before saving (docs/reference/rdm.md#10.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

OPERATIONS = ("brightness", "color", "contrast")


def check_operations(operations: Sequence[tuple[str, float]]) -> None:
    """Raise ValueError if an operation is unknown, or its factor is negative or not finite."""
    for name, factor in operations:
        if name not in OPERATIONS:
            raise ValueError(f"enhance operation {name!r} is not one of {', '.join(OPERATIONS)}")
        if not 0 <= factor < math.inf:
            raise ValueError(f"enhance factor {factor} of {name} must be 0 or more, and finite")


def enhance(images: Tensor, operations: Sequence[tuple[str, float]]) -> Tensor:
    """Apply operations in order; bit-exact with Pillow's ImageEnhance.

    Each is v' = clip(trunc(e + f (v - e)), 0, 255) in float32, where e is 0 for brightness, the
    grey image for color, and the rounded mean of the grey image for contrast.

    Args:
        images: uint8 RGB [B, 3, H, W].
        operations: (name, factor f) pairs.
    """
    check_operations(operations)
    for name, factor in operations:
        base = _degenerate(images, name).to(torch.float32)
        blended = base + factor * (images.to(torch.float32) - base)
        images = blended.clip(0, 255).to(torch.uint8)
    return images


def _degenerate(images: Tensor, operation: str) -> Tensor:
    """Return the image at factor 0."""
    if operation == "brightness":
        return torch.zeros_like(images)
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32, device=images.device)
    grey = ((images.to(torch.int32) * weights.view(3, 1, 1)).sum(1, keepdim=True) + 32768) >> 16
    if operation == "color":
        return grey
    return (grey.to(torch.float64).mean(dim=(2, 3), keepdim=True) + 0.5).floor()
