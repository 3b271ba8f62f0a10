"""A cache of a file's pages in the memory of this process, instead of the operating system's.

For file systems whose own cache is small or slow (many network mounts): each page is read by one
large request, and stays until the room is needed for others.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np


class PageCache:
    """The pages of a file that were used last; for one thread.

    Args:
        file: Descriptor of the open file, whose size is a multiple of `page_size`.
        page_size: Bytes of a page.
        slots: Pages that are kept.

    Attributes:
        memory: The pages, uint8 [slots, page_size].
        slot_of_page: Where each page lies in memory, if it does, uint32 [pages].
    """

    def __init__(self, file: int, page_size: int, slots: int) -> None:
        pages = os.fstat(file).st_size // page_size
        self._file, self._page_size = file, page_size
        self.memory = np.empty((min(slots, pages), page_size), np.uint8)
        self.slot_of_page = np.zeros(pages, np.uint32)
        self._slots: OrderedDict[int, int] = (
            OrderedDict()
        )  # by page, the one used longest ago first

    def read(self, offset: int, length: int) -> memoryview:
        """Return bytes of the file that lie within one page; valid until the next call."""
        page, start = divmod(offset, self._page_size)
        return self._load(page)[start : start + length]

    def hold(self, offsets: Iterable[int]) -> None:
        """Have the pages at all these offsets in memory; they must not be more than the slots."""
        pages = {offset // self._page_size for offset in offsets}
        assert len(pages) <= len(self.memory)
        for page in [*(pages & self._slots.keys()), *(pages - self._slots.keys())]:
            self._load(page)

    def _load(self, page: int) -> memoryview:
        if page not in self._slots:
            full = len(self._slots) == len(self.memory)
            slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
            self._fill(slot, page)
            self._slots[page] = slot
            self.slot_of_page[page] = slot
        self._slots.move_to_end(page)
        view: memoryview = self.memory[self._slots[page]].data
        return view

    def _fill(self, slot: int, page: int) -> None:
        target = self.memory[slot].data
        done = 0
        while done < self._page_size:
            count = os.preadv(self._file, [target[done:]], page * self._page_size + done)
            if count == 0:
                raise OSError(f"the file ends within page {page}")
            done += count
