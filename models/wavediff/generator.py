"""The generators of WaveDiff and DDGAN: one U-Net whose wavelet parts can be switched one by one.

With the three `frequency_*` settings on it is WaveDiff's wavelet generator, with all of them off it
is NCSN++, the generator of DDGAN and of WaveDiff on CIFAR-10 (docs/reference/wavediff.md#3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import GroupNorm, Layer, cast_input, mean_down, nearest_up, recomputed
from models.wavediff.blocks import (
    BlockSettings,
    Combine,
    FirBlock,
    FirDownsample,
    FrequencyBlock,
    FrequencyDown,
    FrequencyUp,
    PlainDownsample,
    Resampling,
    WaveletDownsample,
)
from models.wavediff.generator_config import GeneratorConfig
from models.wavediff.haar import haar_dwt, haar_idwt
from models.wavediff.layers import (
    EPS,
    NEARLY_ZERO,
    Attention,
    Conv2d,
    Linear,
    latent_mapping,
    residual,
    timestep_features,
)
from models.wavediff.resample import fir_down, fir_up


class Generator(nn.Module):
    """Predicts y_0 from y_{t+1}, the timestep t and a latent z.

    Args:
        config: The shape.
        channels: Channels of its input and output (12 for Haar bands of RGB, 3 for pixels).
        resolution: Edge of its input.

    Raises:
        ValueError: The resolution cannot be halved often enough.
    """

    def __init__(self, config: GeneratorConfig, channels: int, resolution: int) -> None:
        super().__init__()
        config.check_resolution(resolution)
        self.config = config
        self.channels = channels * config.patch_size**2
        self.all_modules = nn.ModuleList(_layers(config, self.channels, resolution))
        self.attends = [
            resolution // config.patch_size >> level in config.attention_resolutions
            for level in range(len(config.channel_multipliers))
        ]
        self.z_transform = latent_mapping(
            config.latent_dim, config.embedding_dim, config.mapping_layers
        )

    def forward(self, y: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Return the prediction of y_0.

        Args:
            y: Noisy input y_{t+1}, [B, channels, H, W].
            t: Timesteps in 0..T-1, int64 [B].
            z: Latents, [B, latent_dim].

        Raises:
            ValueError: z has another width.
        """
        config = self.config
        if z.shape[-1] != config.latent_dim:
            raise ValueError(
                f"latent z has width {z.shape[-1]}, the generator expects latent_dim"
                f"={config.latent_dim}"
            )
        modules: Iterable[Layer] = self.all_modules
        layers = iter(map(recomputed, self.all_modules) if config.recompute_blocks else modules)
        weight = next(self.parameters())
        x = fold_patches(cast_input(y, config.compute_dtype, weight), config.patch_size)
        x = x if config.centered else 2 * x - 1
        latent = self.z_transform(cast_input(z, config.compute_dtype, weight))
        time = self._embed_time(layers, t, x.dtype)
        h, stack, details = self._descend(layers, x, time, latent)
        h = self._bottleneck(layers, h, time, latent)
        h = self._ascend(layers, h, time, latent, stack, details)
        h = unfold_patches(h, config.patch_size).to(y.dtype)
        return torch.tanh(h) if config.tanh else h

    def _embed_time(self, layers: Iterator[Layer], t: Tensor, dtype: torch.dtype) -> Tensor | None:
        if not self.config.time_conditional:
            return None
        features = timestep_features(t, self.config.base_channels).to(dtype)
        hidden = next(layers)(features)
        return next(layers)(F.silu(hidden))  # type: ignore[no-any-return]

    def _descend(
        self, layers: Iterator[Layer], x: Tensor, time: Tensor | None, latent: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the features, the stack for the way up, and the details of each halving."""
        reduced, h = x, next(layers)(x)
        stack, details = [h], []
        for level, attends in enumerate(self.attends):
            for _ in range(self.config.blocks_per_level):
                h = next(layers)(h, time, latent)
                h = next(layers)(h) if attends else h
                stack.append(h)
            if level < len(self.attends) - 1:
                if self.config.frequency_blocks:
                    h, detail = next(layers)(h, time, latent)
                    details.append(detail)
                else:
                    h = next(layers)(h, time, latent)
                reduced, h = self._join_input(layers, reduced, h)
                stack.append(h)
        return h, stack, details

    def _join_input(
        self, layers: Iterator[Layer], reduced: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the input at half the resolution, and the features it has joined."""
        if self.config.input_pyramid == "none":
            return reduced, h
        if self.config.input_pyramid == "skip":
            reduced = fir_down(reduced) if self.config.fir else mean_down(reduced)
            return reduced, next(layers)(reduced, h)
        h = residual(next(layers)(reduced), h, self.config.rescale)
        return h, h

    def _bottleneck(
        self, layers: Iterator[Layer], h: Tensor, time: Tensor | None, latent: Tensor
    ) -> Tensor:
        first, attention, second = next(layers), next(layers), next(layers)
        if not self.config.frequency_bottleneck:
            return second(attention(first(h, time, latent)), time, latent)  # type: ignore[no-any-return]
        h = attention(_on_low_band(first, h, time, latent))
        return _on_low_band(second, second(h, time, latent), time, latent)

    def _ascend(
        self, layers: Iterator[Layer], h: Tensor, time: Tensor | None, latent: Tensor,
        stack: list[Tensor], details: list[Tensor],
    ) -> Tensor:  # fmt: skip
        """Return the output image, still folded."""
        image: Tensor | None = None
        for level in reversed(range(len(self.attends))):
            for _ in range(self.config.blocks_per_level + 1):
                h = next(layers)(torch.cat([h, stack.pop()], 1), time, latent)
            h = next(layers)(h) if self.attends[level] else h
            if self.config.output_pyramid == "skip":
                image = self._add_image(image, _to_image(layers, h))
            if level:
                skip = (details.pop(),) if self.config.frequency_blocks else ()
                h = next(layers)(h, time, latent, *skip)
        return _to_image(layers, h) if image is None else image

    def _add_image(self, image: Tensor | None, detail: Tensor) -> Tensor:
        if image is None:
            return detail
        return (fir_up(image) if self.config.fir else nearest_up(image)) + detail


def _to_image(layers: Iterator[Layer], h: Tensor) -> Tensor:
    norm, convolution = next(layers), next(layers)
    return convolution(F.silu(norm(h)))  # type: ignore[no-any-return]


def _on_low_band(block: Layer, h: Tensor, time: Tensor | None, latent: Tensor) -> Tensor:
    """Run a block on the low Haar band (the 2x2 means) and put the details back."""
    low, details = haar_dwt(h, scale=0.5).tensor_split([h.shape[1]], 1)
    return haar_idwt(torch.cat([block(low, time, latent), details], 1), scale=0.5)


def _layers(config: GeneratorConfig, channels: int, resolution: int) -> Iterator[nn.Module]:
    """Yield the layers in the order of the official list (docs/reference/wavediff.md#3.3)."""
    base, levels = config.base_channels, len(config.channel_multipliers)
    widths = [base * multiplier for multiplier in config.channel_multipliers]
    edges = [resolution // config.patch_size >> level for level in range(levels)]
    if config.time_conditional:
        yield Linear(base, 4 * base)
        yield Linear(4 * base, 4 * base)
    yield Conv2d(channels, base)
    width, reduced, stack = base, channels, [base]
    for level, (out, edge) in enumerate(zip(widths, edges, strict=True)):
        for _ in range(config.blocks_per_level):
            yield _block(config, width, out)
            if edge in config.attention_resolutions:
                yield Attention(out, config.rescale)
            stack.append(width := out)
        if level < levels - 1:
            yield _block(config, width, width, "down")
            if config.input_pyramid == "residual":
                yield _pyramid_level(config, reduced, width)
                reduced = width
            elif config.input_pyramid == "skip":
                yield Combine(channels, width, config.combine)
                width *= 2 if config.combine == "cat" else 1
            stack.append(width)
    yield _block(config, width, width)
    yield Attention(width, config.rescale)
    yield _block(config, width, width)
    for level in reversed(range(levels)):
        for _ in range(config.blocks_per_level + 1):
            yield _block(config, width + stack.pop(), widths[level])
            width = widths[level]
        if edges[level] in config.attention_resolutions:
            yield Attention(width, config.rescale)
        if config.output_pyramid == "skip":
            yield from _image_layers(width, channels)
        if level:
            yield _block(config, width, width, "up", detail_channels=widths[level - 1])
    if config.output_pyramid == "none":
        yield from _image_layers(width, channels)


def _image_layers(width: int, channels: int) -> tuple[nn.Module, nn.Module]:
    return GroupNorm(width, EPS), Conv2d(width, channels, variance_scale=NEARLY_ZERO)


def _pyramid_level(config: GeneratorConfig, in_channels: int, out_channels: int) -> nn.Module:
    if config.frequency_pyramid:
        return WaveletDownsample(in_channels, out_channels)
    return (FirDownsample if config.fir else PlainDownsample)(in_channels, out_channels)


def _block(
    config: GeneratorConfig, in_channels: int, out_channels: int,
    resampling: Resampling = "none", detail_channels: int = 0,
) -> nn.Module:  # fmt: skip
    settings = BlockSettings(
        embedding_dim=config.embedding_dim,
        time_dim=4 * config.base_channels,
        rescale=config.rescale,
        fir=config.fir,
        adaptive_norms=config.adaptive_norms,
    )
    if not config.frequency_blocks:
        return FirBlock(in_channels, out_channels, settings, resampling)
    if resampling == "up":
        return FrequencyUp(in_channels, out_channels, settings, detail_channels)
    kind = FrequencyDown if resampling == "down" else FrequencyBlock
    return kind(in_channels, out_channels, settings, resampling)


def fold_patches(x: Tensor, patch: int) -> Tensor:
    """Fold squares of pixels into channels, offset major: index (dy P + dx) C + c.

    The inverse of unfold_patches only up to an order of channels; the official 1024x1024 model was
    trained so (docs/reference/wavediff.md#1.1).
    """
    if patch == 1:
        return x
    batch, channels, height, width = x.shape
    split = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // patch, width // patch)


def unfold_patches(x: Tensor, patch: int) -> Tensor:
    """Unfold channels into squares of pixels, channel major: index c P^2 + dy P + dx."""
    return F.pixel_shuffle(x, patch)
