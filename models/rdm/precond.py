"""EDM preconditioning: from the raw network F to the denoiser D (docs/reference/rdm.md#2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Scalings(NamedTuple):
    """Coefficients of the denoiser, float32, one per noise level."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


@dataclass(frozen=True)
class Preconditioning:
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), the same in both stages.

    Nothing compensates for the blur or the block noise's extra variance in the relay stage.

    Attributes:
        sigma_data: Assumed standard deviation of the images.
    """

    sigma_data: float

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return the coefficients at float32 noise levels."""
        total = sigma**2 + self.sigma_data**2
        return Scalings(
            c_skip=self.sigma_data**2 / total,
            c_out=sigma * self.sigma_data / total.sqrt(),
            c_in=1 / total.sqrt(),
            c_noise=sigma.log() / 4,
        )

    def denoise(
        self,
        network: nn.Module,
        x: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Return the denoised images D, float32 [B, C, H, W].

        Args:
            network: The UNet.
            x: Noisy images, [B, C, H, W]; computed with in float32.
            sigma: Noise level, > 0: one per sample [B], or one number for all.
            labels: Class indices, int64 [B], -1 for none; or None.
            augment_labels: As in UNet.forward.
            dropout_keys: As in UNet.forward.

        Raises:
            ValueError: sigma is a number that is not positive.
        """
        x = x.to(torch.float32)
        if isinstance(sigma, float):
            if not sigma > 0:
                raise ValueError(f"sigma={sigma} must be positive")
            sigma = torch.full((1,), sigma, device=x.device)
        sigma = sigma.to(torch.float32).reshape(-1)
        scalings = self.scalings(sigma)
        c_skip, c_out, c_in = (c.reshape(-1, 1, 1, 1) for c in scalings[:3])
        raw = network(c_in * x, scalings.c_noise, labels, augment_labels, dropout_keys)
        denoised: Tensor = c_skip * x + c_out * raw.to(torch.float32)
        return denoised
