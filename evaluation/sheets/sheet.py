"""Draw a sheet of images in rows, and write it as PNG with a JSON of what it shows."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional

from evaluation.disk import write_bytes
from evaluation.image_sets.files import MAX_PIXELS
from evaluation.image_sets.image_set import ImageSet
from models.safe_files.atomic import NotOurs, check_replaceable_file
from models.safe_files.documents import DocumentError, Format

MARK = b"relaywave sheet"
"""Text in the head of our PNGs; others are not replaced."""
GAP, WIDE_GAP = 2, 10


@dataclass(frozen=True)
class Cell:
    """An image on a sheet.

    Attributes:
        source: Number of its set.
        index: Its number in the set.
        notes: What the record says of it besides.
    """

    source: int
    index: int
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What a sheet shows.

    Attributes:
        kind: The kind of sheet.
        rows: Its images; rows may differ in length.
        notes: What the record says of each row.
        set_apart: Whether a wide gap follows the first column.
        parts: Rows after which a wide gap follows.
    """

    kind: str
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[Mapping[str, Any]]
    set_apart: bool = False
    parts: Sequence[int] = ()


@dataclass(frozen=True)
class SheetRecord:
    """What the JSON beside a sheet says."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    sheet: str
    png_sha256: str
    sets: list[dict[str, Any]]
    settings: dict[str, Any]
    rows: list[dict[str, Any]]


RECORD = Format(schema=SheetRecord, version=1, remedy="remove it, and make the sheet again")


def record_path(path: Path) -> Path:
    """Return the JSON beside a sheet."""
    return path.with_suffix(".json")


def check_sheet(path: Path) -> None:
    """Check that a sheet may be written to a `.png`, and its record beside it.

    Raises:
        NotOurs: One of them exists and is no sheet of ours.
        ValueError: The name does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out {path} is no .png file; name the sheet, e.g. sheet.png")
    check_replaceable_file(path, lambda start: MARK in start, "a sheet (PNG)")
    try:
        RECORD.read(record_path(path))
    except FileNotFoundError:
        pass
    except DocumentError:
        raise NotOurs(
            f"{record_path(path)} is not the record of a sheet and is left as it is; give another"
            " name, or remove it"
        ) from None


def write_sheet(
    path: Path,
    layout: Layout,
    sets: Sequence[ImageSet],
    identities: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    upscale: int = 1,
) -> None:
    """Write a sheet and its record, each atomically.

    Args:
        path: The PNG.
        layout: What it shows.
        sets: The sets of its images; all cells are as large as the largest image.
        identities: What the record says of each set.
        settings: What the record says of how images were chosen.
        upscale: Integer factor of enlargement.

    Raises:
        ValueError: It would have more pixels than are ever decoded.
    """
    data = _png(_drawn(layout, sets, upscale))
    rows = [
        {**notes, "images": [_described(cell, sets) for cell in row]}
        for row, notes in zip(layout.rows, layout.notes, strict=True)
    ]
    write_bytes(path, data)
    record = RECORD.to_bytes(
        {
            "sheet": layout.kind,
            "png_sha256": hashlib.sha256(data).hexdigest(),
            "sets": [dict(identity) for identity in identities],
            "settings": dict(settings),
            "rows": rows,
        }
    )
    write_bytes(record_path(path), record)


def _described(cell: Cell, sets: Sequence[ImageSet]) -> dict[str, Any]:
    images = sets[cell.source]
    labels = images.labels([cell.index])
    known = {} if labels is None else {"class": int(labels[0])}
    place = {"set": cell.source, "index": cell.index, "name": images.name(cell.index)}
    return {**place, **known, **cell.notes}


def _drawn(layout: Layout, sets: Sequence[ImageSet], upscale: int) -> Tensor:
    """Return the sheet, uint8 [3, H, W]."""
    columns = max(map(len, layout.rows))
    first = [cell for row in layout.rows for cell in row]
    sizes = {s: sets[s].batch([0]).shape[2:] for s in {cell.source for cell in first}}
    height, width = (max(size[axis] for size in sizes.values()) * upscale for axis in (0, 1))
    if (height + GAP) * (width + GAP) * columns * len(layout.rows) > MAX_PIXELS:
        raise ValueError(
            f"{len(layout.rows)} rows of {columns} images of {width}x{height} pixels are more than"
            f" {MAX_PIXELS} pixels; lower --rows, --columns or --upscale"
        )
    strips = []
    for number, row in enumerate(layout.rows):
        gaps = [WIDE_GAP if layout.set_apart and column == 0 else GAP for column in range(columns)]
        cells = [_cell(sets, cell, upscale, (height, width)) for cell in row]
        cells += [torch.full((3, height, width), 255, dtype=torch.uint8)] * (columns - len(row))
        strip = torch.cat(
            [functional.pad(c, (0, gap), value=255) for c, gap in zip(cells, gaps, strict=True)], 2
        )
        below = WIDE_GAP if number + 1 in layout.parts else GAP
        strips.append(functional.pad(strip, (0, 0, 0, below), value=255))
    return torch.cat(strips, 1)


def _cell(sets: Sequence[ImageSet], cell: Cell, upscale: int, size: tuple[int, int]) -> Tensor:
    """Return an image in the middle of a white cell, uint8 [3, *size]."""
    image = sets[cell.source].batch([cell.index])[0]
    image = image.repeat_interleave(upscale, 1).repeat_interleave(upscale, 2)
    down, right = (whole - edge for whole, edge in zip(size, image.shape[1:], strict=True))
    around = (right // 2, right - right // 2, down // 2, down - down // 2)
    return functional.pad(image, around, value=255)


def _png(sheet: Tensor) -> bytes:
    """Encode a sheet as a PNG that bears our mark."""
    mark = PngInfo()
    mark.add_text("Software", MARK.decode())
    buffer = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(buffer, format="PNG", pnginfo=mark)
    return buffer.getvalue()
