"""The time-conditional discriminators of DDGAN and WaveDiff (docs/reference/wavediff.md#4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import ComputeDtype, cast_input, recomputed
from models.wavediff.layers import (
    NEARLY_ZERO,
    Conv2d,
    Linear,
    residual,
    timestep_features,
)
from models.wavediff.resample import fir_down

SLOPE = 0.2
"""Slope of the leaky ReLU at negative inputs."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Shape of a discriminator.

    Attributes:
        kind: `small` (first block keeps the resolution) for images of 32 and 64 pixels, `large`
            (every block halves it) for larger ones.
        layers: Number of blocks: 3 or 4 if small, 3 to 6 if large.
        base_channels: The blocks have 2, 4 and 8 times as many channels.
        embedding_dim: Width of the time embedding.
        patch_size: Edge of the squares of pixels that are folded into channels.
        local_head: Classify every position of the last feature map instead of their sum.
        stddev_group: Samples whose standard deviation is shown to the last layers.
        stddev_grouping: `consecutive` groups samples b G..b G + G - 1, which are fixed positions of
            the global order, so that neither ranks nor micro-batches matter. `strided` is the
            official grouping of min(B, G) samples B/G apart, which depends on the micro-batch.
        compute_dtype: Precision of the computation; weights are always float32.
        recompute_blocks: Keep only the blocks' inputs for the backward pass and run the blocks
            again there: about a third more time, a fraction of the memory.
    """

    RENAMED: ClassVar[dict[str, str]] = {"dtype": "compute_dtype"}

    kind: Literal["small", "large"] = "small"
    layers: int = 4
    base_channels: int = 64
    embedding_dim: int = 256
    patch_size: int = 1
    local_head: bool = False
    stddev_group: int = 4
    stddev_grouping: Literal["consecutive", "strided"] = "consecutive"
    compute_dtype: ComputeDtype = "float32"
    recompute_blocks: bool = False

    def __post_init__(self) -> None:
        most = 4 if self.kind == "small" else 6
        if not 3 <= self.layers <= most:
            raise ValueError(
                f"layers={self.layers} of a {self.kind} discriminator; expected 3..{most}"
            )
        for name in ("base_channels", "embedding_dim", "patch_size", "stddev_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")

    @property
    def halvings(self) -> int:
        """Number of times that the resolution is halved."""
        return self.layers - (self.kind == "small")

    def check_resolution(self, resolution: int) -> None:
        """Raise ValueError if an input of this edge cannot be halved often enough."""
        unit = self.patch_size * 2**self.halvings
        if resolution % unit or resolution < unit:
            raise ValueError(
                f"a {self.kind} discriminator of {self.layers} layers is too deep for an input of"
                f" edge {resolution}: that must be a multiple of {unit}; lower discriminator.layers"
            )


class Discriminator(nn.Module):
    """Classifies whether y_t is a true predecessor of y_{t+1}.

    Args:
        config: The shape.
        channels: Channels of y_t.
    """

    def __init__(self, config: DiscriminatorConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        base, dim = config.base_channels, config.embedding_dim
        self.t_embed = TimeEmbedding(dim)
        width = 2 * base
        self.start_conv = Conv2d(2 * channels * config.patch_size**2, width, 1, fan="out")
        for index, out in enumerate(self._widths(), 1):
            down = index > 1 or config.kind == "large"
            self.add_module(f"conv{index}", DiscriminatorBlock(width, out, dim, down))
            width = out
        scale = NEARLY_ZERO if config.kind == "small" else 1.0
        self.final_conv = Conv2d(width + 1, width, variance_scale=scale, fan="out")
        self.end_linear = Linear(width, 1, fan="out")
        if config.local_head:
            self.local_end_linear = Linear(width, 1, fan="out")

    def forward(self, y_t: Tensor, t: Tensor, y_tp1: Tensor) -> Tensor:
        """Return logits, [B, 1], or [B, H' W', 1] of the local head; positive means real.

        Args:
            y_t: The sample to classify, [B, C, H, W].
            t: Its timesteps, in 0..T-1, int64 [B].
            y_tp1: The noisier sample that it should precede, [B, C, H, W].

        Raises:
            ValueError: The batch does not split into groups of stddev_group samples.
        """
        h = self.features(y_t, t, y_tp1)
        if self.config.local_head:
            logits = self.local_end_linear(h.flatten(2).transpose(1, 2))
        else:
            logits = self.global_logits(h)
        return logits.to(y_t.dtype)  # type: ignore[no-any-return]

    def global_logits(self, features: Tensor) -> Tensor:
        """Return one logit per sample, [B, 1], from the last features."""
        return self.end_linear(features.sum((2, 3)))  # type: ignore[no-any-return]

    def features(self, y_t: Tensor, t: Tensor, y_tp1: Tensor) -> Tensor:
        """Return the activated last features, [B, 8 base_channels, H', W']."""
        config = self.config
        time = timestep_features(t, config.embedding_dim)
        time = self.t_embed(cast_input(time, config.compute_dtype, self.end_linear.weight))
        pair = cast_input(torch.cat([y_t, y_tp1], 1), config.compute_dtype, self.end_linear.weight)
        h = self.start_conv(F.pixel_unshuffle(pair, config.patch_size))
        for index in range(1, config.layers + 1):
            block = self.get_submodule(f"conv{index}")
            h = (recomputed(block) if config.recompute_blocks else block)(h, time)
        deviation = minibatch_deviation(h, config.stddev_group, config.stddev_grouping)
        h = self.final_conv(torch.cat([h, deviation], 1))
        return F.leaky_relu(h, SLOPE, inplace=True)

    def _widths(self) -> list[int]:
        config = self.config
        multipliers = (2, 4, 8, 8) if config.kind == "small" else (4, 8, 8, 8, 8, 8)
        return [config.base_channels * m for m in multipliers[: config.layers]]


class TimeEmbedding(nn.Module):
    """Two dense layers, both activated."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            Linear(dim, dim, fan="out"), nn.LeakyReLU(SLOPE), Linear(dim, dim, fan="out")
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map sinusoids [B, dim] to the embedding [B, dim]."""
        return F.leaky_relu(self.main(features), SLOPE)


class DiscriminatorBlock(nn.Module):
    """Residual block without norms; both paths are FIR-halved if `down`."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv1 = nn.Sequential(Conv2d(in_channels, out_channels, fan="out"))
        self.conv2 = nn.Sequential(
            Conv2d(out_channels, out_channels, variance_scale=NEARLY_ZERO, fan="out")
        )
        self.dense_t1 = Linear(time_dim, out_channels, fan="out")
        self.skip = nn.Sequential(Conv2d(in_channels, out_channels, 1, bias=False, fan="out"))

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """Map h [B, in, H, W] and the time embedding [B, E] to [B, out, H', W']."""
        u = self.conv1(F.leaky_relu(h, SLOPE)) + self.dense_t1(time)[:, :, None, None]
        u = F.leaky_relu(u, SLOPE, inplace=True)
        if self.down:
            u, h = fir_down(u), fir_down(h)
        return residual(self.conv2(u), self.skip(h), rescale=True)


def minibatch_deviation(
    h: Tensor, group: int, grouping: Literal["consecutive", "strided"] = "consecutive"
) -> Tensor:
    """Return the standard deviation within each sample's group as a constant map, [B, 1, H, W].

    It is the mean over (C, H, W) of sqrt(biased variance over the group + 1e-8); groupings as in
    DiscriminatorConfig.

    Raises:
        ValueError: The batch does not split into groups.
    """
    batch, channels, height, width = h.shape
    group = min(batch, group) if grouping == "strided" else group
    if batch % group:
        raise ValueError(
            f"a batch of {batch} samples does not split into groups of stddev_group={group};"
            f" choose micro_batch_size as a multiple of {group}, or a smaller stddev_group"
        )
    sets = batch // group
    if grouping == "strided":
        members = h.view(group, sets, channels, height, width)
    else:
        members = h.view(sets, group, channels, height, width).transpose(0, 1)
    variance = (members - members.mean(0)).square().mean(0)
    deviation = (variance + 1e-8).sqrt().mean((1, 2, 3))
    by_sample = (
        deviation.repeat(group) if grouping == "strided" else deviation.repeat_interleave(group)
    )
    return by_sample[:, None, None, None].expand(batch, 1, height, width)
