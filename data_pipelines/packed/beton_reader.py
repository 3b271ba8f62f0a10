"""Reading a beton at random: one sample's content by its index, checked before FFCV decodes it."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict

from data_pipelines.images import BadImage
from data_pipelines.packed.beton import check_beton, page_size
from data_pipelines.packed.manifest import BETON
from data_pipelines.packed.reader import ShardedImages
from models.safe_files.transient import SteadyFile

Content = tuple[int, bytes]
"""What a beton holds of an image: the mode (JPEG or RAW), and the bytes."""


class BetonSamples:
    """A beton's samples by index; an instance of `reader.Samples`.

    Every read is checked, because FFCV decodes damaged bytes without an error.

    Args:
        images: The packed set.
        cache_bytes: Size of the pages cached in this process; None relies on the operating system.
        min_pages: Pages to cache at least.
    """

    def __init__(
        self, images: ShardedImages, cache_bytes: int | None = None, min_pages: int = 1
    ) -> None:
        self._images = images
        self.path = images.path
        record, self._rows = check_beton(images.path, images.manifest)
        self._mode = record.mode
        self._file = SteadyFile(self.path / BETON)
        self._pages: PageCache | None = None
        if cache_bytes is not None:
            size = page_size(images.info.resolution)
            self._pages = PageCache(
                self._file.descriptor, size, max(cache_bytes // size, min_pages)
            )

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
            raise BadImage("damaged in the beton: its checksum does not match")
        return (self._mode, content), self._images.label(index)

    def _bytes(self, offset: int, length: int) -> bytes:
        if self._pages is None:
            return self._file.read(length, offset)
        pages = self._pages
        return self._file.retried(lambda: pages.read(offset, length))

    def locate(self, index: int) -> str:
        """Return where a sample is stored, for messages."""
        return f"sample {index} (at byte {int(self._rows[index]['offset'])} of {BETON})"

    def close(self) -> None:
        """Close the file."""
        del self._file


class PageCache:
    """Keeps the most recently used pages of a file in memory; thread-safe.

    Args:
        file: Descriptor of the open file, whose size is a multiple of `page_size`.
        page_size: Bytes of a page.
        slots: Number of pages to keep.
    """

    def __init__(self, file: int, page_size: int, slots: int) -> None:
        self._file, self._page_size, self._slots = file, page_size, slots
        self._pages: OrderedDict[int, _Page] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file within one page. Raises OSError if it is cut short."""
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
                self._pages.popitem(last=False)  # threads still reading it keep a reference
        return page


class _Page:
    """A page, read from the file on first use without blocking the use of other pages."""

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
