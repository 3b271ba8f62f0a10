"""How an exponential moving average weighs the past, as pure functions of images seen."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class HalflifeEma:
    """EMA with a half-life in images that ramps up with training (docs/reference/rdm.md#8.4).

    h = min(halflife_images, rampup_ratio * images seen before the step), beta = 0.5^(batch / h);
    rampup_ratio=null switches the ramp off.
    """

    halflife_images: int
    rampup_ratio: float | None = 0.05

    def __post_init__(self) -> None:
        if self.halflife_images < 1:
            raise ValueError(f"halflife_images={self.halflife_images} must be at least 1")
        if self.rampup_ratio is not None and not self.rampup_ratio > 0:
            raise ValueError(f"rampup_ratio={self.rampup_ratio} must be positive or null")

    def beta(self, images_seen: int, batch: int) -> float:
        """Return the weight of the old average in the step that starts at `images_seen`."""
        halflife = float(self.halflife_images)
        if self.rampup_ratio is not None:
            halflife = min(halflife, self.rampup_ratio * images_seen)
        return float(0.5 ** (batch / max(halflife, 1e-8)))

    def describe(self) -> str:
        """Return one line for snapshots and logs."""
        return f"halflife {self.halflife_images} images, rampup {self.rampup_ratio}"


@dataclass(frozen=True, kw_only=True)
class ConstantEma:
    """EMA of constant decay from the first updated weights on (docs/reference/wavediff.md#7.2)."""

    decay: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} must be in [0, 1)")

    def beta(self, images_seen: int, batch: int) -> float:
        """Return the weight of the old average in the step that starts at `images_seen`."""
        del batch
        return self.decay if images_seen else 0.0

    def describe(self) -> str:
        """Return one line for snapshots and logs."""
        return f"decay {self.decay}"


@dataclass(frozen=True, kw_only=True)
class PowerEma:
    """EMA whose memory grows with training: the weights of time s count as s^gamma.

    beta = (1 - batch / (images_seen + batch))^(gamma + 1); `relative_width` is the standard
    deviation of the profile relative to the length of training, 0.05 or 0.10 are customary (Karras
    et al., "Analyzing and improving the training dynamics of diffusion models", section 3.1). Two
    such averages, stored at intervals, let any other be reconstructed after training.
    """

    relative_width: float

    def __post_init__(self) -> None:
        if not 0 < self.relative_width < 12**-0.5:
            raise ValueError(
                f"relative_width={self.relative_width} must be above 0 and below 0.288, the width"
                " of a plain mean over all of training"
            )

    @functools.cached_property
    def gamma(self) -> float:
        """Exponent of the profile: the root of (g + 1) / ((g + 2)^2 (g + 3)) = relative_width^2."""
        width = self.relative_width**-2
        roots = np.roots([1.0, 7.0, 16.0 - width, 12.0 - width])
        return float(roots.real.max())

    def beta(self, images_seen: int, batch: int) -> float:
        """Return the weight of the old average in the step that starts at `images_seen`."""
        return math.pow(images_seen / (images_seen + batch), self.gamma + 1)

    def describe(self) -> str:
        """Return one line for snapshots and logs."""
        return f"power {self.relative_width}"


EmaProfile = HalflifeEma | ConstantEma | PowerEma
