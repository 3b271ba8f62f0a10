"""Converting the items of a source in parallel: read, crop, resize and encode them."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import NamedTuple

from PIL import Image

from data_pipelines.images import (
    ORIGINAL,
    BadImage,
    Filter,
    ImageFormat,
    Pixels,
    bilinear_square,
    centre_square,
    decode,
    encode,
    may_stay,
)
from data_pipelines.sources.base import Entry, Skip, Source, SourceError
from data_pipelines.sources.steady import SteadyReader
from models.plugins import Reimport

CHUNK = 32
"""Items that a process converts at a time."""
SMALL = 256
"""Number of items up to which no processes are started."""


def converted(
    source: Source, conversion: Conversion, entries: Sequence[Entry], workers: int
) -> Generator[Packed | Skip]:
    """Yield the converted entries in order.

    Args:
        source: Where the entries are read from; each process opens it once.
        conversion: How each is converted.
        entries: What to convert.
        workers: Processes; with one, or few entries, everything happens in this process.

    Raises:
        SourceError: An item cannot be read now, also after several attempts.
        RuntimeError: A worker was killed (most often for lack of memory).
    """
    if workers == 1 or len(entries) <= SMALL:
        converter = ChunkConverter(source, conversion)
        try:
            for entry in entries:
                yield from converter([entry])
        finally:
            converter.close()
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(Reimport(), source, conversion),
    )
    try:
        yield from _in_order(pool, entries, in_flight=4 * workers)
    except BrokenProcessPool:
        raise RuntimeError(
            "a packing process was killed, most often for lack of memory;"
            " run the same command again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, entries: Sequence[Entry], in_flight: int
) -> Generator[Packed | Skip]:
    pending: deque[Future[list[Packed | Skip]]] = deque()
    for start in itertools.count(0, CHUNK):
        if start < len(entries):
            pending.append(pool.submit(convert_chunk, entries[start : start + CHUNK]))
        if not pending:
            return
        if len(pending) >= in_flight or start + CHUNK >= len(entries):
            yield from pending.popleft().result()


_converter: ChunkConverter | None = None
"""Of a process that start_worker has prepared."""


def start_worker(plugins: Reimport, source: Source, conversion: Conversion) -> None:
    """Prepare this process: ignore Ctrl-C, exit with the parent, open the source."""
    global _converter
    del plugins  # the source may be of one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _converter = ChunkConverter(source, conversion)


def convert_chunk(entries: Sequence[Entry]) -> list[Packed | Skip]:
    """Convert a list of entries in a process that start_worker has prepared."""
    assert _converter is not None
    return _converter(entries)


def _end_with_parent() -> None:
    """Exit when the parent is gone, so that a killed packer leaves no processes behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class ChunkConverter:
    """Converts lists of entries; holds the opened source. One per process."""

    def __init__(self, source: Source, conversion: Conversion) -> None:
        self._read = SteadyReader(source)
        self._conversion = conversion

    def __call__(self, entries: Sequence[Entry]) -> list[Packed | Skip]:
        """Convert the entries, in order; unusable ones become a Skip with the reason."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on metadata that is damaged
            return [self._convert(entry) for entry in entries]

    def close(self) -> None:
        """Close the source."""
        self._read.close()

    def _convert(self, entry: Entry) -> Packed | Skip:
        try:
            return self._conversion.apply(self._read(entry), entry.label)
        except BadImage as error:
            return Skip(entry.name, str(error))
        except SourceError:  # not the item's damage: the pack ends, and resumes with this shard
            raise
        except Exception as error:  # one odd item must not end the pack
            return Skip(entry.name, f"unusable: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class Conversion:
    """How an image is converted.

    Attributes:
        resolutions: Edges of the stored images, in pixels; ORIGINAL keeps the image as it is.
        filter: How images become squares of a resolution; see PackOptions.
        image_format: `png` and `webp` are lossless.
        quality: JPEG quality, 1..95.
        min_edge: Images with a shorter side below this are skipped.
        upright: Turn images as their EXIF orientation says.
    """

    resolutions: tuple[int, ...]
    filter: Filter
    image_format: ImageFormat
    quality: int
    min_edge: int
    upright: bool

    def apply(self, item: bytes | Pixels, label: int) -> Packed:
        """Return an item as it is stored. Raises BadImage: damaged, or too small."""
        if isinstance(item, bytes):
            image = decode(item, upright=self.upright)
        else:
            image = Image.fromarray(item)
        if min(image.size) < self.min_edge:
            width, height = image.size
            raise BadImage(f"too small: {width}x{height} pixels, fewer than {self.min_edge}")
        encoded = {r: self._stored(image, item, r) for r in self.resolutions}
        pixels = _pixel_digest(image) if self.resolutions[0] == ORIGINAL else ""
        return Packed(label, encoded, min(image.size), pixels)

    def _stored(self, image: Image.Image, item: bytes | Pixels, resolution: int) -> bytes:
        if resolution != ORIGINAL:
            square = centre_square if self.filter == "lanczos" else bilinear_square
            return encode(square(image, resolution), self.image_format, self.quality)
        if isinstance(item, bytes) and may_stay(item, upright=self.upright):
            return item
        return encode(image, "png", self.quality)


def _pixel_digest(image: Image.Image) -> str:
    """Return what identifies an image's pixels, for files whose bytes have more in them."""
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).hexdigest()


class Packed(NamedTuple):
    """One converted item.

    Attributes:
        label: Its class index, -1 if it has none.
        encoded: Its encoded bytes by resolution.
        edge: Shorter side of the image in the source, in pixels; 0 if unknown.
        pixels: Digest of its pixels where its bytes do not identify them, else "".
    """

    label: int
    encoded: dict[int, bytes]
    edge: int = 0
    pixels: str = ""
