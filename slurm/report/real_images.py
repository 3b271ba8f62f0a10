"""Images of a run's training set, to look at beside its samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.images import BadImage, centre_square
from data_pipelines.packed.reader import ShardedImages
from slurm.report.collect import Run


def write_real_grid(run: Run, picture: Path) -> bool:
    """Write a grid of real images, laid out as the run's grids of samples.

    Args:
        run: The run, whose set may be gone, or never was on this machine.
        picture: The PNG to write.

    Returns:
        Whether it was written.
    """
    path = run.settings.get("data", {}).get("path") or ""
    columns = run.grid_columns
    if not (path and columns and run.grids and Path(path).is_dir()):
        return False
    try:
        images = ShardedImages(path, check_sizes=False)
        edge, count = run.grids[-1].width // columns, run.num_seeds
        rows = -(-count // columns)
        sheet = np.zeros((rows * edge, columns * edge, 3), np.uint8)
        for place in range(count):
            pixels = images.decode(place * len(images) // count).permute(1, 2, 0).numpy()
            top, left = place // columns * edge, place % columns * edge
            image = centre_square(Image.fromarray(pixels), edge)
            sheet[top : top + edge, left : left + edge] = np.asarray(image)
        images.close()
    except (OSError, ValueError, BadImage):  # a set that is damaged is no matter of a report
        return False
    Image.fromarray(sheet).save(picture, format="PNG")
    return True
