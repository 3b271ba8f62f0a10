"""Plain CPU reading of the packed WebDataset shards: threads that read and decode with Pillow.

WebDataset's own loader has no resume, and an order that depends on ranks and workers; so the tar
files serve as storage, and index and order are ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from data_pipelines.delivery import (
    BatchFinisher,
    SampleReader,
    check_resolution,
    decode_square,
    read_ahead,
)
from data_pipelines.order import SampleOrder
from data_pipelines.pipeline import DataConfig, ImageBatch, Share
from data_pipelines.shards import ShardedImages


class WebDatasetPipeline:
    """One rank's share of a packed set, decoded on the CPU; an ImagePipeline."""

    def __init__(
        self, config: DataConfig, seed: int, share: Share, device: torch.device | str
    ) -> None:
        self._images = ShardedImages(config.path)
        self.info = self._images.info
        self._config, self._share, self._device = config, share, torch.device(device)
        order = SampleOrder(len(self._images), seed, config.shuffle, config.flip)
        self._reader = SampleReader(self._images, order, config.max_corrupt)
        self.corrupt = self._reader.corrupt
        factor = check_resolution(config, self.info.resolution)
        self._finish = BatchFinisher(order, factor, bool(self.info.class_names))

    def batches(self, start: int) -> Iterator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""

        def produce(k: int) -> ImageBatch:
            return self._batch(self._share.positions(start, k))

        yield from read_ahead(produce, self._config.workers, self._config.prefetch)

    def close(self) -> None:
        """Close the shards."""
        self._images.close()

    def _batch(self, positions: range) -> ImageBatch:
        resolution = self.info.resolution
        arrays, labels = self._reader.load(positions, lambda data: decode_square(data, resolution))
        images = torch.from_numpy(np.stack(arrays))
        if self._device.type == "cuda":
            images = images.pin_memory().to(self._device, non_blocking=True)
        return self._finish(images, labels, positions)
