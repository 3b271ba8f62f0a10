"""Generated images: smooth colour waves, their number the class; for tests and dry runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from data_pipelines.images import Pixels
from data_pipelines.packed.manifest import DatasetInfo
from data_pipelines.pipeline import ImageBatch, Share
from data_pipelines.sample_order import SampleOrder

NUM_IMAGES = 1024
CLASS_NAMES = ("one wave", "two waves", "three waves", "four waves")


class SyntheticPipeline:
    """One rank's share of the generated set; an ImagePipeline."""

    def __init__(
        self,
        share: Share,
        device: torch.device,
        *,
        resolution: int,
        seed: int,
        shuffle: bool,
        flip: bool,
    ) -> None:
        self.info = describe_synthetic(resolution)
        self.corrupt: dict[int, str] = {}
        self._order = SampleOrder(NUM_IMAGES, seed, shuffle, flip)
        self._share, self._device = share, device

    def batches(self, start: int) -> Iterator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""
        k = 0
        while True:
            yield self._batch(self._share.positions(start, k))
            k += 1

    def close(self) -> None:
        """Do nothing: no files are open."""

    def _batch(self, positions: range) -> ImageBatch:
        places = np.arange(positions.start, positions.stop)
        indices, flips = self._order.samples(places), self._order.flips(places)
        images = [synthetic_image(int(index), self.info.resolution) for index in indices]
        flipped = [x[:, :, ::-1] if flip else x for x, flip in zip(images, flips, strict=True)]
        return ImageBatch(
            images=torch.from_numpy(np.stack(flipped)).to(self._device),
            labels=torch.from_numpy(indices % len(CLASS_NAMES)).to(self._device),
            positions=tuple(positions),
        )


def describe_synthetic(resolution: int) -> DatasetInfo:
    """Return the description of the generated set."""
    identity = f"synthetic {NUM_IMAGES} {resolution}"
    return DatasetInfo(
        num_images=NUM_IMAGES,
        resolution=resolution,
        class_names=CLASS_NAMES,
        class_counts=(NUM_IMAGES // len(CLASS_NAMES),) * len(CLASS_NAMES),
        digest=hashlib.sha256(identity.encode()).hexdigest(),
    )


def synthetic_image(index: int, resolution: int) -> Pixels:
    """Return image `index`, uint8 [3, R, R]; its class is index mod 4, its number of waves."""
    rng = np.random.default_rng(index)
    angle, *phases = rng.uniform(0, 2 * np.pi, 4)
    y, x = np.mgrid[0:resolution, 0:resolution] / resolution
    waves = 2 * np.pi * (1 + index % len(CLASS_NAMES)) * (np.cos(angle) * x + np.sin(angle) * y)
    colours = rng.uniform(40, 120, (3, 1, 1))
    image: Pixels = (127.5 + colours * np.cos(waves + np.reshape(phases, (3, 1, 1)))).astype(
        np.uint8
    )
    return image
