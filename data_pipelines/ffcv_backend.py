"""FFCV over a set's `.beton`: just-in-time compiled decoding from the operating system's cache.

FFCV's loader binds order and epochs to itself, and starts a thread per epoch; so only its compiled
decoder is used, once per run, and fed with sample numbers in our own order.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.beton import BETON, check_beton, import_ffcv
from data_pipelines.datasets import open_data
from data_pipelines.delivery import BatchFinisher, SampleReader, planes_first, read_ahead, to_device
from data_pipelines.images import BadImage
from data_pipelines.order import Integers
from data_pipelines.pipeline import DataConfig, ImageBatch, Share
from data_pipelines.shards import ShardedImages


class BetonSamples:
    """A beton's samples by number, checked before FFCV decodes them without noticing damage."""

    def __init__(self, images: ShardedImages) -> None:
        self._images = images
        self.path = images.path
        self._rows = check_beton(images.path, images.info.digest)
        self._file = os.open(self.path / BETON, os.O_RDONLY | os.O_CLOEXEC)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> tuple[int, int | None]:
        """Return a sample's own number and its label. Raises BadImage if its bytes are damaged."""
        row = self._rows[index]
        content = os.pread(self._file, int(row["length"]), int(row["offset"]))
        if zlib.crc32(content) != int(row["crc32"]):
            raise BadImage("damaged in the beton: its checksum does not fit")
        return index, self._images.label(index)

    def locate(self, index: int) -> str:
        """Return where a sample lies, for messages."""
        return f"sample {index} (at byte {int(self._rows[index]['offset'])} of {BETON})"

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class FfcvPipeline:
    """One rank's share of a packed set, decoded by FFCV; an ImagePipeline."""

    def __init__(
        self, config: DataConfig, seed: int, share: Share, device: torch.device | str
    ) -> None:
        import_ffcv()
        if config.mix:
            raise ValueError("backend='ffcv' reads one set; set data.backend=dali for a mix")
        self._config, self._share, self._device = config, share, torch.device(device)
        data = open_data(config, seed)
        assert isinstance(data.samples, ShardedImages)
        self.info = data.info
        self._samples = BetonSamples(data.samples)
        self._reader = SampleReader(self._samples, data.order, config.max_corrupt)
        self.corrupt = self._reader.corrupt
        self._finish = BatchFinisher(data.order, data.factor, bool(self.info.class_names))
        self._decoder = _Decoder(self._samples.path / BETON, share.micro_batch_size, config.workers)

    def batches(self, start: int) -> Generator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""

        def produce(k: int) -> ImageBatch:
            positions = self._share.positions(start, k)
            indices, labels = self._reader.load(positions, lambda index: index)
            pixels = to_device(self._decoder(np.array(indices)), self._device)
            return self._finish(planes_first(pixels), labels, positions)

        return read_ahead(produce, 1, self._config.prefetch)  # FFCV itself uses all workers

    def close(self) -> None:
        """Close the beton."""
        self._samples.close()


class _Decoder:
    """FFCV's compiled decoder: sample numbers to pixels."""

    def __init__(self, path: Path, batch_size: int, threads: int) -> None:
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader
        from ffcv.loader.epoch_iterator import EpochIterator

        class Idle(EpochIterator):  # type: ignore[misc]
            """FFCV's iterator, whose thread is not started: it is asked batch by batch."""

            def start(self) -> None:
                pass

        self._loader = Loader(
            str(path),
            batch_size=batch_size,
            num_workers=threads,
            os_cache=True,
            pipelines={"image": [SimpleRGBImageDecoder()], "label": None},
        )
        self._runner: Any = Idle(self._loader, np.zeros(0, np.int64))

    def __call__(self, indices: Integers) -> Tensor:
        """Return the samples' pixels, uint8 [B, H, W, 3]; the next call overwrites them."""
        (pixels,) = self._runner.run_pipeline(0, indices, 0, None)
        return torch.from_numpy(pixels)
