"""A generator's configuration inferred from the shapes of its weights.

Shapes determine all sizes, but not the resolution (hence at which edges the attention sits), the
number of steps, the band order, or switches without weights of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from models.wavediff.generator_config import GeneratorConfig


@dataclass(frozen=True)
class InferredShape:
    """Sizes of a generator, read from its weights.

    Attributes:
        channels: Channels of its folded input.
        base_channels: See GeneratorConfig, as the following.
        channel_multipliers: One per level.
        blocks_per_level: Blocks on the way down.
        attention_levels: Whether each level has attention.
        latent_dim: Width of z.
        embedding_dim: Width of the mapped z.
        mapping_layers: Hidden layers of the mapping.
        time_conditional: Whether there is a time embedding.
        frequency_blocks: Whether up blocks read details.
        frequency_pyramid: Whether the input pyramid reads subbands.
    """

    channels: int
    base_channels: int
    channel_multipliers: tuple[int, ...]
    blocks_per_level: int
    attention_levels: tuple[bool, ...]
    latent_dim: int
    embedding_dim: int
    mapping_layers: int
    time_conditional: bool
    frequency_blocks: bool
    frequency_pyramid: bool


def expected_shape(config: GeneratorConfig, channels: int, resolution: int) -> InferredShape:
    """Return the sizes that `infer_shape` reads from the weights of a configured generator."""
    edge = resolution // config.patch_size
    levels = range(len(config.channel_multipliers))
    return InferredShape(
        channels=channels * config.patch_size**2,
        base_channels=config.base_channels,
        channel_multipliers=config.channel_multipliers,
        blocks_per_level=config.blocks_per_level,
        attention_levels=tuple(edge >> level in config.attention_resolutions for level in levels),
        latent_dim=config.latent_dim,
        embedding_dim=config.embedding_dim,
        mapping_layers=config.mapping_layers,
        time_conditional=config.time_conditional,
        frequency_blocks=config.frequency_blocks,
        frequency_pyramid=config.frequency_pyramid,
    )


def infer_shape(weights: Mapping[str, Tensor]) -> InferredShape:
    """Read a generator's sizes from its weights.

    Raises:
        ValueError: They are not those of an NCSN++ or WaveletNCSN++ with a residual input pyramid.
    """
    try:
        return _infer_shape(weights)
    except (LookupError, ArithmeticError) as error:
        raise ValueError(
            "the weights are not those of a WaveDiff or DDGAN generator: a layer is missing or of"
            f" another shape ({error})"
        ) from None


def _infer_shape(weights: Mapping[str, Tensor]) -> InferredShape:
    kinds = _layer_kinds(weights)
    pyramid = [index for index, kind in enumerate(kinds) if kind == "pyramid"]
    if not pyramid or "latent" not in kinds or "block" not in kinds:
        raise ValueError(
            "the weights are not those of a WaveDiff or DDGAN generator with a residual input"
            " pyramid; give its configuration by recipe or from content.pth"
        )
    kinds.remove("latent")
    first = kinds.index("conv")
    stem = weights[f"all_modules.{first}.weight"]
    blocks = kinds[: pyramid[0]].count("block") - 1
    starts = [first + 1, *(index + 1 for index in pyramid)]
    last = starts[-1] + (2 if kinds[starts[-1] + 1] == "attention" else 1) * blocks
    ends = [*pyramid, last]
    widths = [_width(weights, start) for start in starts]
    dense = sorted(
        name for name in weights if name.startswith("z_transform.") and ".weight" in name
    )
    return InferredShape(
        channels=stem.shape[1],
        base_channels=stem.shape[0],
        channel_multipliers=tuple(width // stem.shape[0] for width in widths),
        blocks_per_level=blocks,
        attention_levels=tuple(
            "attention" in kinds[a:b] for a, b in zip(starts, ends, strict=True)
        ),
        latent_dim=weights["z_transform.1.weight"].shape[1],
        embedding_dim=weights["z_transform.1.weight"].shape[0],
        mapping_layers=len(dense) - 1,
        time_conditional=first > 0,
        frequency_blocks=any("convH_0" in name for name in weights),
        frequency_pyramid=f"all_modules.{pyramid[0]}.weight" in weights,
    )


def _width(weights: Mapping[str, Tensor], index: int) -> int:
    return weights[f"all_modules.{index}.Conv_1.weight"].shape[0]


def _layer_kinds(weights: Mapping[str, Tensor]) -> list[str]:
    """Return what each entry of the layer list is, then "latent" if there is a mapping."""
    kinds: list[str] = []
    while names := [name for name in weights if name.startswith(f"all_modules.{len(kinds)}.")]:
        kinds.append(_kind(names[0], [name.split(".")[2] for name in names], weights, kinds))
    return kinds + (["latent"] if "z_transform.1.weight" in weights else [])


def _kind(name: str, parts: list[str], weights: Mapping[str, Tensor], before: list[str]) -> str:
    if "Dense_0" in parts:
        return "block"
    if "NIN_0" in parts:
        return "attention"
    if "Conv2d_0" in parts or "Conv_0" in parts:
        return "pyramid"
    axes = weights[name].dim()
    if axes == 4 and "conv" in before and "norm" not in before:
        return "pyramid"
    return {2: "linear", 4: "conv"}.get(axes, "norm")
