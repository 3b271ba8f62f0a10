"""Packed sets on the CPU: threads that read samples through the index, and decode with Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from data_pipelines.backends.batches import BatchFinisher, Delivery, read_ahead, to_device
from data_pipelines.backends.sample_reader import SampleReader
from data_pipelines.datasets import OpenedData
from data_pipelines.images import Pixels
from data_pipelines.pipeline import ImageBatch


class PillowPipeline:
    """One rank's share of a packed set, decoded on the CPU; an ImagePipeline.

    Args:
        data: The opened sets.
        delivery: How batches are delivered.
        decode: Maps a stored sample to pixels uint8 [3, R, R].
    """

    def __init__(
        self, data: OpenedData, delivery: Delivery, decode: Callable[[bytes], Pixels]
    ) -> None:
        self._delivery, self._decode = delivery, decode
        self.info = data.info
        self._reader = SampleReader(data.samples, data.order, delivery.max_corrupt, data.prefetcher)
        self.corrupt = self._reader.corrupt
        self._finish = BatchFinisher(data.order, data.info, data.factor)

    def batches(self, start: int) -> Iterator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""

        def produce(k: int) -> ImageBatch:
            return self._batch(self._delivery.share.positions(start, k))

        yield from read_ahead(produce, self._delivery.workers, self._delivery.prefetch)

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def _batch(self, positions: range) -> ImageBatch:
        arrays, labels = self._reader.load(positions, lambda _, encoded: self._decode(encoded))
        images = to_device(torch.from_numpy(np.stack(arrays)), self._delivery.device)
        return self._finish(images, labels, positions)
