"""The building blocks of the U-Net (docs/reference/rdm.md#3.1, #3.2).

Parameters are float32 and cast to the dtype of the input where they are used.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Conv2d, GroupNorm, mean_down, nearest_up

HEAD_CHANNELS = 64
EPS = 1e-5
"""Added to the variance in group norms."""
GOLDEN_RATIO = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed 64-bit integer
LAYER_STEP = 0xD1B54A32D192ED03 - (1 << 64)
LANES = 4  # 16-bit decisions per 64-bit hash

Resample = Literal["up", "down"] | None
M = TypeVar("M", bound=nn.Module)


class Block(nn.Module):
    """Residual block with modulation, resampling and self-attention (docs/reference/rdm.md#3.2).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        emb_channels: Channels of the embedding.
        resample: Halve ("down", 2x2 mean) or double ("up", nearest) the resolution first.
        attention: Attend with one head per 64 output channels (none below 64).
        dropout: Probability, see `keyed_dropout`.
        layer: Number of the block within its network, for the dropout masks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        resample: Resample = None,
        attention: bool = False,
        dropout: float = 0.0,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.dropout = dropout
        self.layer = layer
        self.num_heads = out_channels // HEAD_CHANNELS if attention else 0
        self.norm0 = GroupNorm(in_channels, EPS)
        self.conv0 = Conv2d(in_channels, out_channels)
        self.affine = nn.Linear(emb_channels, 2 * out_channels)
        self.norm1 = GroupNorm(out_channels, EPS)
        self.conv1 = zero_init(Conv2d(out_channels, out_channels))
        self.skip = Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        if self.num_heads:
            self.norm2 = GroupNorm(out_channels, EPS)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = zero_init(Conv2d(out_channels, out_channels, 1))

    def forward(self, x: Tensor, emb: Tensor, dropout_keys: Tensor | None = None) -> Tensor:
        """Map [B, C_in, H, W] and a float32 embedding [B or 1, E] to [B, C_out, H', W'].

        With keys (int64 [B]), dropout is active.
        """
        h = self.conv0(resampled(F.silu(self.norm0(x)), self.resample))
        scale, shift = self.affine(emb)[:, :, None, None].to(h.dtype).chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        if dropout_keys is not None and self.dropout > 0:
            h = keyed_dropout(h, dropout_keys, self.layer, self.dropout)
        x = resampled(x, self.resample)
        x = self.conv1(h) + (x if self.skip is None else self.skip(x))
        return x + self.attend(x) if self.num_heads else x

    def attend(self, x: Tensor) -> Tensor:
        """Return the self-attention branch of x, [B, C, H, W].

        Checkpoints order the 3C channels as (head, channel, q|k|v) with q|k|v fastest.
        """
        batch, channels, height, width = x.shape
        heads = (batch, self.num_heads, channels // self.num_heads, 3, height * width)
        q, k, v = self.qkv(self.norm2(x)).view(heads).permute(3, 0, 1, 4, 2).contiguous().unbind()
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        branch: Tensor = self.proj(h.reshape(x.shape))
        return branch


def resampled(x: Tensor, resample: Resample) -> Tensor:
    """Return x, its 2x2 means ("down") or its pixels doubled ("up")."""
    if resample == "down":
        return mean_down(x)
    return nearest_up(x) if resample == "up" else x


def zero_init(layer: M) -> M:
    """Set a layer's parameters to zero, so that its branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def keyed_dropout(x: Tensor, keys: Tensor, layer: int, p: float) -> Tensor:
    """Zero each element with probability p and scale the others by 1 / (1 - p).

    Masks are a pure function of (sample, layer, element), a counter-based hash: they are the same
    on any rank, in any split into micro-batches, on any device, and when a block runs again for its
    gradients. There is no state to save, nothing waits for the device, and torch.compile fuses the
    hash into the multiplication.

    Args:
        x: [B, ...], any floating dtype.
        keys: One 64-bit key per sample, int64 [B] on the device of x.
        layer: Number of the layer, so that one key serves all layers.
        p: Probability in [0, 1), rounded to a multiple of 2^-16.
    """
    dropped = min(round(p * 65536), 65535)
    count = x[0].numel()
    bits = splitmix(keys + layer * LAYER_STEP % (1 << 63), -(-count // LANES))
    keep = bits.view(torch.int16)[:, :count].reshape(x.shape) >= dropped - 32768
    return x * (keep.to(x.dtype) * (65536 / (65536 - dropped)))


def splitmix(keys: Tensor, count: int) -> Tensor:
    """Return the first outputs of each key's SplitMix64 generator, int64 [B, count]."""
    counter = torch.arange(1, count + 1, device=keys.device)
    z = keys.unsqueeze(1) + counter * GOLDEN_RATIO
    z = (z ^ _shift_right(z, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ _shift_right(z, 27)) * (0x94D049BB133111EB - (1 << 64))
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift without sign extension, as the generator is defined on unsigned integers."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
