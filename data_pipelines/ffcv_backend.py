"""FFCV over a set's `.beton`: just-in-time compiled decoding.

FFCV's loader binds order and epochs to itself, and starts a thread per epoch; so only its compiled
decoder is used, once per run, and fed with sample numbers in our own order. The file is mapped into
memory (the operating system's cache), or kept page by page in this process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.beton import check_beton, import_ffcv, page_size
from data_pipelines.datasets import open_data
from data_pipelines.delivery import (
    BatchFinisher,
    SampleReader,
    Samples,
    planes_first,
    read_ahead,
    to_device,
)
from data_pipelines.images import BadImage
from data_pipelines.joined import Joined
from data_pipelines.manifest import BETON
from data_pipelines.order import Integers
from data_pipelines.page_cache import PageCache
from data_pipelines.pipeline import DataConfig, ImageBatch, Share
from data_pipelines.shards import ShardedImages


class BetonSamples:
    """A beton's samples by number, checked before FFCV decodes them without noticing damage.

    Args:
        images: The packed set.
        slots: Pages to keep in this process; None leaves them to the operating system.

    Attributes:
        pages: The pages that are kept, if any.
    """

    def __init__(self, images: ShardedImages, slots: int | None) -> None:
        self._images = images
        self.path = images.path
        self._rows = check_beton(images.path, images.info.digest)
        self._file = os.open(self.path / BETON, os.O_RDONLY | os.O_CLOEXEC)
        size = page_size(images.info.resolution)
        self.pages = None if slots is None else PageCache(self._file, size, slots)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> tuple[Place, int | None]:
        """Return where a sample lies and its label. Raises BadImage if its bytes are damaged."""
        row = self._rows[index]
        offset, length = int(row["offset"]), int(row["length"])
        try:
            content = self._bytes(offset, length)
        except OSError as error:
            raise BadImage(f"unreadable: {error}") from None
        if zlib.crc32(content) != int(row["crc32"]):
            raise BadImage("damaged in the beton: its checksum does not fit")
        return (self, index), self._images.label(index)

    def _bytes(self, offset: int, length: int) -> bytes | memoryview:
        if self.pages is None:
            return os.pread(self._file, length, offset)
        return self.pages.read(offset, length)

    def locate(self, index: int) -> str:
        """Return where a sample lies, for messages."""
        return f"sample {index} (at byte {int(self._rows[index]['offset'])} of {BETON})"

    def hold(self, indices: Integers) -> None:
        """Have the pages of these samples in memory, if pages are kept."""
        if self.pages is not None:
            self.pages.hold(self._rows["offset"][indices].tolist())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


Place = tuple[BetonSamples, int]
"""Where a sample lies: its set, and its number within the set."""


class FfcvPipeline:
    """One rank's share of a packed set, decoded by FFCV; an ImagePipeline."""

    def __init__(
        self, config: DataConfig, seed: int, share: Share, device: torch.device | str
    ) -> None:
        import_ffcv()
        self._config, self._share, self._device = config, share, torch.device(device)
        data = open_data(config, seed)
        self.info = data.info
        betons = [BetonSamples(part, self._slots()) for part in data.sets]
        samples: Samples[Place] = betons[0] if len(betons) == 1 else Joined(betons)
        self._reader = SampleReader(samples, data.order, config.max_corrupt)
        self.corrupt = self._reader.corrupt
        self._finish = BatchFinisher(data.order, data.factor, bool(self.info.class_names))
        self._decoders = {
            beton: _Decoder(beton, share.micro_batch_size, config.workers) for beton in betons
        }

    def batches(self, start: int) -> Generator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""

        def produce(k: int) -> ImageBatch:
            positions = self._share.positions(start, k)
            places, labels = self._reader.load(positions, lambda place: place)
            pixels = to_device(self._decoded(places), self._device)
            return self._finish(planes_first(pixels), labels, positions)

        return read_ahead(produce, 1, self._config.prefetch)  # FFCV itself uses all workers

    def close(self) -> None:
        """Close the beton."""
        self._reader.close()

    def _decoded(self, places: Sequence[Place]) -> Tensor:
        """Return the pixels of samples, uint8 [B, H, W, 3]; the next call may overwrite them."""
        indices = np.array([index for _, index in places])
        if len(self._decoders) == 1:
            return self._decoders[places[0][0]](indices)
        edge = self.info.resolution
        pixels = torch.empty((len(places), edge, edge, 3), dtype=torch.uint8)
        for beton, decoder in self._decoders.items():
            rows = np.flatnonzero([beton is other for other, _ in places])
            if len(rows):
                pixels[torch.from_numpy(rows)] = decoder(indices[rows])
        return pixels

    def _slots(self) -> int | None:
        """Return how many pages of a set to keep in this process: at least those of a batch."""
        if self._config.ffcv_cache_gb is None:
            return None
        share = self._config.ffcv_cache_gb * 1e9 / (1 + len(self._config.mix))
        return max(int(share) // page_size(self.info.resolution), self._share.micro_batch_size)


class _Decoder:
    """FFCV's compiled decoder: sample numbers to pixels."""

    def __init__(self, samples: BetonSamples, batch_size: int, threads: int) -> None:
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader
        from ffcv.loader.epoch_iterator import EpochIterator

        class Idle(EpochIterator):  # type: ignore[misc]
            """FFCV's iterator, whose thread is not started: it is asked batch by batch."""

            def start(self) -> None:
                pass

        self._samples = samples
        self._loader = Loader(
            str(samples.path / BETON),
            batch_size=batch_size,
            num_workers=threads,
            os_cache=samples.pages is None,
            pipelines={"image": [SimpleRGBImageDecoder()], "label": None},
        )
        if samples.pages is not None:
            self._loader.memory_manager = _OurPages(self._loader.memory_manager, samples.pages)
        self._runner: Any = Idle(self._loader, np.zeros(0, np.int64))

    def __call__(self, indices: Integers) -> Tensor:
        """Return the samples' pixels, uint8 [B, H, W, 3]; the next call overwrites them."""
        self._samples.hold(indices)
        (pixels,) = self._runner.run_pipeline(0, indices, 0, None)
        return torch.from_numpy(pixels)


class _OurPages:
    """FFCV's process cache, filled by us: FFCV's own needs the whole epoch's order beforehand."""

    def __init__(self, manager: Any, pages: PageCache) -> None:
        self.state = (pages.memory, manager.ptrs, manager.sizes, pages.slot_of_page)

    def schedule_epoch(self, batches: object) -> _OurPages:
        """Return what FFCV calls an epoch's memory: this."""
        return self

    def __enter__(self) -> _OurPages:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start_batch(self, number: int) -> None:
        """Nothing is to be loaded."""
