"""A contact sheet: a grid of randomly chosen images of a packed set, ordered by class."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.images import centre_square
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.sample_order import SampleOrder
from models.safe_files.atomic import new_file

GAP = 2
ORIGINAL_EDGE = 128
"""Edge at which images of any size are shown."""


def write_contact_sheet(path: Path, picture: Path, *, count: int, seed: int = 0) -> int:
    """Write a grid of randomly chosen images, ordered by class; return how many it shows.

    Args:
        path: Directory of the packed set.
        picture: The picture to write; its extension is the format. Another file is not replaced.
        count: Images to show, at most.
        seed: Chooses the images.

    Raises:
        ValueError: The set is missing or damaged, the extension is of no picture, or another
            file has that name.
    """
    picture_format = Image.registered_extensions().get(picture.suffix.lower())
    if picture_format is None:
        raise ValueError(f"{picture} has no extension of a picture; write it as .png")
    images = ShardedImages(path)
    count = min(count, len(images))
    chosen = SampleOrder(len(images), seed).samples(np.arange(count)).tolist()
    chosen.sort(key=lambda index: (images.label(index) or 0, index))
    columns = math.ceil(math.sqrt(count))
    edge = images.info.resolution or ORIGINAL_EDGE
    step = edge + GAP
    sheet = np.full((math.ceil(count / columns) * step, columns * step, 3), 255, np.uint8)
    for place, index in enumerate(chosen):
        top, left = place // columns * step, place % columns * step
        image = Image.fromarray(images.decode(index).permute(1, 2, 0).numpy())
        sheet[top : top + edge, left : left + edge] = np.asarray(centre_square(image, edge))
    images.close()
    with new_file(picture) as temporary:
        Image.fromarray(sheet).save(temporary, format=picture_format)
    return count
