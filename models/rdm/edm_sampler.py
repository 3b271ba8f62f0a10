"""The stage-1 sampler (docs/reference/rdm.md#9.1, #9.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from models.rdm.sampler import Denoise, LabelledDenoise, SamplingBase, finished
from models.sample_rng import Draws


class EdmSampler:
    """Draws images from a stage-1 network (models.sampler.Sampler)."""

    def __init__(
        self,
        denoise: LabelledDenoise,
        settings: EdmSampling,
        *,
        resolution: int,
        label_dim: int,
        device: torch.device,
    ) -> None:
        self.denoise = denoise
        self.settings = settings
        self.resolution = resolution
        self.label_dim = label_dim
        self.device = device
        self.nfe = {f"{resolution}px": settings.evaluations(label_dim > 0)}

    def generate(self, draws: Draws, labels: Tensor | None = None) -> Tensor:
        """Return images in [-1, 1], neither clipped nor quantised unless they are enhanced."""
        latents = draws.randn((3, self.resolution, self.resolution))
        denoise = self.settings.guidance.apply(self.denoise, labels)
        return finished(edm_sample(denoise, latents, draws, self.settings), self.settings.enhance)


@dataclass(frozen=True, kw_only=True)
class EdmSampling(SamplingBase):
    """Settings of the stage-1 sampler; the defaults are those of the generic script.

    Attributes:
        sde_scale: c of the CelebA-HQ script: each step to level t ends with fresh noise c t; 0
            leaves the deterministic step, which draws no such noise.
    """

    steps: int = 18
    sigma_min: float = 0.002
    sde_scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sde_scale <= 1:
            raise ValueError(f"sde_scale={self.sde_scale} must be in [0, 1]")


def edm_sample(denoise: Denoise, latents: Tensor, draws: Draws, settings: EdmSampling) -> Tensor:
    """Return samples of the EDM process, [B, C, H, W] in settings.dtype.

    See docs/reference/rdm.md#9.1 and #9.2.

    Each step draws churn noise whether or not it is used; with an SDE term, the Euler update draws
    once more (also in the last step, times 0), and so does the Heun update.

    Args:
        denoise: The denoiser, labels and guidance bound.
        latents: Standard normal values, [B, C, H, W].
        draws: Source of all further noise.
        settings: Grid and stochasticity.
    """
    levels = settings.levels()
    shape, dtype = latents.shape[1:], settings.dtype
    x = latents.to(dtype) * levels[0]
    for t, t_next in pairwise(levels):
        t_hat = settings.churn.raised(t, settings.steps)
        x_hat = settings.churn.add(x, t, t_hat, draws.randn(shape, dtype))
        fresh = settings.sde_scale * t_next
        step = math.sqrt(t_next**2 - fresh**2) - t_hat

        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat.add(d, alpha=step)
        if settings.sde_scale:
            x = x.add(draws.randn(shape, dtype), alpha=fresh)

        if t_next and settings.second_order:
            d_next = (x - denoise(x, t_next)) / t_next
            x = x_hat.add(d + d_next, alpha=step / 2)
            if settings.sde_scale:
                x = x.add(draws.randn(shape, dtype), alpha=fresh)
    return x
