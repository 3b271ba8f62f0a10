"""Progress of a long loop: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

LINE_SECONDS = 15.0


class Progress:
    """Counts images and shows rate and time left.

    Args:
        total: Images to do.
        title: What is being done.
        visible: False on all ranks but one.
    """

    def __init__(self, total: int, title: str, *, visible: bool = True) -> None:
        self.total, self.title, self.visible = total, title, visible
        self.done = 0
        self.started = self._shown = time.monotonic()
        self._is_bar = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def add(self, images: int) -> None:
        """Count finished images and show the state at intervals."""
        self.done = min(self.done + images, self.total)
        now = time.monotonic()
        is_due = now - self._shown >= (0.2 if self._is_bar else LINE_SECONDS)
        if self.visible and (is_due or (self._is_bar and self.done == self.total)):
            self._shown = now
            print(self._line(), end="" if self._is_bar else "\n", file=sys.stderr, flush=True)
            if self._is_bar and self.done == self.total:
                print(file=sys.stderr)

    def _line(self) -> str:
        rate = self.done / max(self.seconds, 1e-9)
        left = timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
        text = f"{self.title}: {self.done}/{self.total} images, {rate:.1f} images/s, {left} left"
        return f"\r{text:<79}" if self._is_bar else text
