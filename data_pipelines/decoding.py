"""From a sample's stored bytes to pixels, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from data_pipelines.images import (
    ORIGINAL,
    BadImage,
    Pixels,
    centre_crop,
    centre_square,
    decode,
    decode_rgb,
)

Resize = Literal["pillow", "torch"]


def pixel_decoder(
    stored: int, resolution: int, resize: Resize = "pillow"
) -> Callable[[bytes], Pixels]:
    """Return the way from a packed sample to pixels uint8 [3, R, R]; it raises BadImage.

    Args:
        stored: Edge of the set's images, which come as they are; those of an ORIGINAL set are
            cropped and resized.
        resolution: Edge R of the images of an ORIGINAL set.
        resize: Whose Lanczos filter resizes these: `pillow`, exactly as `pack` would, or `torch`,
            four times as fast and up to 2 of 255 levels off.

    Raises:
        ValueError: This torch has no Lanczos filter.
    """
    if stored != ORIGINAL:
        return lambda encoded: _planes(_of_edge(decode_rgb(encoded), stored))
    if resize == "pillow":
        return lambda encoded: _planes(np.asarray(centre_square(decode(encoded), resolution)))
    _check_torch()
    return lambda encoded: _resized_by_torch(encoded, resolution)


def _of_edge(pixels: Pixels, edge: int) -> Pixels:
    if pixels.shape != (edge, edge, 3):
        raise BadImage(f"has {pixels.shape[1]}x{pixels.shape[0]} pixels, not {edge}")
    return pixels


def _planes(pixels: Pixels) -> Pixels:
    return pixels.transpose(2, 0, 1)


def _resized_by_torch(encoded: bytes, resolution: int) -> Pixels:
    """Return the centred square of an image at an edge, uint8 [3, R, R]."""
    square = torch.from_numpy(np.array(centre_crop(decode(encoded))))
    planes: Pixels = _lanczos(square.permute(2, 0, 1)[None], resolution)[0].numpy()
    return planes


def _lanczos(images: torch.Tensor, edge: int) -> torch.Tensor:
    return F.interpolate(images, (edge, edge), mode="lanczos", antialias=True)


def _check_torch() -> None:
    try:
        _lanczos(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 2)
    except (NotImplementedError, ValueError):  # by version
        raise ValueError(
            f"resize='torch' needs a Lanczos filter, which torch {torch.__version__} lacks;"
            " install a newer torch, or set data.resize=pillow"
        ) from None
