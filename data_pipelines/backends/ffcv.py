"""FFCV over a set's `.beton`: just-in-time compiled decoding.

FFCV's loader binds order and epochs to itself, starts a thread per epoch, and builds Python tables
of all samples and pages, which for a million take seconds and half a gigabyte. So only its compiled
decoder is used, by our threads, on the bytes of a batch. These come through the operating system's
cache, or from pages kept in this process.
"""

from __future__ import annotations

import functools
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.backends.common import (
    BatchFinisher,
    SampleReader,
    planes_first,
    read_ahead,
    to_device,
)
from data_pipelines.datasets import Joined, open_data
from data_pipelines.images import BadImage
from data_pipelines.packed.beton import beton_mode, check_beton, import_ffcv, page_size
from data_pipelines.packed.manifest import BETON
from data_pipelines.packed.reader import Samples, ShardedImages
from data_pipelines.pipeline import DataConfig, ImageBatch, Share

THREADS_PAY_FROM = 128
"""Edge of images below which a sample costs Python, which threads contend for, more than FFCV."""

Content = tuple[int, bytes]
"""What a beton holds of an image: the mode (JPEG or RAW), and the bytes."""


class BetonSamples:
    """A beton's samples by number, checked before FFCV decodes them without noticing damage.

    Args:
        images: The packed set.
        slots: Pages to keep in this process; None leaves them to the operating system.
    """

    def __init__(self, images: ShardedImages, slots: int | None) -> None:
        self._images = images
        self.path = images.path
        self._rows = check_beton(images.path, images.info.digest)
        self._mode = beton_mode(images.path)
        self._file = os.open(self.path / BETON, os.O_RDONLY | os.O_CLOEXEC)
        size = page_size(images.info.resolution)
        self._pages = None if slots is None else PageCache(self._file, size, slots)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> tuple[Content, int | None]:
        """Return a sample's content and its label. Raises BadImage if its bytes are damaged."""
        row = self._rows[index]
        try:
            content = self._bytes(int(row["offset"]), int(row["length"]))
        except OSError as error:
            raise BadImage(f"unreadable: {error}") from None
        if zlib.crc32(content) != int(row["crc32"]):
            raise BadImage("damaged in the beton: its checksum does not fit")
        return (self._mode, content), self._images.label(index)

    def _bytes(self, offset: int, length: int) -> bytes:
        if self._pages is None:
            return os.pread(self._file, length, offset)
        return self._pages.read(offset, length)

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
        self._config, self._share, self._device = config, share, torch.device(device)
        data = open_data(config, seed)
        self.info = data.info
        betons = [BetonSamples(part, self._slots()) for part in data.sets]
        samples: Samples[Content] = betons[0] if len(betons) == 1 else Joined(betons)
        self._reader = SampleReader(samples, data.order, config.max_corrupt)
        self.corrupt = self._reader.corrupt
        self._finish = BatchFinisher(data.order, data.factor, bool(self.info.class_names))
        self._decoder = _Decoder(self.info.resolution)

    def batches(self, start: int) -> Generator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""

        def produce(k: int) -> ImageBatch:
            positions = self._share.positions(start, k)
            contents, labels = self._reader.load(positions, lambda _, content: content)
            pixels = to_device(self._decoder(contents), self._device)
            return self._finish(planes_first(pixels), labels, positions)

        small = self.info.resolution < THREADS_PAY_FROM
        return read_ahead(produce, 1 if small else self._config.workers, self._config.prefetch)

    def close(self) -> None:
        """Close the beton."""
        self._reader.close()

    def _slots(self) -> int | None:
        """Return how many pages of a set to keep in this process: at least one per thread."""
        if self._config.ffcv_cache_gb is None:
            return None
        share = self._config.ffcv_cache_gb * 1e9 / (1 + len(self._config.mix))
        return max(int(share) // page_size(self.info.resolution), self._config.workers)


class _Decoder:
    """FFCV's compiled decoder: contents of images of one edge to pixels; several threads may."""

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


class PageCache:
    """The pages of a file that were used last; safe to share by threads.

    Args:
        file: Descriptor of the open file, whose size is a multiple of `page_size`.
        page_size: Bytes of a page.
        slots: Pages that are kept.
    """

    def __init__(self, file: int, page_size: int, slots: int) -> None:
        self._file, self._page_size, self._slots = file, page_size, slots
        self._pages: OrderedDict[int, _Page] = OrderedDict()  # the one used longest ago first
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file that lie within one page. Raises OSError if it is cut short."""
        number, start = divmod(offset, self._page_size)
        content = self._page(number).content(self._file)
        return bytes(content[start : start + length])

    def __len__(self) -> int:
        return len(self._pages)

    def _page(self, number: int) -> _Page:
        with self._lock:
            page = self._pages.setdefault(number, _Page(number, self._page_size))
            self._pages.move_to_end(number)
            while len(self._pages) > self._slots:
                self._pages.popitem(last=False)  # threads that are reading it keep it
        return page


class _Page:
    """A page, read from the file when it is first needed, while other pages are used."""

    def __init__(self, number: int, size: int) -> None:
        self._number, self._size = number, size
        self._content: memoryview | None = None
        self._lock = threading.Lock()

    def content(self, file: int) -> memoryview:
        """Return the page's bytes."""
        with self._lock:
            if self._content is None:
                self._content = self._read(file)
            return self._content

    def _read(self, file: int) -> memoryview:
        page = memoryview(bytearray(self._size))
        done = 0
        while done < self._size:
            count = os.preadv(file, [page[done:]], self._number * self._size + done)
            if count == 0:
                raise OSError(f"the file ends within page {self._number}")
            done += count
        return page
