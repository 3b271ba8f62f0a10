"""The relay sampler: from a low to a high resolution (docs/reference/rdm.md#9.3, #9.4).

All updates are linear maps of image tiles, so each step multiplies tiles by one matrix, computed
beforehand, and never visits the frequency domain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.rdm.block_noise import block_noise
from models.rdm.dct import dct_matrix, map_tiles
from models.rdm.process import RelayProcess
from models.rdm.sampler import Denoise, LabelledDenoise, SamplingBase, finished
from models.sample_rng import Draws
from models.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class RelaySampling(SamplingBase):
    """Settings of the relay sampler; the defaults are those of the generic script.

    Attributes:
        truncation_sigma: Sampling starts at the grid's first level below this.
        prob_length: Used in time_at(sigma) when sampling; null is the training value (the CelebA-HQ
            script takes 1.05 for a network trained with 0.89, docs/reference/rdm.md#11.6).
        eta: Share of fresh noise in each step: 0 is the ODE, 1 forgets the old noise.
        block_noise_alpha: Amplitude of block noise when sampling; null is the training value.
        churn_draws: Draw churn noise before each step, the last included, as the CelebA-HQ script
            does. The network sees the churned images, but the update still starts from the
            image before the churn (the script's inconsistency, docs/reference/rdm.md#9.4).
    """

    steps: int = 18
    sigma_min: float = 0.008
    truncation_sigma: float = 0.9
    prob_length: float | None = None
    eta: float = 0.2
    block_noise_alpha: float | None = None
    churn_draws: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truncation_sigma <= self.sigma_min:
            raise ValueError(
                f"truncation_sigma={self.truncation_sigma} leaves no level above"
                f" sigma_min={self.sigma_min}; raise it"
            )
        self._check_start()
        if self.prob_length is not None and not self.prob_length > 0:
            raise ValueError(f"prob_length={self.prob_length} must be positive")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} must be in [0, 1]")
        if self.block_noise_alpha is not None and self.block_noise_alpha < 0:
            raise ValueError(f"block_noise_alpha={self.block_noise_alpha} must not be negative")
        if self.churn.amount and not self.churn_draws:
            raise ValueError("churn without draws: set sampling.churn_draws=true as well")

    def _check_start(self) -> None:
        """Raise ValueError if no level is left, or only the smallest: that returns the input."""
        start = self.levels()[0]
        if start <= self.sigma_min * (1 + 1e-6):
            raise ValueError(
                f"steps={self.steps} leave no level between sigma_min={self.sigma_min} and"
                f" truncation_sigma={self.truncation_sigma}, so that the relay would return its"
                " input; take more steps (the defaults need 4), or a larger rho"
            )

    def levels(self) -> list[float]:
        """Return the grid's levels below truncation_sigma, and 0."""
        return [sigma for sigma in self.grid() if sigma < self.truncation_sigma]


class RelayNoise:
    """Draws the noise of a relay process: iid, and block noise in the dtype of the latents."""

    def __init__(
        self, process: RelayProcess, alpha: float, latents: Tensor, draws: Draws, dtype: torch.dtype
    ) -> None:
        self.alpha = alpha
        self.gain = (1 + alpha**2) ** -0.5 if process.normalise_noise else 1.0
        self.size = process.upscale
        self.shape, self.block_dtype, self.dtype = latents.shape[1:], latents.dtype, dtype
        self.draws = draws

    def add(self, x: Tensor, amplitude: float) -> Tensor:
        """Return x plus noise; one normal draw, and a second with block noise, even if times 0."""
        iid = self.draws.randn(self.shape, self.dtype)
        blocks = self.draws.randn(self.shape, self.block_dtype) if self.alpha else None
        amplitude *= self.gain
        if amplitude == 0:
            return x
        x = x.add(iid, alpha=amplitude)
        if blocks is not None:
            x = x.add(block_noise(blocks, self.size), alpha=amplitude * self.alpha)
        return x


def relay_sample(
    denoise: Denoise, latents: Tensor, draws: Draws, process: RelayProcess, settings: RelaySampling
) -> Tensor:
    """Return samples of the relay process, [B, C, H, W] in settings.dtype.

    Written for the state x in pixels, with the tile matrix M = [alpha_t' - gamma alpha_t] and
    gamma = sqrt(1 - eta^2) t'/t, a step from t to t' is

        Euler: x1 = gamma x + M D(x, t) + eta t' eps
        Heun:  x  = gamma x + M ((x + D) / 2 - (t / t') (x1 - D(x1, t')) / 2) + eta t' eps

    with fresh noise in the correction (docs/reference/rdm.md#11.7); the last step returns D.

    Args:
        denoise: The denoiser, labels and guidance bound.
        latents: The previous stage's images, enlarged by pixel repetition, [B, C, H, W].
        draws: Source of all noise.
        process: The blur; its edge of tiles must divide H and W.
        settings: Grid and stochasticity.
    """
    levels, dtype = settings.levels(), settings.dtype
    steps = len(levels) - 1
    alpha = settings.block_noise_alpha
    alpha = process.block_noise_alpha if alpha is None else alpha
    noise = RelayNoise(process, alpha, latents, draws, dtype)
    starts = [settings.churn.raised(sigma, steps) for sigma in levels[:-1]]
    matrices = step_matrices(process, settings, starts, levels[1:]).to(latents.device, dtype)
    x = noise.add(latents.to(dtype), levels[0])
    for t, t_hat, t_next, matrix in zip(levels, starts, levels[1:], matrices, strict=False):
        x_hat = x
        if settings.churn_draws:
            x_hat = settings.churn.add(x, t, t_hat, draws.randn(latents.shape[1:], dtype))
        denoised = denoise(x_hat, t_hat)
        if t_next == 0:
            return denoised
        gamma, ratio = keep(settings.eta) * t_next / t_hat, t_hat / t_next
        x1 = heun_update(x, denoised, None, matrix, gamma, ratio)
        x1 = noise.add(x1, settings.eta * t_next)
        if settings.second_order:
            residual = x1 - denoise(x1, t_next)
            x1 = heun_update(x, denoised, residual, matrix, gamma, ratio)
            x1 = noise.add(x1, settings.eta * t_next)
        x = x1
    return x


def heun_update(
    x: Tensor,
    denoised: Tensor,
    residual: Tensor | None,
    matrix: Tensor,
    gamma: float,
    ratio: float,
) -> Tensor:
    """Return the noise-free result of an Euler step, or of its Heun correction.

    Args:
        x: State at level t.
        denoised: D(x, t).
        residual: x1 - D(x1, t') of the Euler result x1; None for the Euler step itself.
        matrix: Tile matrix M of the step, in x's dtype.
        gamma: Factor of x.
        ratio: t / t'.
    """
    if residual is not None:
        denoised = (x + denoised).sub_(residual, alpha=ratio).mul_(0.5)
    return map_tiles(matrix, denoised).add_(x, alpha=gamma)


def keep(eta: float) -> float:
    """Return sqrt(1 - eta^2), the amplitude of the old noise after a step."""
    return float((1 - eta**2) ** 0.5)


def step_matrices(
    process: RelayProcess, settings: RelaySampling, starts: list[float], targets: list[float]
) -> Tensor:
    """Return M of each step for flattened tiles, float64 [n, s^2, s^2] on the CPU."""
    start, target = (torch.tensor(sigmas, dtype=torch.float64) for sigmas in (starts, targets))
    gamma = (keep(settings.eta) * target / start).view(-1, 1, 1)
    before, after = (process.attenuation_at(s, settings.prob_length) for s in (start, target))
    basis = dct_matrix(process.upscale)
    basis = torch.kron(basis, basis)
    factors = (after - gamma * before).flatten(1)
    return (basis.T * factors.unsqueeze(1)) @ basis


class RelaySampler:
    """Draws images from a relay network and the stages before it (models.sampler.Sampler).

    Raises:
        ValueError: The previous stage's resolution or classes do not fit.
    """

    def __init__(
        self,
        denoise: LabelledDenoise,
        previous: Sampler,
        process: RelayProcess,
        settings: RelaySampling,
        *,
        resolution: int,
        label_dim: int,
        device: torch.device,
    ) -> None:
        if previous.resolution * process.upscale != resolution:
            raise ValueError(
                f"a relay to {resolution} pixels with upscale={process.upscale} continues from"
                f" {resolution // process.upscale} pixels, but the previous stage makes"
                f" {previous.resolution}; give the snapshots from low to high resolution"
            )
        if previous.label_dim and label_dim and previous.label_dim != label_dim:
            raise ValueError(
                f"the previous stage has {previous.label_dim} classes, this one {label_dim};"
                " take stages that were trained on the same data set"
            )
        self.denoise = denoise
        self.previous = previous
        self.process = process
        self.settings = settings
        self.resolution = resolution
        self.own_label_dim = label_dim
        self.label_dim = label_dim or previous.label_dim
        self.device = device
        self.nfe = {**previous.nfe, f"{resolution}px": settings.evaluations(label_dim > 0)}

    def generate(self, draws: Draws, labels: Tensor | None = None) -> Tensor:
        """Return images in [-1, 1], neither clipped nor quantised unless they are enhanced.

        The previous stage draws first, from the same streams; its images are used unchanged, in its
        sampler's dtype.
        """
        images = self.previous.generate(draws, labels if self.previous.label_dim else None)
        latents = enlarge(images, self.process.upscale)
        own_labels = labels if self.own_label_dim else None
        denoise = self.settings.guidance.apply(self.denoise, own_labels)
        images = relay_sample(denoise, latents, draws, self.process, self.settings)
        return finished(images, self.settings.enhance)


def enlarge(images: Tensor, factor: int) -> Tensor:
    """Repeat each pixel of [B, C, H, W] in a factor x factor square."""
    return F.interpolate(images, scale_factor=float(factor), mode="nearest")
