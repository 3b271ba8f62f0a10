"""Progress: a bar with images/s and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_SECONDS = 10.0


class Progress:
    """Counts images; a context manager.

    Args:
        title: What is being done.
        total: Images in all.
        done: Images that an earlier run has done.
    """

    def __init__(self, title: str, *, total: int, done: int = 0) -> None:
        self._title, self._total, self._done, self._count = title, total, done, done
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            unit="image",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._bar.disable and self._count > self._done:
            self._print_line()

    def counting(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, counting each."""
        for item in items:
            self.advance(1)
            yield item

    def advance(self, images: int) -> None:
        """Count images."""
        self._count += images
        self._bar.update(images)
        if self._bar.disable and time.monotonic() - self._last_line > LINE_SECONDS:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        rate = (self._count - self._done) / max(self._last_line - self._start, 1e-9)
        left = (self._total - self._count) / rate if rate else float("inf")
        print(
            f"{self._title}: {self._count}/{self._total} images,"
            f" {rate:.0f} images/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
