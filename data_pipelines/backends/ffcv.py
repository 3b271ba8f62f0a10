"""FFCV over a set's `.beton`: just-in-time compiled decoding.

FFCV's loader binds order and epochs to itself, starts a thread per epoch, and builds Python tables
of all samples and pages, which for a million take seconds and half a gigabyte. So only its compiled
decoder is used, by our threads, on the bytes of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.backends.batches import BatchFinisher, Delivery, read_ahead, to_device
from data_pipelines.backends.sample_reader import SampleReader
from data_pipelines.datasets import OpenedData
from data_pipelines.packed.beton_reader import BetonSamples, Content
from data_pipelines.packed.joined import Joined
from data_pipelines.packed.reader import Samples
from data_pipelines.pipeline import ImageBatch


class FfcvPipeline:
    """One rank's share of a packed set, decoded by FFCV; an ImagePipeline.

    Args:
        data: The opened sets.
        delivery: How batches are delivered.
        cache_gb: Size of the pages cached in this process, in 10^9 bytes; None relies on the
            operating system.
    """

    def __init__(self, data: OpenedData, delivery: Delivery, cache_gb: float | None) -> None:
        self._delivery = delivery
        self.info = data.info
        cache_bytes = None if cache_gb is None else int(cache_gb * 1e9 / len(data.sets))
        betons = [BetonSamples(part, cache_bytes, delivery.workers) for part in data.sets]
        samples: Samples[Content] = betons[0] if len(betons) == 1 else Joined(betons)
        self._reader = SampleReader(samples, data.order, delivery.max_corrupt)
        self.corrupt = self._reader.corrupt
        self._finish = BatchFinisher(data.order, data.info, data.factor)
        self._decoder = _Decoder(self.info.resolution)

    def batches(self, start: int) -> Generator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""

        def produce(k: int) -> ImageBatch:
            positions = self._delivery.share.positions(start, k)
            contents, labels = self._reader.load(positions, lambda _, content: content)
            pixels = to_device(self._decoder(contents), self._delivery.device)
            return self._finish(pixels.permute(0, 3, 1, 2).contiguous(), labels, positions)

        return read_ahead(produce, self._delivery.workers, self._delivery.prefetch)

    def close(self) -> None:
        """Close the betons."""
        self._reader.close()


class _Decoder:
    """FFCV's compiled decoder: contents of images of one edge to pixels; thread-safe."""

    def __init__(self, edge: int) -> None:
        from ffcv.fields import RGBImageField

        self._edge = edge
        self._row = RGBImageField().metadata_type
        self._decode = _compiled_decoder()

    def __call__(self, contents: Sequence[Content]) -> Tensor:
        """Return the images' pixels, uint8 [B, H, W, 3]."""
        count, edge = len(contents), self._edge
        lengths = np.array([len(content) for _, content in contents])
        rows = np.zeros(count, self._row)
        rows["mode"] = [mode for mode, _ in contents]
        rows["width"] = rows["height"] = edge
        rows["data_ptr"] = np.arange(count)
        joined = np.frombuffer(b"".join(content for _, content in contents), np.uint8)
        places = (joined, np.cumsum(lengths) - lengths, lengths)
        pixels = np.empty((count, edge, edge, 3), np.uint8)
        self._decode(np.arange(count), pixels, rows, places)
        return torch.from_numpy(pixels)


@functools.cache
def _compiled_decoder() -> Any:
    """Return FFCV's decoder, which is compiled when it is first called."""
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.pipeline.compiler import Compiler

    decoder = SimpleRGBImageDecoder()
    decoder.accept_globals(None, Compiler.compile(_content_of))
    return Compiler.compile(decoder.generate_code())


def _content_of(number: int, places: Any) -> Any:
    """Return the bytes of a batch's image; compiled, in place of FFCV's reading from the file."""
    joined, starts, lengths = places
    return joined[starts[number] : starts[number] + lengths[number]]
