"""Images in a .npy file, uint8 [N, H, W, 3]: a source to pack, and a backend without packing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.packed.manifest import DatasetInfo
from data_pipelines.pipeline import BACKENDS, BackendKind, DataConfig, ImageBatch, Share
from data_pipelines.sample_order import SampleOrder
from data_pipelines.sources.base import Entry, Listing, ReadItem, SourceError
from data_pipelines.sources.kinds import SOURCES, Kind


def read_array(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Map a file into memory. Raises SourceError if it holds no images."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read as an array: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise SourceError(f"{path} is {images.dtype} {list(images.shape)}, expected uint8 NHW3")
    return images


@dataclass(frozen=True)
class ArraySource:
    """What `relaywave data pack npy FILE DEST` reads (data_pipelines.sources.base.Source)."""

    path: Path
    kind: str = "npy"
    published: bool = False

    def list_items(self) -> Listing:
        """Return all images; none has a class."""
        images = read_array(self.path)
        size = images[0].nbytes
        return Listing([Entry(f"{k:08d}", -1, size, k) for k in range(len(images))], ())

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the file, in any process."""
        images = read_array(self.path)
        yield lambda entry: np.array(images[entry.locator])

    def describe(self) -> dict[str, Any]:
        """Return where the images are from."""
        return {"path": str(self.path)}


class ArrayPipeline:
    """What `data.backend=npy data.path=FILE` delivers (data_pipelines.pipeline.ImagePipeline)."""

    def __init__(self, config: DataConfig, seed: int, share: Share, device: torch.device) -> None:
        self.info = describe_array(config)
        self.corrupt: dict[int, str] = {}
        self._images = read_array(Path(config.path))
        self._order = SampleOrder(len(self._images), seed, config.shuffle, config.flip)
        self._share, self._device = share, device

    def batches(self, start: int) -> Iterator[ImageBatch]:
        """Yield this rank's micro-batches: a function of the seed and their places alone."""
        k = 0
        while True:
            places = self._share.positions(start, k)
            numbers = np.arange(places.start, places.stop)
            images = self._images[self._order.samples(numbers)]
            flips = self._order.flips(numbers)[:, None, None, None]
            images = np.where(flips, images[:, :, ::-1], images).transpose(0, 3, 1, 2)
            batch = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
            yield ImageBatch(batch, None, tuple(places))
            k += 1

    def close(self) -> None:
        """Nothing is open."""


def describe_array(config: DataConfig) -> DatasetInfo:
    """Return the description of a set. Raises ValueError if its images have another size."""
    images = read_array(Path(config.path))
    if images.shape[1:3] != (config.resolution, config.resolution):
        edges = "x".join(map(str, images.shape[1:3]))
        raise ValueError(f"{config.path} has images of {edges}; set data.resolution to that")
    digest = hashlib.sha256(np.ascontiguousarray(images)).hexdigest()
    return DatasetInfo(len(images), config.resolution, (), digest)


SOURCES.register("npy", Kind("a .npy file, uint8 [N, H, W, 3]", ArraySource))
BACKENDS.register("npy", BackendKind(ArrayPipeline, describe_array))
