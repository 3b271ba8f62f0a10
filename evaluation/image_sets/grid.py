"""Grid pictures of samples."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional


def make_grid(images: Tensor, columns: int | None = None, upscale: int = 1, gap: int = 2) -> Tensor:
    """Arrange uint8 images [B, 3, H, W] row by row on white, uint8 [3, H', W'].

    Args:
        images: The pictures.
        columns: Pictures per row; None gives a nearly square grid.
        upscale: Whole factor of nearest-neighbour enlargement.
        gap: White pixels between pictures, after enlargement.

    Raises:
        ValueError: There are no images, or a number is not positive.
    """
    if len(images) == 0 or upscale < 1 or (columns is not None and columns < 1):
        raise ValueError(f"a grid of {len(images)} images, columns={columns}, upscale={upscale}")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    images = images.repeat_interleave(upscale, 2).repeat_interleave(upscale, 3)
    cells = functional.pad(images, (0, gap, 0, gap), value=255)
    blank = cells.new_full((rows * columns - len(cells), *cells.shape[1:]), 255)
    cells = torch.cat([cells, blank]).reshape(rows, columns, *cells.shape[1:])
    grid = cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return grid[:, : grid.shape[1] - gap, : grid.shape[2] - gap]


def encode_image(image: Tensor, codec: str = "png") -> bytes:
    """Encode a uint8 RGB image [3, H, W] as `png`, or as `jpeg` with Pillow's defaults."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    picture.save(buffer, format=codec.upper())
    return buffer.getvalue()


def write_image(path: Path, image: Tensor) -> None:
    """Write a uint8 RGB image [3, H, W] as PNG, atomically."""
    write_bytes(path, encode_image(image))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
