"""NVIDIA DALI over the packed shards, on the GPU (nvJPEG) or on the CPU.

DALI's readers tie the order and the epoch's length to the number of ranks, so the graph is fed
with encoded bytes in our own order, read ahead by threads from the shards' byte ranges.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.backends.batches import BatchFinisher, Delivery, read_ahead, to_device
from data_pipelines.backends.dali_graph import (
    Encoded,
    Flip,
    Source,
    build_graph,
    reason,
    undecodable,
)
from data_pipelines.backends.sample_reader import SampleReader
from data_pipelines.datasets import OpenedData
from data_pipelines.images import ORIGINAL, Pixels, encode, pixel_decoder
from data_pipelines.pipeline import ImageBatch

logger = logging.getLogger(__name__)


class DaliPipeline:
    """One rank's share of a packed set, decoded by DALI; an ImagePipeline.

    A sample that DALI cannot decode makes its batch fail. It is then found by bisecting the
    batch, and decoded by Pillow from then on: the graph gets a placeholder instead.

    Args:
        data: The opened sets.
        delivery: How batches are delivered.
        resolution: Edge of the delivered images, if the set holds images of any size.
    """

    def __init__(self, data: OpenedData, delivery: Delivery, resolution: int) -> None:
        self._delivery, self._share = delivery, delivery.share
        self._device, self._prefetch = delivery.device, delivery.prefetch
        self.info = data.info
        self._reader = SampleReader(data.samples, data.order, delivery.max_corrupt, data.prefetcher)
        self.corrupt = self._reader.corrupt
        self._decode = pixel_decoder(self.info.resolution, resolution)
        self._resize_to = resolution if self.info.resolution == ORIGINAL else None
        self._finish = BatchFinisher(data.order, data.info, data.factor)
        self._placeholder = _placeholder(self.info.resolution or resolution)
        self._by_pillow: set[int] = set()

    def batches(self, start: int) -> Iterator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""
        number = 0
        while True:  # once per run, and once more after each batch that DALI could not decode
            try:
                for batch in self._from_graph(start, number):
                    yield batch
                    number += 1
            except _Undecodable as error:
                why = str(error)  # the error itself would keep the failed graph's memory
            self._leave_to_pillow(start, number, why)

    def close(self) -> None:
        """Close the shards; a graph is released with the iterator that uses it."""
        self._reader.close()

    def _from_graph(self, start: int, first: int) -> Iterator[ImageBatch]:
        """Yield micro-batches from number `first`. Raises _Undecodable before one that fails."""
        feed = _Feed(self._load, lambda k: self._share.positions(start, first + k), self._prefetch)
        graph = self._graph(feed.next_batch, self._share.micro_batch_size, self._prefetch)
        try:
            for k in itertools.count():
                images = self._run(graph, feed)
                batch = feed.batches.pop(k)
                images = self._with_patches(images, batch)
                positions = self._share.positions(start, first + k)
                yield self._finish.finish_flipped(images, batch.labels, positions)
        finally:
            feed.close()

    def _graph(self, source: Source, batch_size: int, prefetch: int = 1) -> Any:
        graph = build_graph(
            source,
            batch_size=batch_size,
            threads=self._delivery.workers,
            prefetch=prefetch,
            decoder="cpu" if self._device.type == "cpu" else "mixed",
            edge=self._resize_to,
            device_id=self._device_id(),
        )
        graph.build()
        return graph

    def _load(self, positions: range) -> _Batch:
        samples, labels = self._reader.load(positions, self._encoded_or_pixels)
        patches = {row: item for row, item in enumerate(samples) if item.ndim == 3}
        encoded = [
            self._placeholder if row in patches else item for row, item in enumerate(samples)
        ]
        return _Batch(encoded, self._finish.flips(positions), labels, patches)

    def _encoded_or_pixels(self, index: int, encoded: bytes) -> Encoded | Pixels:
        if index in self._by_pillow:
            return self._decode(encoded)
        return _array(encoded)

    def _run(self, graph: Any, feed: _Feed) -> Tensor:
        """Return the next decoded batch. Raises _Undecodable if DALI fails.

        Its memory is DALI's, which does not use it again before the tensor is gone.
        """
        try:
            (output,) = graph.run(self._stream())
        except RuntimeError as error:
            if feed.failure is not None:
                raise feed.failure from None
            raise _Undecodable(reason(error)) from None
        tensor: Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
        return tensor

    def _with_patches(self, images: Tensor, batch: _Batch) -> Tensor:
        """Return the images in which those that Pillow decoded replace their placeholders."""
        if not batch.patches:
            return images
        images = images.clone()
        for row, pixels in batch.patches.items():
            flipped = pixels[:, :, ::-1] if batch.flips[row] else pixels
            patch = torch.from_numpy(np.ascontiguousarray(flipped))
            images[row] = to_device(patch, self._device)
        return images

    def _leave_to_pillow(self, start: int, number: int, why: str) -> None:
        """Record the samples that made a graph fail when batch `number` was requested.

        Raises:
            RuntimeError: Each of them can be decoded on its own; the cause is another.
        """
        for k in range(number, number + 1 + self._prefetch):  # all that were in flight
            found = self._undecodable(self._share.positions(start, k))
            for index in found:
                where = f"{self._reader.images.locate(index)} of {self._reader.images.path}"
                logger.warning("DALI cannot decode %s, so Pillow does: %s", where, why)
            self._by_pillow |= found
            if found:
                return
        raise RuntimeError(f"DALI failed, though it can decode each sample on its own: {why}")

    def _undecodable(self, positions: range) -> set[int]:
        """Return the indices of the samples that Pillow can decode and DALI cannot."""
        samples, _ = self._reader.load(
            positions, lambda index, stored: (index, self._encoded_or_pixels(index, stored))
        )
        tried = {index: item for index, item in samples if index not in self._by_pillow}
        places = undecodable(list(tried.values()), self._graph) if tried else []
        return {list(tried)[place] for place in places}

    def _stream(self) -> torch.cuda.Stream | None:
        """Return the stream that uses the images: DALI reuses their memory only after it."""
        return torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None

    def _device_id(self) -> int | None:
        if self._device.type != "cuda":
            return None
        return self._device.index if self._device.index is not None else torch.cuda.current_device()


class _Undecodable(Exception):  # noqa: N818 (says what the samples are)
    """A batch that DALI cannot decode, with DALI's reason."""


@dataclass(frozen=True)
class _Batch:
    """A batch on its way through a graph.

    Attributes:
        encoded: Encoded images; a placeholder for each that Pillow has decoded.
        flips: Which images are flipped horizontally.
        labels: Class indices.
        patches: What Pillow has decoded, by row: uint8 [3, R, R], not flipped.
    """

    encoded: list[Encoded]
    flips: list[bool]
    labels: list[int]
    patches: dict[int, Pixels]


class _Feed:
    """Feeds batches to DALI in order, and keeps each until its pixels come out."""

    def __init__(
        self,
        load: Callable[[range], _Batch],
        positions: Callable[[int], range],
        prefetch: int,
    ) -> None:
        self.batches: dict[int, _Batch] = {}
        self.failure: Exception | None = None
        self._ahead = read_ahead(lambda k: load(positions(k)), 1, prefetch)
        self._count = itertools.count()

    def next_batch(self) -> tuple[list[Encoded], list[Flip]]:
        """Return the next batch for the graph; DALI would hide the type of an exception."""
        try:
            batch = next(self._ahead)
        except Exception as error:
            self.failure = error
            raise
        self.batches[next(self._count)] = batch
        return batch.encoded, [Flip(flip) for flip in batch.flips]

    def close(self) -> None:
        """Stop reading ahead."""
        self._ahead.close()


def _array(encoded: bytes) -> Encoded:
    return np.frombuffer(encoded, np.uint8)


def _placeholder(edge: int) -> Encoded:
    """Return an encoded black image that every decoder reads."""
    return _array(encode(Image.new("RGB", (edge, edge)), "jpeg", quality=95))
