"""How images are corrupted: EDM's noise in stage 1; blur and block noise in relay stages.

See docs/reference/rdm.md#5, #6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from models.config_io import require_finite
from models.rdm.block_noise import block_noise
from models.rdm.dct import attenuation, tile_blur
from models.sample_rng import Draws

MAX_WEIGHT = 1e5
"""Largest weight of a squared error in relay stages."""


class Process(Protocol):
    """What distinguishes the stages: the noise levels, the corruption, and the weight."""

    @property
    def sigma_data(self) -> float:
        """Assumed standard deviation of the images."""

    def sample_level(self, draws: Draws) -> Level:
        """Draw one level per sample."""

    def corrupt(self, images: Tensor, level: Level, draws: Draws) -> Tensor:
        """Return noisy images, float32 [B, C, H, W]."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the weights of the squared errors, [B]."""


class Level(NamedTuple):
    """How strongly each sample is corrupted.

    Attributes:
        sigma: Noise level, float32 [B].
        blur_sigma: Width of the blur in pixels, float32 [B]; None where nothing is blurred.
    """

    sigma: Tensor
    blur_sigma: Tensor | None


@dataclass(frozen=True, kw_only=True)
class EdmProcess:
    """Stage 1: Gaussian noise at log-normal levels (docs/reference/rdm.md#6.1).

    Attributes:
        p_mean: Mean of ln sigma.
        p_std: Standard deviation of ln sigma.
        sigma_data: Assumed standard deviation of the images.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require_finite(self)
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


@dataclass(frozen=True, kw_only=True)
class RelayProcess:
    """Later stages: tiles are blurred while noise with a low-resolution part is added.

    With time u ~ U(0, 1): sigma(u) = exp(p_mean + p_std Phi^-1(u p)), b(u) = b_max sin^2(pi u / 2),
    x_u = blur(x; b) + sigma (n + alpha Block(g)). The class follows the official code where that
    deviates from the paper (docs/reference/rdm.md#11):

    * the noise's variance 1 + alpha^2 is left as it is, unless `normalise_noise` is set (#11.1);
    * the smallest time is p Phi(.) where inverting sigma(u) would give Phi(.) / p, so that levels
      reach 5 % below `truncate_sigma` (#11.4);
    * time is not clipped on the sampling side: above sigma(1) the blur decreases again (#5.4).

    Noise that the official loss draws and throws away is not drawn; sigma is computed in float64
    per sample, everything at image size in float32 (#11.12).

    Attributes:
        upscale: Ratio to the previous stage's resolution; edge of tiles and noise blocks.
        p_mean: Mean of ln sigma before truncation.
        p_std: Standard deviation of ln sigma before truncation.
        sigma_data: Assumed standard deviation of the images.
        prob_length: p, the part of the noise levels' distribution that is used, in (0, 1].
        blur_sigma_max: Width of the blur at u = 1, in pixels.
        min_scale: What is left of the highest frequencies by the strongest blur, in [0, 1).
        truncate_sigma: Smallest noise level (nearly, see above).
        block_noise_alpha: Amplitude of the block noise relative to the iid noise; 0 for none.
        normalise_noise: Divide the noise by sqrt(1 + alpha^2), as the paper does.
    """

    upscale: int = 4
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5
    prob_length: float = 0.93
    blur_sigma_max: float = 3.0
    min_scale: float = 1e-3
    truncate_sigma: float = 0.0075
    block_noise_alpha: float = 0.15
    normalise_noise: bool = False

    def __post_init__(self) -> None:
        require_finite(self)
        if self.upscale < 2:
            raise ValueError(f"upscale={self.upscale} must be at least 2")
        for name in ("p_std", "sigma_data", "truncate_sigma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("blur_sigma_max", "block_noise_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 < self.prob_length <= 1:
            raise ValueError(f"prob_length={self.prob_length} must be in (0, 1]")
        if not 0 <= self.min_scale < 1:
            raise ValueError(f"min_scale={self.min_scale} must be in [0, 1)")

    def sample_level(self, draws: Draws) -> Level:
        """Draw one uniform time per sample."""
        return self.level_at(draws.rand())

    def level_at(self, time: Tensor) -> Level:
        """Return sigma and blur_sigma, float32, at times in [0, 1]; small times are raised."""
        standard = (math.log(self.truncate_sigma) - self.p_mean) / self.p_std
        smallest = self.prob_length * 0.5 * math.erfc(-standard / math.sqrt(2))
        time = time.to(torch.float64).clamp(min=smallest)
        quantile = torch.special.ndtri(time * self.prob_length)
        sigma = (self.p_mean + self.p_std * quantile).exp()
        return Level(sigma.to(torch.float32), self.blur_sigma(time).to(torch.float32))

    def blur_sigma(self, time: Tensor) -> Tensor:
        """Return the width of the blur in pixels at a time, in time's dtype."""
        return (torch.pi / 2 * time).sin().square() * self.blur_sigma_max

    def time_at(self, sigma: Tensor, prob_length: float | None = None) -> Tensor:
        """Return the time of noise levels >= 0, unclipped (above 1 beyond sigma(1)).

        Args:
            sigma: Noise levels, float64.
            prob_length: Replaces the training value (CelebA-HQ samples with 1.05,
                docs/reference/rdm.md#11.6).
        """
        standard = (sigma.log() - self.p_mean) / self.p_std
        quantile: Tensor = torch.special.ndtr(standard)
        return quantile / (prob_length or self.prob_length)

    def attenuation_at(self, sigma: Tensor, prob_length: float | None = None) -> Tensor:
        """Return alpha_t, what is left of a tile's frequencies at noise levels [n]: [n, s, s]."""
        blur_sigma = self.blur_sigma(self.time_at(sigma, prob_length))
        return attenuation(blur_sigma, self.upscale, self.min_scale)

    def corrupt(self, images: Tensor, level: Level, draws: Draws) -> Tensor:
        """Blur the images and add noise (one normal draw, two with block noise), float32.

        Raises:
            ValueError: upscale does not divide H and W.
        """
        assert level.blur_sigma is not None
        noisy = tile_blur(images, level.blur_sigma, self.upscale, self.min_scale)
        sigma = level.sigma.view(-1, 1, 1, 1) * self.noise_gain
        noisy.addcmul_(draws.randn(images.shape[1:]), sigma)
        if self.block_noise_alpha:
            blocks = block_noise(draws.randn(images.shape[1:]), self.upscale)
            noisy.addcmul_(blocks, sigma * self.block_noise_alpha)
        return noisy

    @property
    def noise_gain(self) -> float:
        """Factor of the noise, 1 unless it is normalised."""
        return (1 + self.block_noise_alpha**2) ** -0.5 if self.normalise_noise else 1.0

    def weight(self, sigma: Tensor) -> Tensor:
        """Return EDM's weight, at most 1e5 (which the default levels never reach)."""
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return weight.clamp(max=MAX_WEIGHT)
