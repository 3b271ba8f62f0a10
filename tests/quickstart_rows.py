"""The README's pictures: rows of real, untrained and trained images of a quickstart run.

bash quickstart.sh --out runs/quickstart
python -m tests.quickstart_rows runs/quickstart docs/images
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.images import Pixels, decode_rgb
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.sample_order import SampleOrder

COLUMNS = 8
GAP = 4
UPSCALE = 2


def real_images(path: Path) -> list[Pixels]:
    """Return randomly chosen images of a packed set, of the classes of the samples' first seeds."""
    images = ShardedImages(path)
    order = SampleOrder(len(images), seed=1).samples(np.arange(len(images)))
    labels = images.index["label"][order]
    classes = len(images.manifest.class_names)
    chosen = [order[labels == column % classes][column // classes] for column in range(COLUMNS)]
    pixels = [images.decode(index).permute(1, 2, 0).numpy() for index in chosen]
    images.close()
    return pixels


def samples(path: Path) -> list[Pixels]:
    """Return the samples of the first seeds."""
    files = sorted(path.rglob("*.png"))[:COLUMNS]
    return [decode_rgb(file.read_bytes()) for file in files]


def picture(rows: list[list[Pixels]]) -> Image.Image:
    """Arrange rows of images of one size, each enlarged by nearest neighbour, on white."""
    edge = UPSCALE * rows[0][0].shape[0]
    step = edge + GAP
    sheet = np.full((len(rows) * step - GAP, COLUMNS * step - GAP, 3), 255, np.uint8)
    for top, row in enumerate(rows):
        for left, pixels in enumerate(row):
            large = pixels.repeat(UPSCALE, 0).repeat(UPSCALE, 1)
            sheet[top * step : top * step + edge, left * step : left * step + edge] = large
    return Image.fromarray(sheet)


def main(run: Path, destination: Path) -> None:
    """Write the picture of each model."""
    real = real_images(run / "data")
    for name in ("rdm", "wavediff"):
        generated = [samples(run / "samples" / f"{name}{suffix}") for suffix in ("_untrained", "")]
        file = destination / f"quickstart_{name}.png"
        picture([real, *generated]).save(file, optimize=True)
        print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
