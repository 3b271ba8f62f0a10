"""The few-step diffusion of DDGAN: its coefficients, forward pairs and posterior.

Coefficients are computed in float64 up to the betas and in float32 from there, as the official
weights were trained with (docs/reference/wavediff.md#2).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.config_io import require_finite


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Noise schedule.

    Attributes:
        steps: T, the number of denoising steps; timesteps t are 0..T-1.
        beta_min: Noise rate at time 0 (variance at time 0 if geometric).
        beta_max: Noise rate at time 1 (variance at time 1 if geometric).
        geometric: Interpolate the variance geometrically instead of the variance-preserving law.
    """

    steps: int = 4
    beta_min: float = 0.1
    beta_max: float = 20.0
    geometric: bool = False

    def __post_init__(self) -> None:
        require_finite(self)
        if self.steps < 1:
            raise ValueError(f"diffusion.steps={self.steps} must be at least 1")
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(
                f"beta_min={self.beta_min} and beta_max={self.beta_max} must satisfy"
                " 0 < beta_min < beta_max"
            )
        if self.geometric and self.beta_max >= 1:
            raise ValueError(
                f"beta_max={self.beta_max} is a variance if geometric=true and must be below 1"
            )

    def times(self) -> Tensor:
        """Return t_i = eps + (1 - eps) i / T, i = 0..T, float64; eps = 1e-3."""
        return 1e-3 + (1 - 1e-3) * torch.arange(self.steps + 1, dtype=torch.float64) / self.steps

    def variance(self, times: Tensor) -> Tensor:
        """Return the variance of the noise in x at continuous times in [0, 1]."""
        low, high = self.beta_min, self.beta_max
        if self.geometric:
            return low * (high / low) ** times
        return -torch.expm1(-0.5 * times**2 * (high - low) - times * low)

    def betas(self) -> Tensor:
        """Return beta_0 = 1e-8 and beta_1..beta_T, float32 [T + 1]."""
        kept = 1 - self.variance(self.times())
        betas = 1 - kept[1:] / kept[:-1]
        return torch.cat([torch.full((1,), 1e-8, dtype=torch.float64), betas]).float()


@dataclass(frozen=True)
class Coefficients:
    """Float32 coefficients of a schedule, on one device.

    Attributes:
        step_scale: sqrt(1 - beta_i), i = 0..T.
        step_noise: sqrt(beta_i).
        scale: Product of step_scale up to i: x_t = scale_t x_0 + noise_t e.
        noise: sqrt(1 - scale_i^2).
        posterior_x0: Weight of x_0 in the posterior mean, t = 0..T-1.
        posterior_x_tp1: Weight of x_{t+1} in the posterior mean.
        posterior_deviation: Standard deviation of the posterior; 0 at t = 0.
    """

    step_scale: Tensor
    step_noise: Tensor
    scale: Tensor
    noise: Tensor
    posterior_x0: Tensor
    posterior_x_tp1: Tensor
    posterior_log_variance: Tensor
    posterior_deviation: Tensor


@lru_cache(maxsize=16)
def coefficients(config: DiffusionConfig, device: torch.device) -> Coefficients:
    """Return the coefficients of a schedule on a device; they are computed once."""
    betas = config.betas()
    step_scale = (1 - betas).sqrt()
    # As numpy computes these two in the official code: products one by one in float32 (torch's
    # cumprod works in float64), and a root that is rounded correctly (its float32 one need not be).
    scale = torch.stack(list(itertools.accumulate(step_scale, torch.mul)))
    noise = (1 - scale**2).double().sqrt().float()
    beta, alpha = betas[1:], 1 - betas[1:]
    kept = alpha.cumprod(0)
    kept_before = torch.cat([torch.ones(1), kept[:-1]])
    log_variance = (beta * (1 - kept_before) / (1 - kept)).clamp(min=1e-20).log()
    deviation = (0.5 * log_variance).exp()
    deviation[0] = 0
    tensors = (
        step_scale,
        betas.sqrt(),
        scale,
        noise,
        beta * kept_before.sqrt() / (1 - kept),
        (1 - kept_before) * alpha.sqrt() / (1 - kept),
        log_variance,
        deviation,
    )
    return Coefficients(*(tensor.to(device) for tensor in tensors))


class Diffusion:
    """Forward process and posterior of a schedule, on tensors of any float dtype and device."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.steps = config.steps

    def pair(
        self, x0: Tensor, t: Tensor, noise_tp1: Tensor, noise_t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (x_t, x_{t+1}): x_t from x_0 in one leap, x_{t+1} from x_t by one step.

        Args:
            x0: Clean samples [B, C, H, W].
            t: Timesteps in 0..T-1, int64 [B].
            noise_tp1: Normal noise of the step to t + 1 (drawn first).
            noise_t: Normal noise of the leap to t (drawn second).

        Raises:
            ValueError: A timestep is outside the schedule (on the CPU; elsewhere asking waits).
        """
        self._check_timesteps(t)
        table = coefficients(self.config, x0.device)
        x_t = _rows(table.scale, t, x0) * x0 + _rows(table.noise, t, x0) * noise_t
        step = _rows(table.step_scale, t + 1, x0) * x_t
        return x_t, step + _rows(table.step_noise, t + 1, x0) * noise_tp1

    def posterior_sample(self, x0: Tensor, x_tp1: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return a sample of q(x_t | x_{t+1}, x_0); at t = 0 it is x_0 and the noise is unused.

        Raises:
            ValueError: A timestep is outside the schedule (on the CPU).
        """
        self._check_timesteps(t)
        table = coefficients(self.config, x0.device)
        mean = _rows(table.posterior_x0, t, x0) * x0 + _rows(table.posterior_x_tp1, t, x0) * x_tp1
        return mean + _rows(table.posterior_deviation, t, x0) * noise

    def _check_timesteps(self, t: Tensor) -> None:
        if t.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if not 0 <= int(t.min()) <= int(t.max()) < self.steps:
            raise ValueError(
                f"timesteps {int(t.min())}..{int(t.max())} are outside 0..{self.steps - 1}, the"
                f" schedule of diffusion.steps={self.steps}"
            )


def _rows(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Return the entries of each sample, [B, 1, 1, 1]."""
    return table[t].to(like.dtype)[:, None, None, None]
