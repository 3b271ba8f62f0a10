"""Stage 1: the EDM process at low resolution (spec/RDM.md section 6)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.rdm.denoising import Level
from models.streams import Draws


@dataclass(frozen=True, kw_only=True)
class EdmProcess:
    """Gaussian noise at log-normal levels.

    Attributes:
        p_mean: Mean of ln sigma.
        p_std: Standard deviation of ln sigma.
        sigma_data: Assumed standard deviation of the images.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        for name in ("p_std", "sigma_data"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")

    def sample_level(self, draws: Draws) -> Level:
        """Draw one normal value z per sample: sigma = exp(p_std z + p_mean)."""
        return Level((draws.randn(()) * self.p_std + self.p_mean).exp(), None)

    def corrupt(self, images: Tensor, level: Level, draws: Draws) -> Tensor:
        """Add sigma times one normal draw; float32 [B, C, H, W]."""
        noise = draws.randn(images.shape[1:])
        return images.addcmul(noise, level.sigma.view(-1, 1, 1, 1))

    def weight(self, sigma: Tensor) -> Tensor:
        """Return (sigma^2 + d^2) / (sigma d)^2, which gives every level unit weight at init."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
