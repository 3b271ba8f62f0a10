"""Residual blocks and input pyramids of the generators (docs/reference/wavediff.md#3.1, #3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import GroupNorm, mean_down, nearest_up
from models.wavediff.haar import haar_dwt, haar_idwt
from models.wavediff.layers import (
    EPS,
    NEARLY_ZERO,
    AdaptiveGroupNorm,
    Conv2d,
    Linear,
    residual,
)
from models.wavediff.resample import fir_down, fir_kernel, fir_up, upfirdn2d

Resampling = Literal["none", "down", "up"]


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """What all residual blocks of a generator have in common.

    Attributes:
        embedding_dim: Width of the latent embedding (AdaGN).
        time_dim: Width of the time embedding.
        rescale: Divide the sum of both paths by sqrt(2).
        fir: Resample FIR blocks by the (1, 3, 3, 1) filter; else by means and repetition.
        adaptive_norms: 2, or 1 where the second norm has plain weights (`biggan_oneadagn`).
    """

    embedding_dim: int
    time_dim: int
    rescale: bool = True
    fir: bool = True
    adaptive_norms: Literal[1, 2] = 2


class ResidualBlock(nn.Module):
    """What all kinds of block share: two convolutions, time and latent conditioning, a skip path.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        settings: What the blocks have in common.
        resampling: Whether the block halves or doubles the resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        settings: BlockSettings,
        resampling: Resampling = "none",
    ) -> None:
        super().__init__()
        self.resampling = resampling
        self.rescale = settings.rescale
        self.fir = settings.fir
        self.GroupNorm_0 = AdaptiveGroupNorm(in_channels, settings.embedding_dim)
        self.Conv_0 = Conv2d(in_channels, out_channels)
        self.Dense_0 = Linear(settings.time_dim, out_channels)
        self.GroupNorm_1: AdaptiveGroupNorm | GroupNorm
        if settings.adaptive_norms == 2:
            self.GroupNorm_1 = AdaptiveGroupNorm(out_channels, settings.embedding_dim)
        else:
            self.GroupNorm_1 = GroupNorm(out_channels, EPS)
        self.Conv_1 = Conv2d(out_channels, out_channels, variance_scale=NEARLY_ZERO)
        self.Conv_2: Conv2d | None = None
        if in_channels != out_channels or resampling != "none":
            self.Conv_2 = Conv2d(in_channels, out_channels, kernel=1)

    def activate(self, x: Tensor, latent: Tensor) -> Tensor:
        """Return the normalised, modulated and activated input."""
        return F.silu(self.GroupNorm_0(x, latent))

    def project(self, x: Tensor) -> Tensor:
        """Return the skip path with the output's channels."""
        return x if self.Conv_2 is None else self.Conv_2(x)

    def finish(self, h: Tensor, time: Tensor | None, latent: Tensor) -> Tensor:
        """Return the end of the residual path: time, second norm, convolution."""
        if time is not None:
            h = h + self.Dense_0(F.silu(time))[:, :, None, None]
        if isinstance(self.GroupNorm_1, AdaptiveGroupNorm):
            h = self.GroupNorm_1(h, latent)
        else:
            h = self.GroupNorm_1(h)
        return self.Conv_1(F.silu(h))  # type: ignore[no-any-return]


class FirBlock(ResidualBlock):
    """Residual block of NCSN++ that resamples both paths by FIR filters, or by 2x2 means."""

    def forward(self, x: Tensor, time: Tensor | None, latent: Tensor) -> Tensor:
        """Map x [B, in, H, W] to [B, out, H', W'], given time and latent embeddings."""
        h = self.activate(x, latent)
        if self.resampling != "none":
            h, x = self.resample(h), self.resample(x)
        h = self.finish(self.Conv_0(h), time, latent)
        return residual(self.project(x), h, self.rescale)

    def resample(self, x: Tensor) -> Tensor:
        """Halve or double the resolution."""
        if self.resampling == "down":
            return fir_down(x) if self.fir else mean_down(x)
        return fir_up(x) if self.fir else nearest_up(x)


class FrequencyBlock(ResidualBlock):
    """Frequency-aware block of WaveDiff, resolution unchanged."""

    def forward(self, x: Tensor, time: Tensor | None, latent: Tensor) -> Tensor:
        """Map x [B, in, H, W] to [B, out, H, W], given time and latent embeddings."""
        h = self.Conv_0(self.activate(x, latent))
        return residual(self.project(x), self.finish(h, time, latent), self.rescale)


class FrequencyDown(ResidualBlock):
    """Frequency-aware block that passes the low band on and hands the details to its up block."""

    def forward(self, x: Tensor, time: Tensor | None, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Map x [B, in, H, W] to [B, out, H/2, W/2], with details LH, HL, HH [B, 3 out, H/2, W/2].

        Only the residual path's details are kept. All bands are at half the orthonormal scale,
        where the low band is the mean of 2x2 squares (the official code halves details later).
        """
        bands = haar_dwt(self.Conv_0(self.activate(x, latent)), scale=0.5)
        width = bands.shape[1] // 4
        low, details = bands[:, :width], bands[:, width:]
        skip = mean_down(self.project(x))
        return residual(skip, self.finish(low, time, latent), self.rescale), details


class FrequencyUp(ResidualBlock):
    """Frequency-aware block that doubles the resolution with the details of its down block.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        settings: What the blocks have in common.
        detail_channels: Channels of each of the three bands of details.
    """

    def __init__(
        self, in_channels: int, out_channels: int, settings: BlockSettings, detail_channels: int
    ) -> None:
        super().__init__(in_channels, out_channels, settings, "up")
        self.convH_0 = Conv2d(3 * detail_channels, 3 * out_channels, groups=3)

    def forward(self, x: Tensor, time: Tensor | None, latent: Tensor, details: Tensor) -> Tensor:
        """Map x [B, in, H, W] and half details [B, 3 detail_channels, H, W] to [B, out, 2H, 2W].

        The same details enter both paths.
        """
        h = self.Conv_0(self.activate(x, latent))
        details = self.convH_0(details)
        h = haar_idwt(torch.cat([h, details], 1), scale=0.5)
        x = haar_idwt(torch.cat([self.project(x), details], 1), scale=0.5)
        return residual(x, self.finish(h, time, latent), self.rescale)


class WaveletDownsample(Conv2d):
    """Level of the wavelet input pyramid: all four bands at half scale, convolved."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(4 * in_channels, out_channels)

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, out, H/2, W/2]."""
        return super().forward(haar_dwt(input, scale=0.5))


class FirDownsample(nn.Module):
    """Level of the FIR input pyramid: smoothed, then convolved with stride 2 and no padding."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.Conv2d_0 = Conv2d(in_channels, out_channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, out, H/2, W/2]."""
        return self.Conv2d_0(upfirdn2d(x, fir_kernel(x), pad=(2, 2)))  # type: ignore[no-any-return]


class PlainDownsample(nn.Module):
    """Level of the input pyramid without FIR: a row and column of zeros, convolved at stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.Conv_0 = Conv2d(in_channels, out_channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, out, H/2, W/2]."""
        return self.Conv_0(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Combine(nn.Module):
    """Join the reduced input with the features, by sum or by concatenation (`input_skip`)."""

    def __init__(self, in_channels: int, out_channels: int, method: Literal["sum", "cat"]) -> None:
        super().__init__()
        self.method = method
        self.Conv_0 = Conv2d(in_channels, out_channels, kernel=1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x [B, in, H, W] and h [B, out, H, W] to [B, out or 2 out, H, W]."""
        x = self.Conv_0(x)
        return x + h if self.method == "sum" else torch.cat([x, h], 1)
