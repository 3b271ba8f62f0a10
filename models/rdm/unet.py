"""The ADM U-Net of both stages (docs/reference/rdm.md#3).

Parameter names are those of the official checkpoints without their `model.` prefix. Weights are
float32; activations of the image path have the dtype of `compute_dtype`, the embedding is float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import ComputeDtype, Conv2d, GroupNorm, cast_input, recomputed, sinusoids
from models.rdm.blocks import EPS, Block, Resample, zero_init

EMBEDDING_WIDTH = 4  # embedding channels per model channel


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Size of the network.

    Attributes:
        resolution: Edge of the square images in pixels; names the levels, so it is part of the
            architecture. Must be divisible by 2^(levels - 1).
        model_channels: Channels of the noise embedding, and of a level with multiplier 1.
        channel_mult: Channels of each level, in units of model_channels, from the finest level.
        num_blocks: Blocks per level of the encoder (the decoder has one more).
        attn_resolutions: Edges at which blocks attend. Blocks with fewer than 64 channels have no
            head and hence no attention.
        label_dim: Number of classes, 0 for unconditional networks.
        augment_dim: Width of the augmentation labels, 0 for none (9 with this package's pipeline).
        dropout: Probability of the blocks' dropout in training.
        image_channels: Channels of the images.
        compute_dtype: Dtype of convolutions, norms and attention. Statistics and softmax are
            accumulated in float32 by the kernels in any case.
        recompute_blocks: Keep only the blocks' inputs for the backward pass and run the blocks
            again there: about a third more time, a fraction of the memory.
    """

    resolution: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_blocks: int
    attn_resolutions: tuple[int, ...] = ()
    label_dim: int = 0
    augment_dim: int = 0
    dropout: float = 0.0
    image_channels: int = 3
    compute_dtype: ComputeDtype = "float32"
    recompute_blocks: bool = False

    def __post_init__(self) -> None:
        positive = ("resolution", "model_channels", "num_blocks", "image_channels")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult={self.channel_mult} must be positive multipliers")
        step = 2 ** (len(self.channel_mult) - 1)
        if self.resolution % step:
            raise ValueError(
                f"resolution={self.resolution} is not a multiple of {step}, which the"
                f" {len(self.channel_mult)} levels of channel_mult need; use fewer levels"
            )
        if self.model_channels % 2:
            raise ValueError(f"model_channels={self.model_channels} must be even")
        if self.label_dim < 0 or self.augment_dim < 0:
            raise ValueError(
                f"label_dim={self.label_dim} and augment_dim={self.augment_dim} must be 0 or more"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")

    def unread(self) -> dict[str, str]:
        """Return `attn_resolutions` if it names an edge that no level has."""
        edges = [self.resolution >> level for level in range(len(self.channel_mult))]
        if set(self.attn_resolutions) <= set(edges):
            return {}
        levels = ", ".join(map(str, edges))
        return {"attn_resolutions": f"the levels have the edges {levels}; name only these"}


class UNet(nn.Module):
    """The raw network F of the denoiser; see models/rdm/precond.py for its use."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.model_channels
        emb_channels = EMBEDDING_WIDTH * width
        if config.augment_dim:
            self.map_augment = zero_init(nn.Linear(config.augment_dim, width, bias=False))
        self.map_layer0 = nn.Linear(width, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        if config.label_dim:
            self.map_label = nn.Linear(config.label_dim, emb_channels, bias=False)
            nn.init.normal_(self.map_label.weight)
        self._assemble(emb_channels)
        finest = width * config.channel_mult[0]
        self.out_norm = GroupNorm(finest, EPS)
        self.out_conv = zero_init(Conv2d(finest, config.image_channels))

    def _assemble(self, emb_channels: int) -> None:
        """Build encoder and decoder; every encoder output becomes a decoder input.

        See docs/reference/rdm.md#3.3.
        """
        config = self.config
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()

        def add(side: nn.ModuleDict, edge: int, kind: str, cin: int, cout: int,
                attention: bool = False) -> int:  # fmt: skip
            resample: Resample = "up" if kind == "up" else "down" if kind == "down" else None
            side[f"{edge}x{edge}_{kind}"] = Block(
                cin, cout, emb_channels, resample=resample, attention=attention,
                dropout=config.dropout, layer=len(self.enc) + len(self.dec))  # fmt: skip
            return cout

        edges = [config.resolution >> level for level in range(len(config.channel_mult))]
        widths = [config.model_channels * mult for mult in config.channel_mult]
        channels = widths[0]
        self.enc[f"{edges[0]}x{edges[0]}_conv"] = Conv2d(config.image_channels, channels)
        skips = [channels]
        for level, (edge, width) in enumerate(zip(edges, widths, strict=True)):
            if level:
                skips.append(add(self.enc, edge, "down", channels, channels))
            for i in range(config.num_blocks):
                attention = edge in config.attn_resolutions
                channels = add(self.enc, edge, f"block{i}", channels, width, attention)
                skips.append(channels)
        add(self.dec, edges[-1], "in0", channels, channels, True)
        add(self.dec, edges[-1], "in1", channels, channels)
        for level, (edge, width) in reversed(list(enumerate(zip(edges, widths, strict=True)))):
            if level < len(edges) - 1:
                add(self.dec, edge, "up", channels, channels)
            for i in range(config.num_blocks + 1):
                attention = edge in config.attn_resolutions
                cin = channels + skips.pop()
                channels = add(self.dec, edge, f"block{i}", cin, width, attention)

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Return F, [B, C, H, W] in the compute dtype.

        Args:
            x: Scaled noisy images, [B, C, H, W].
            noise_label: c_noise, float32 [B], or [1] for a level that all samples share.
            labels: Class indices, int64 [B], -1 for "no class"; None is -1 throughout.
            augment_labels: Float32 [B, augment_dim]; None is zero (an unchanged image).
            dropout_keys: Int64 [B]; None switches dropout off.

        Raises:
            ValueError: Labels of a kind that the network does not have.
        """
        emb = self.embed(noise_label, labels, augment_labels)
        x = cast_input(x, self.config.compute_dtype, self.out_conv.weight)
        skips: list[Tensor] = []
        for module in self.enc.values():
            x = self._run(module, x, emb, dropout_keys) if skips else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            if "block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = self._run(module, x, emb, dropout_keys)
        out: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out

    def embed(
        self, noise_label: Tensor, labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Return the blocks' embedding, float32 [B or 1, E]; arguments as in `forward`."""
        emb = noise_embedding(noise_label, self.config.model_channels)
        if augment_labels is not None:
            if not self.config.augment_dim:
                raise ValueError("augment labels for a network with augment_dim=0; leave them out")
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if labels is not None:
            if not self.config.label_dim:
                raise ValueError("class labels for a network with label_dim=0; leave them out")
            rows = F.embedding(labels.clamp(min=0), self.map_label.weight.t())
            emb = emb + rows * (labels >= 0).unsqueeze(1)
        return F.silu(emb)

    def _run(self, block: nn.Module, x: Tensor, emb: Tensor, keys: Tensor | None) -> Tensor:
        layer = recomputed(block) if self.config.recompute_blocks else block
        out: Tensor = layer(x, emb, keys)
        return out


def noise_embedding(values: Tensor, channels: int) -> Tensor:
    """Return cosines, then sines, of values [n] at channels / 2 frequencies, [n, channels]."""
    return torch.cat(sinusoids(values, channels // 2, channels // 2), dim=1)
