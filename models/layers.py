"""Layers of all networks: float32 weights that compute in the dtype of their input.

The families' own layers and blocks, their initial weights and the names of their parameters are in
`rdm/blocks.py`, `wavediff/layers.py` and `wavediff/blocks.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ComputeDtype = Literal["float32", "bfloat16", "float16"]
"""What a network computes in. Settings are found by this type; weights are always float32."""
Layer = Callable[..., Any]
"""A module, or what `recomputed` makes of it."""


class Conv2d(nn.Conv2d):
    """Convolution in the dtype of its input, padded with zeros to keep the size at stride 1."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, *,
        stride: int = 1, padding: int | None = None, groups: int = 1, bias: bool = True,
    ) -> None:  # fmt: skip
        padding = kernel // 2 if padding is None else padding
        super().__init__(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias
        )

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H', W']."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return self._conv_forward(input, self.weight.to(input.dtype), bias)  # type: ignore[no-any-return]


class GroupNorm(nn.GroupNorm):
    """Group normalisation in the dtype of its input."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(norm_groups(channels), channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, H, W]; the kernels accumulate statistics in float32 for half dtypes."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.group_norm(input, self.num_groups, weight, bias, self.eps)


def norm_groups(channels: int) -> int:
    """Return the number of normalisation groups: of 4 channels or more, at most 32.

    Raises:
        ValueError: The channels do not divide into them.
    """
    groups = max(min(channels // 4, 32), 1)
    if channels % groups:
        raise ValueError(
            f"{channels} channels do not divide into {groups} normalisation groups; choose"
            " the network's channels as multiples of 4 (of 32 where layers exceed 128 channels)"
        )
    return groups


def mean_down(x: Tensor) -> Tensor:
    """Average 2x2 squares, [B, C, H, W] -> [B, C, H/2, W/2]."""
    return F.avg_pool2d(x, 2)


def nearest_up(x: Tensor) -> Tensor:
    """Repeat every pixel in a 2x2 square, [B, C, H, W] -> [B, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def sinusoids(values: Tensor, count: int, span: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of values [n] at frequencies 10000^(-i / span), i < count.

    Both are float32 [n, count].
    """
    index = torch.arange(count, dtype=torch.float32, device=values.device)
    angles = values.unsqueeze(1) * torch.exp(index * (-math.log(10000) / span))
    return angles.cos(), angles.sin()


def cast_input(x: Tensor, dtype: ComputeDtype, weight: Tensor) -> Tensor:
    """Return x in a network's compute dtype; "float32" means its weights' own precision."""
    return x.to(weight.dtype if dtype == "float32" else getattr(torch, dtype))


def recomputed(layer: nn.Module) -> Layer:
    """Return a layer that keeps only its inputs for the backward pass, and runs again there.

    Not reentrant: R1 differentiates twice (docs/reference/deepspeed.md#5.1).
    """
    if not torch.is_grad_enabled():
        return layer
    return functools.partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Let GPUs use TF32 in float32 convolutions and matrix products, or not, within the block."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


class InTf32Mode(nn.Module):
    """A network whose forward pass may use TF32 or not, whatever the process is set to.

    The stages of a relay may come from runs that differ in it.

    Args:
        network: The network.
        allowed: Whether it may.
    """

    def __init__(self, network: nn.Module, allowed: bool) -> None:
        super().__init__()
        self.network = network
        self.allowed = allowed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network does."""
        with tf32_allowed(self.allowed):
            return self.network(*args, **kwargs)
