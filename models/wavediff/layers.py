"""Layers of the WaveDiff networks: float32 weights that compute in the dtype of their input.

Initial distributions are those of docs/reference/wavediff.md#3.4, uniform in U(-b, b). Attribute
names that look odd (GroupNorm_0, NIN_0, W, b) are those of the official weight files.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import layers
from models.layers import GroupNorm, norm_groups, sinusoids

EPS = 1e-6
"""Added to the variance in group norms."""
NEARLY_ZERO = 1e-10
"""Variance scale of layers that start (almost) at zero."""


def half_width(fan: float, variance_scale: float = 1.0) -> float:
    """Return b of U(-b, b) with variance variance_scale / fan."""
    return math.sqrt(3 * variance_scale / fan)


class Conv2d(layers.Conv2d):
    """Convolution whose weights start by fan average or fan out, and its bias at 0."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, *,
        stride: int = 1, padding: int | None = None, groups: int = 1, bias: bool = True,
        variance_scale: float = 1.0, fan: Literal["average", "out"] = "average",
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel,
            stride=stride, padding=padding, groups=groups, bias=bias,
        )  # fmt: skip
        fan_in, fan_out = self.weight.shape[1] * kernel**2, out_channels * kernel**2
        width = half_width(fan_out if fan == "out" else (fan_in + fan_out) / 2, variance_scale)
        nn.init.uniform_(self.weight, -width, width)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Linear(nn.Linear):
    """Dense layer; weights start by fan average or fan out, the bias at 0."""

    def __init__(
        self, in_features: int, out_features: int, fan: Literal["average", "out"] = "average"
    ) -> None:
        super().__init__(in_features, out_features)
        average = (in_features + out_features) / 2
        width = half_width(out_features if fan == "out" else average)
        nn.init.uniform_(self.weight, -width, width)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return the affine map in the dtype of the input."""
        return F.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


class NetworkInNetwork(nn.Module):
    """Linear map of the channels of every pixel: y_d = sum_c x_c W[c, d] + b_d."""

    def __init__(self, in_channels: int, out_channels: int, variance_scale: float = 0.1) -> None:
        super().__init__()
        width = half_width((in_channels + out_channels) / 2, variance_scale)
        self.W = nn.Parameter(torch.empty(in_channels, out_channels).uniform_(-width, width))
        self.b = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, D, H, W]."""
        return F.conv2d(x, self.W.t()[:, :, None, None].to(x.dtype), self.b.to(x.dtype))


class AdaptiveGroupNorm(nn.Module):
    """AdaGN: normalisation whose scale and shift are linear in the latent embedding.

    The scale is used as it is (bias 1 at first), not as 1 + scale (docs/reference/wavediff.md#3.1).
    """

    def __init__(self, channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.groups = norm_groups(channels)
        self.style = Linear(embedding_dim, 2 * channels, fan="out")
        nn.init.ones_(self.style.bias[:channels])

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """Normalise x [B, C, H, W] and modulate it by latent [B, embedding_dim].

        The batch is folded into the channels, so that one kernel normalises and modulates; that is
        a view unless x is in channels_last. Compilers fuse by themselves, and exported graphs are
        for any batch, which the number of groups must not depend on.
        """
        scale, shift = self.style(latent)[:, :, None, None].chunk(2, 1)
        if torch.compiler.is_compiling() or not x.is_contiguous():
            return torch.addcmul(shift, scale, F.group_norm(x, self.groups, eps=EPS))
        folded, groups = x.view(1, -1, *x.shape[2:]), len(x) * self.groups
        return F.group_norm(folded, groups, scale.flatten(), shift.flatten(), EPS).view(x.shape)


class Attention(nn.Module):
    """Single-head self-attention over all pixels, with a residual connection."""

    def __init__(self, channels: int, rescale: bool) -> None:
        super().__init__()
        self.rescale = rescale
        self.GroupNorm_0 = GroupNorm(channels, EPS)
        self.NIN_0 = NetworkInNetwork(channels, channels)
        self.NIN_1 = NetworkInNetwork(channels, channels)
        self.NIN_2 = NetworkInNetwork(channels, channels)
        self.NIN_3 = NetworkInNetwork(channels, channels, variance_scale=NEARLY_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape; queries, keys and values come from one product."""
        pixels = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        maps = (self.NIN_0, self.NIN_1, self.NIN_2)
        weight = torch.cat([m.W for m in maps], 1).to(x.dtype)
        bias = torch.cat([m.b for m in maps]).to(x.dtype)
        query, key, value = (pixels @ weight + bias)[:, None].chunk(3, -1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed[:, 0].transpose(1, 2).view_as(x)
        return residual(x, self.NIN_3(mixed), self.rescale)


def residual(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """Return x + h, divided by sqrt(2) if `rescale` (which keeps the variance of two equals)."""
    return (x + h) * math.sqrt(0.5) if rescale else x + h


def timestep_features(t: Tensor, dim: int) -> Tensor:
    """Return sinusoids of integer timesteps t [B], float32 [B, dim] (zero-padded if dim is odd)."""
    cosines, sines = sinusoids(t, dim // 2, dim // 2 - 1)
    return F.pad(torch.cat([sines, cosines], 1), (0, dim % 2))


class PixelNorm(nn.Module):
    """Scale every latent vector to unit mean square."""

    def forward(self, z: Tensor) -> Tensor:
        """Map [B, latent_dim] to the same shape."""
        return z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)


def latent_mapping(latent_dim: int, embedding_dim: int, layers: int) -> nn.Sequential:
    """Return the mapping of latent z: PixelNorm, then layers + 1 times a dense layer and SiLU."""
    widths = [latent_dim] + [embedding_dim] * (layers + 1)
    modules: list[nn.Module] = [PixelNorm()]
    for width_in, width_out in itertools.pairwise(widths):
        modules += [Linear(width_in, width_out, fan="out"), nn.SiLU()]
    return nn.Sequential(*modules)
