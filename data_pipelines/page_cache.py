"""A cache of a file's pages in the memory of this process, instead of the operating system's.

For file systems whose own cache is small or slow (many network mounts): each page is read by one
large request, and stays until the room is needed for others.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict


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
