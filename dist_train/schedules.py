"""Learning rates as pure functions of images seen: there is no scheduler state to lose."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WarmupSchedule:
    """Linear ramp from 0 to the base rate over `images` images, then constant.

    lr(n) = base * min(n / images, 1), n = images seen before the step (docs/reference/rdm.md#8.2);
    images=0 is a constant rate.
    """

    images: int = 0

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"images={self.images} must not be negative")

    def scale(self, images_seen: int) -> float:
        """Return lr / base at `images_seen`."""
        return min(images_seen / self.images, 1.0) if self.images else 1.0

    def rate(self, base: float, images_seen: int) -> float:
        """Return the learning rate at `images_seen`."""
        return base * self.scale(images_seen)


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Cosine from the base rate to `minimum`, steady in an epoch (docs/reference/wavediff.md#7.2).

    lr(e) = minimum + (base - minimum) (1 + cos(pi e / epochs)) / 2, e = images // epoch_images.
    """

    epochs: int
    epoch_images: int
    minimum: float = 1e-5

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.epoch_images < 1:
            raise ValueError(
                f"epochs={self.epochs} and epoch_images={self.epoch_images} must be positive"
            )
        if self.minimum < 0:
            raise ValueError(f"minimum={self.minimum} must not be negative")

    def rate(self, base: float, images_seen: int) -> float:
        """Return the learning rate at `images_seen`."""
        epoch = min(images_seen // self.epoch_images, self.epochs)
        return (
            self.minimum + (base - self.minimum) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        )
