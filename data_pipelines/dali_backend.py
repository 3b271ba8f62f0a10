"""NVIDIA DALI over the packed shards: one graph that decodes on the GPU (nvJPEG) or on the CPU.

DALI's readers bind the order and the epoch's length to the number of ranks, so the graph is fed
with encoded bytes in our own order, read ahead by threads from the shards' byte ranges.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.datasets import open_data
from data_pipelines.delivery import (
    BatchFinisher,
    SampleReader,
    pillow_decoder,
    read_ahead,
    to_device,
)
from data_pipelines.images import ORIGINAL
from data_pipelines.pipeline import DataConfig, ImageBatch, Share

logger = logging.getLogger(__name__)
Encoded = NDArray[np.uint8]
Flip = np.int32


def import_dali() -> None:
    """Import DALI. Raises ValueError, naming what is missing, if it cannot be imported."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"backend='dali' cannot be imported ({error}); pip install 'relaywave[dali]',"
            " or set data.backend=webdataset"
        ) from None


def build_graph(
    source: Callable[[], tuple[list[Encoded], list[Flip]]],
    *,
    batch_size: int,
    threads: int,
    prefetch: int,
    decoder: Literal["cpu", "mixed"],
    edge: int | None = None,
    device_id: int | None = None,
) -> Any:
    """Return the DALI pipeline: encoded bytes and flips to uint8 RGB [B, 3, H, W].

    Args:
        source: Returns the next batch's encoded images, and 1 for each to mirror; called ahead.
        batch_size: Images per batch.
        threads: Decoding threads of DALI's CPU part.
        prefetch: Batches decoded ahead.
        decoder: `mixed` decodes on the GPU; the rest of the graph is the same and follows it.
        edge: Cut images of any size to their centred square, and resize it to this edge; None
            for images of one size, which come as they are.
        device_id: The GPU; None for a graph that runs on the CPU, or is only looked at.

    Raises:
        ValueError: DALI is not installed.
    """
    import_dali()
    from nvidia.dali import Pipeline, fn, types

    graph = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
    )
    with graph:
        encoded, flips = fn.external_source(source=source, num_outputs=2, batch=True)
        pixels = _decoded(encoded, decoder) if edge is None else _square(encoded, decoder, edge)
        graph.set_outputs(
            fn.crop_mirror_normalize(  # with mean 0 and deviation 1: only mirrors and transposes
                pixels, mirror=flips, dtype=types.UINT8, output_layout="CHW"
            )
        )
    return graph


def _decoded(encoded: Any, decoder: str) -> Any:
    from nvidia.dali import fn, types

    return fn.decoders.image(
        encoded,
        device=decoder,
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )


def _square(encoded: Any, decoder: str, edge: int) -> Any:
    """Decode the largest centred square alone, and resize it as `images.centre_square` does."""
    from nvidia.dali import fn, math, types

    shape = fn.peek_image_shape(encoded, dtype=types.INT32, adjust_orientation=False)
    height, width = shape[0], shape[1]
    crop = math.min(height, width)
    square = fn.decoders.image_slice(
        encoded,
        start=fn.stack((height - crop) // 2, (width - crop) // 2),
        shape=fn.stack(crop, crop),
        axis_names="HW",
        device=decoder,
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )
    return fn.resize(square, size=[edge, edge], interp_type=types.INTERP_LANCZOS3, antialias=True)


class DaliPipeline:
    """One rank's share of a packed set, decoded by DALI; an ImagePipeline."""

    def __init__(
        self, config: DataConfig, seed: int, share: Share, device: torch.device | str
    ) -> None:
        import_dali()
        self._config, self._share, self._device = config, share, torch.device(device)
        data = open_data(config, seed)
        self.info = data.info
        self._reader = SampleReader(data.samples, data.order, config.max_corrupt, data.prefetcher)
        self.corrupt = self._reader.corrupt
        self._decode = pillow_decoder(self.info.resolution, config.resolution)
        self._finish = BatchFinisher(data.order, data.factor, bool(self.info.class_names))

    def batches(self, start: int) -> Iterator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""
        number = 0
        while True:  # once per run, and once more after each batch that DALI could not decode
            for batch in self._decodable(start, number):
                yield batch
                number += 1
            yield self._decoded_by_pillow(self._share.positions(start, number))
            number += 1

    def close(self) -> None:
        """Close the shards; a graph is released with the iterator that uses it."""
        self._reader.close()

    def _decodable(self, start: int, first: int) -> Iterator[ImageBatch]:
        """Yield micro-batches from number `first`; end before one that DALI cannot decode."""
        feed = _Feed(self._load, lambda k: self._share.positions(start, first + k), self._config)
        graph = build_graph(
            feed.next_batch,
            batch_size=self._share.micro_batch_size,
            threads=self._config.workers,
            prefetch=self._config.prefetch,
            decoder="cpu" if self._device.type == "cpu" else "mixed",
            edge=self._config.resolution if self.info.resolution == ORIGINAL else None,
            device_id=self._device_id(),
        )
        graph.build()
        try:
            for k in itertools.count():
                images = self._run(graph, feed)
                if images is None:
                    return
                positions = self._share.positions(start, first + k)
                yield self._finish.finish_mirrored(images, feed.labels.pop(k), positions)
        finally:
            feed.close()

    def _load(self, positions: range) -> _Loaded:
        encoded, labels = self._reader.load(positions, _as_array)
        return encoded, [Flip(flip) for flip in self._finish.flips(positions)], labels

    def _run(self, graph: Any, feed: _Feed) -> Tensor | None:
        """Return the next decoded batch, None if it cannot be decoded.

        Its memory is DALI's, which does not use it again before the tensor is gone.
        """
        try:
            (output,) = graph.run(self._stream())
        except RuntimeError as error:
            if feed.failure is not None:
                raise feed.failure from None
            logger.warning("DALI could not decode a batch, Pillow does: %s", _reason(error))
            return None
        tensor: Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
        return tensor

    def _decoded_by_pillow(self, positions: range) -> ImageBatch:
        arrays, labels = self._reader.load(positions, self._decode)
        images = to_device(torch.from_numpy(np.stack(arrays)), self._device)
        return self._finish(images, labels, positions)

    def _stream(self) -> torch.cuda.Stream | None:
        """Return the stream that uses the images: DALI reuses their memory only after it."""
        return torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None

    def _device_id(self) -> int | None:
        if self._device.type != "cuda":
            return None
        return self._device.index if self._device.index is not None else torch.cuda.current_device()


_Loaded = tuple[list[Encoded], list[Flip], list[int]]


class _Feed:
    """Encoded batches in order for DALI, with their labels kept until the pixels come out."""

    def __init__(
        self,
        load: Callable[[range], _Loaded],
        positions: Callable[[int], range],
        config: DataConfig,
    ) -> None:
        self.labels: dict[int, list[int]] = {}
        self.failure: Exception | None = None
        self._batches = read_ahead(lambda k: load(positions(k)), 1, config.prefetch)
        self._count = itertools.count()

    def next_batch(self) -> tuple[list[Encoded], list[Flip]]:
        """Return the next batch's encoded images; DALI would hide the type of an exception."""
        try:
            encoded, flips, labels = next(self._batches)
        except Exception as error:
            self.failure = error
            raise
        self.labels[next(self._count)] = labels
        return encoded, flips

    def close(self) -> None:
        """Stop reading ahead."""
        self._batches.close()


def _as_array(encoded: bytes) -> Encoded:
    return np.frombuffer(encoded, np.uint8)


def _reason(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "rror" in line and "operator" not in line), lines[0])
