"""Grid pictures of the first images of a set."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional

from evaluation.disk import write_bytes
from evaluation.image_sets.files import MAX_PIXELS
from evaluation.image_sets.image_set import ImageSet
from models.safe_files.atomic import check_replaceable_file

PNG = b"\x89PNG\r\n\x1a\n"
MARK = b"relaywave's grid"


@dataclass(frozen=True)
class GridSettings:
    """A grid picture of the first images of a set.

    Attributes:
        path: The PNG file.
        num_images: Images in the grid.
        upscale: Integer factor of enlargement.
    """

    path: Path
    num_images: int = 64
    upscale: int = 1

    def __post_init__(self) -> None:
        for option, value in (("images", self.num_images), ("upscale", self.upscale)):
            if value < 1:
                raise ValueError(f"--grid-{option}={value} must be at least 1")


def write_grid(settings: GridSettings, images: ImageSet) -> None:
    """Write a grid picture of the first images of a set.

    Raises:
        ValueError: It would have more pixels than are ever decoded.
    """
    count = min(len(images), settings.num_images)
    pixels = images.batch([0])[0, 0].numel() * count * settings.upscale**2 if count else 0
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"--grid-images={settings.num_images} and --grid-upscale={settings.upscale} make a"
            f" picture of {pixels} pixels, more than {MAX_PIXELS}; lower them"
        )
    pictures = images.batch(range(count))
    grid = make_grid(pictures, upscale=settings.upscale)
    write_bytes(settings.path, _marked_png(grid))


def check_grid(path: Path) -> None:
    """Check that a grid may be written to a file. Raises NotOurs if anything else is there."""
    check_replaceable_file(
        path, lambda start: start.startswith(PNG) and MARK in start, "a grid of ours (PNG)"
    )


def _marked_png(grid: Tensor) -> bytes:
    """Encode a grid with a mark that photographs lack, by which it may be replaced."""
    mark, buffer = PngInfo(), io.BytesIO()
    mark.add_text("Software", MARK.decode())
    Image.fromarray(grid.permute(1, 2, 0).cpu().numpy()).save(buffer, format="PNG", pnginfo=mark)
    return buffer.getvalue()


def make_grid(images: Tensor, columns: int | None = None, upscale: int = 1, gap: int = 2) -> Tensor:
    """Arrange uint8 images [B, 3, H, W] row by row on white, uint8 [3, H', W'].

    Args:
        images: The pictures.
        columns: Pictures per row; None gives a nearly square grid.
        upscale: Integer factor of nearest-neighbour enlargement.
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
