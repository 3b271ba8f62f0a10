"""Which checkpoints may be deleted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What stays on disk; whatever one rule keeps, stays.

    Attributes:
        last: How many newest ones.
        every_images: Those that first reached a multiple of this many images; None: no rule.
        best: Whether the one with the lowest metric stays (the newest of equals).
    """

    last: int
    every_images: int | None = None
    best: bool = False

    def expendable(self, checkpoints: Mapping[int, float | None]) -> list[int]:
        """Return the images of those that no rule keeps, oldest first.

        Args:
            checkpoints: Metric (None: unknown) by images seen.
        """
        images = sorted(checkpoints)
        kept = set(images[-self.last :])
        if self.every_images:
            first: dict[int, int] = {}
            for n in images:
                if n >= self.every_images:
                    first.setdefault(n // self.every_images, n)
            kept |= set(first.values())
        known = {n: m for n, m in checkpoints.items() if m is not None and math.isfinite(m)}
        if self.best and known:
            kept.add(min(known, key=lambda n: (known[n], -n)))
        return [n for n in images if n not in kept]
