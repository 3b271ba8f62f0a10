"""Plain CPU reading of the packed WebDataset shards: threads that read and decode with Pillow.

WebDataset's own loader has no resume, and an order that depends on ranks and workers; so the tar
files serve as storage, and index and order are ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from data_pipelines.backends.common import BatchFinisher, SampleReader, read_ahead, to_device
from data_pipelines.datasets import open_data
from data_pipelines.images import pixel_decoder
from data_pipelines.pipeline import DataConfig, ImageBatch, Share


class WebDatasetPipeline:
    """One rank's share of a packed set, decoded on the CPU; an ImagePipeline."""

    def __init__(
        self, config: DataConfig, seed: int, share: Share, device: torch.device | str
    ) -> None:
        self._config, self._share, self._device = config, share, torch.device(device)
        data = open_data(config, seed)
        self.info = data.info
        self._reader = SampleReader(data.samples, data.order, config.max_corrupt, data.prefetcher)
        self.corrupt = self._reader.corrupt
        self._decode = pixel_decoder(self.info.resolution, config.resolution, config.resize)
        self._finish = BatchFinisher(data.order, data.factor, bool(self.info.class_names))

    def batches(self, start: int) -> Iterator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""

        def produce(k: int) -> ImageBatch:
            return self._batch(self._share.positions(start, k))

        yield from read_ahead(produce, self._config.workers, self._config.prefetch)

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def _batch(self, positions: range) -> ImageBatch:
        arrays, labels = self._reader.load(positions, lambda _, encoded: self._decode(encoded))
        images = to_device(torch.from_numpy(np.stack(arrays)), self._device)
        return self._finish(images, labels, positions)
