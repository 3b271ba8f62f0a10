"""What the samplers of all RDM stages share (docs/reference/rdm.md#9, #10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from models.config_io import require_finite
from models.rdm.enhance import check_operations, enhance
from models.rdm.precond import Preconditioning
from models.sampler import quantise

MAX_STEPS = 100_000
MIN_SIGMA = 1e-6
"""Below this the network's embedding of a level, and the weights in float32, lose their meaning."""

Denoise = Callable[[Tensor, float], Tensor]
"""(noisy images, sigma) -> denoised images of the same dtype."""
LabelledDenoise = Callable[[Tensor, float, Tensor | None], Tensor]
"""(noisy images, sigma, labels int64 [B] with -1 for none, or None) -> denoised images."""


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Noise that is added before a step, to be removed in it (EDM).

    Attributes:
        amount: S_churn; spread over the steps, each raising sigma by at most sqrt(2) - 1 of itself.
        sigma_min: Smallest level that is churned.
        sigma_max: Largest level that is churned.
        noise: S_noise, a factor of the added noise.
    """

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = 1e9
    noise: float = 1.0

    def __post_init__(self) -> None:
        require_finite(self)
        for name in ("amount", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"churn {name}={getattr(self, name)} must not be negative")

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads, and why."""
        names = () if self.amount else ("sigma_min", "sigma_max", "noise")
        return dict.fromkeys(names, "no level is churned; set sampling.churn.amount, too")

    def acts_at(self, sigma: float) -> bool:
        """Say whether a level is churned."""
        return self.amount > 0 and self.sigma_min <= sigma <= self.sigma_max

    def raised(self, sigma: float, steps: int) -> float:
        """Return the level that a step from `sigma` starts at."""
        if not self.acts_at(sigma):
            return sigma
        return sigma * (1 + min(self.amount / steps, math.sqrt(2) - 1))

    def add(self, x: Tensor, sigma: float, raised: float, noise: Tensor) -> Tensor:
        """Return x at level `raised`, with one normal draw (which is taken in any case)."""
        if raised == sigma:
            return x
        return x + math.sqrt(raised**2 - sigma**2) * self.noise * noise


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance: D = w D(x, class) - (w - 1) D(x, none) for scales w > 1.

    Attributes:
        scale: w; at 1 or less the network is evaluated once, with the labels.
        sigma_min: Guidance acts at levels above this,
        sigma_max: and up to this; outside, the scale is 1 (guidance interval).
    """

    scale: float = 1.0
    sigma_min: float = 0.0
    sigma_max: float = 1e9

    def __post_init__(self) -> None:
        require_finite(self)
        if self.scale < 0:
            raise ValueError(f"guidance scale={self.scale} must not be negative")

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads, and why."""
        names = () if self.scale > 1 else ("sigma_min", "sigma_max")
        return dict.fromkeys(names, "no level is guided; set sampling.guidance.scale above 1, too")

    def acts_at(self, sigma: float) -> bool:
        """Say whether a level takes two evaluations."""
        return self.scale > 1 and self.sigma_min < sigma <= self.sigma_max

    def apply(self, denoise: LabelledDenoise, labels: Tensor | None) -> Denoise:
        """Bind labels; both evaluations are one call on a batch of 2B, conditional half first."""

        def guided(x: Tensor, sigma: float) -> Tensor:
            if labels is None or not self.acts_at(sigma):
                return denoise(x, sigma, labels)
            both = torch.cat([labels, torch.full_like(labels, -1)])
            conditional, free = denoise(torch.cat([x, x]), sigma, both).chunk(2)
            return free.lerp(conditional, self.scale)

        return guided


@dataclass(frozen=True, kw_only=True)
class SamplingBase:
    """Settings that the samplers of all stages have.

    Attributes:
        steps: Levels of the grid before truncation, not counting the final 0.
        sigma_min: Smallest level of the grid.
        sigma_max: Largest level of the grid.
        rho: Exponent of the grid; larger spends more steps at small levels.
        churn: Noise added before each step.
        guidance: Classifier-free guidance.
        second_order: Correct each step but the last by a second evaluation (Heun), else Euler.
        sampler_dtype: Dtype of the state and of all draws after the first; float64 reproduces the
            official samplers, float32 is faster and differs from them by rounding and other draws.
        enhance: Operations of the official scripts on the finished 8-bit images, as
            (brightness | color | contrast, factor); only for the last stage
            (docs/reference/rdm.md#11.8).
    """

    steps: int
    sigma_min: float
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: Churn = field(default_factory=Churn)
    guidance: Guidance = field(default_factory=Guidance)
    second_order: bool = True
    sampler_dtype: Literal["float32", "float64"] = "float32"
    enhance: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        require_finite(self)
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps={self.steps} must be at least 1 and at most {MAX_STEPS}")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min={self.sigma_min} and sigma_max={self.sigma_max} must be positive levels"
                " in rising order"
            )
        if not self.rho > 0:
            raise ValueError(f"rho={self.rho} must be positive")
        check_operations(self.enhance)
        self._check_grid()

    def _check_grid(self) -> None:
        """Raise ValueError if rounding, or float32, leaves no falling grid of positive levels."""
        try:
            grid = self.grid()
        except OverflowError:
            grid = []
        if not grid or grid[-2] < MIN_SIGMA or any(b >= a for a, b in pairwise(grid)):
            raise ValueError(
                f"rho={self.rho} with sigma_min={self.sigma_min}, sigma_max={self.sigma_max} and"
                f" steps={self.steps} gives no falling levels above {MIN_SIGMA}; the default of rho"
                " is 7"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the sampler's state."""
        return torch.float64 if self.sampler_dtype == "float64" else torch.float32

    def grid(self) -> list[float]:
        """Return the levels in falling order, and 0 (docs/reference/rdm.md#9)."""
        start, stop = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ramp = [i / max(self.steps - 1, 1) for i in range(self.steps)]
        return [*((start + r * (stop - start)) ** self.rho for r in ramp), 0.0]

    def levels(self) -> list[float]:
        """Return the levels that sampling visits in falling order, ending with 0."""
        return self.grid()

    def without_effect(self) -> list[str]:
        """Return one line for each setting that is given and changes nothing."""
        levels, found = self.levels()[:-1], []
        if self.churn.amount and not any(map(self.churn.acts_at, levels)):
            found.append(f"churn.amount={self.churn.amount} (no level is churned)")
        if 0 < self.guidance.scale < 1:
            found.append(f"guidance.scale={self.guidance.scale} (below 1 is as 1)")
        if self.guidance.scale > 1 and not any(map(self.guidance.acts_at, levels)):
            found.append(f"guidance.scale={self.guidance.scale} (no level is guided)")
        between = f"the levels are {levels[0]:.4g} to {levels[-1]:.4g}"
        return [f"sampling.{setting} has no effect; {between}" for setting in found]

    def evaluations(self, conditional: bool) -> int:
        """Return network evaluations per image; those with guidance count twice."""
        levels = self.levels()[:-1]
        visited = [self.churn.raised(sigma, len(levels)) for sigma in levels]
        if self.second_order:
            visited += levels[1:]
        return sum(2 if conditional and self.guidance.acts_at(sigma) else 1 for sigma in visited)


class NetworkDenoiser:
    """A preconditioned network as a sampler sees it, in the dtype of its input."""

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        self.network = network
        self.precondition = Preconditioning(sigma_data)

    def __call__(self, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        """Return the denoised images; see Preconditioning.denoise."""
        return self.precondition.denoise(self.network, x, sigma, labels).to(x.dtype)


def finished(images: Tensor, operations: Sequence[tuple[str, float]]) -> Tensor:
    """Apply the scripts' 8-bit operations, if any, to images in [-1, 1].

    The result of `quantise` on enhanced images is exactly the enhanced 8-bit image. Pixels that are
    not finite stay so, for the caller to find: as 8-bit values they would be black.
    """
    if not operations:
        return images
    enhanced = enhance(quantise(images), operations).to(images.dtype) / 127.5 - 1
    return torch.where(images.isfinite(), enhanced, images)
