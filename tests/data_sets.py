"""Small sets of images that the data tests share."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.images import ImageFormat, Pixels
from data_pipelines.pack.options import PackOptions
from data_pipelines.pack.packer import Packer
from data_pipelines.packed.manifest import Manifest
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.sources.base import Source
from data_pipelines.sources.kinds import make_source


def smooth_pixels(number: int, width: int = 40, height: int = 36) -> Pixels:
    """Return a smooth random image, uint8 [H, W, 3]."""
    coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: Pixels, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def pack(
    source: Source,
    destination: Path,
    options: PackOptions,
    *,
    workers: int = 1,
    max_skips: int | None = None,
) -> dict[Path, Manifest]:
    """Pack a source and return the manifests by directory."""
    packer = Packer(source, destination, options, workers=workers, max_skips=max_skips)
    return packer.pack()


def write_class_dirs(path: Path, classes: int = 3, per_class: int = 20) -> Path:
    """Write class directories of PNG images and return the path."""
    for label in range(classes):
        class_dir = path / f"class{label}"
        class_dir.mkdir(parents=True)
        for number in range(per_class):
            content = encoded(smooth_pixels(label * per_class + number))
            (class_dir / f"{number:03d}.png").write_bytes(content)
    return path


def extract_tar(path: Path, directory: Path) -> None:
    """Extract a tar of ours; before Python 3.11.4 there is no filter to name."""
    filtered = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(path) as archive:
        archive.extractall(directory, **filtered)  # type: ignore[arg-type]


def packed_set(
    source: Path,
    destination: Path,
    *,
    resolution: int = 32,
    image_format: ImageFormat = "png",
    shard_images: int = 16,
) -> Manifest:
    options = PackOptions(
        resolution=resolution, image_format=image_format, shard_images=shard_images
    )
    return pack(make_source("folder", source), destination, options)[destination]


def damage(dataset: Path, indices: list[int]) -> None:
    """Flip one byte in the middle of each sample's image."""
    images = ShardedImages(dataset)
    for index in indices:
        row = images.index[index]
        shard = dataset / images.manifest.shards[int(row["shard"])].name
        with open(shard, "r+b") as file:
            file.seek(int(row["offset"]) + int(row["length"]) // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0x10]))
    images.close()
