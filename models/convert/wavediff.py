"""Official WaveDiff and DDGAN checkpoints to snapshots.

content.pth records how it was trained. A netG file does not: its sizes are inferred from the
weights, the rest comes from a named configuration or from options; both are then compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.config_io import differences, override, to_json
from models.convert.pickle_reader import naming
from models.convert.wavediff_files import (
    OfficialFile,
    OfficialFileError,
    read_official,
    wavediff_config,
)
from models.convert.wavediff_shapes import InferredShape, expected_shape, infer_shape
from models.snapshot import (
    CHANGEABLE,
    FLOATS,
    Snapshot,
    check_output,
    describe_mismatch,
    describe_unusable,
    write_snapshot,
)
from models.wavediff.config import WaveDiffConfig
from models.wavediff.data_space import PixelSpace, WaveletSpace
from models.wavediff.discriminator import DiscriminatorConfig
from models.wavediff.generator_config import GeneratorConfig
from models.wavediff.presets import PRESETS

SAMPLED = {"resolution", "space", "diffusion", "generator"}
"""Groups of settings that images depend on."""


def convert_official(
    source: Path,
    target: Path,
    *,
    preset: str | None = None,
    resolution: int | None = None,
    overrides: Sequence[str] = (),
    averaged: bool = True,
) -> Snapshot:
    """Convert an official checkpoint to a snapshot.

    Args:
        source: netG_<epoch>.pth or content.pth.
        target: Directory of the snapshot to write.
        preset: Name of the published configuration that the weights belong to.
        resolution: Edge of the images, for weights of no published configuration.
        overrides: `key=value` settings of WaveDiffConfig, applied last.
        averaged: Take the EMA weights out of content.pth, rather than the raw ones.

    Raises:
        OfficialFileError: The file is no such checkpoint, or does not fit the configuration.
        ConfigError: An override does not fit.
        ValueError: The settings do not fit each other.
    """
    check_output(target)
    file = read_official(source, averaged=averaged)
    if file.averaged and not averaged:
        raise OfficialFileError(
            f"{source} holds averaged weights alone, as all netG files do; leave --raw out, or"
            " give content.pth"
        )
    with naming(source):
        recorded = _configuration(file, preset, resolution)
        images_seen = _images_seen(file)
    config = override(recorded, overrides)
    with naming(source):
        if file.arguments is not None:
            _check_recorded(config, recorded, "settings give")
        check_weights(config, file.weights)
    return write_snapshot(
        target,
        file.weights,
        objective=config,
        network="generator",
        images_seen=images_seen,
        ema="official" if file.averaged else "none",
        provenance={
            "converter": "wavediff-official",
            "source": source.name,
            "epoch": file.epoch,
            "preset": preset,
            "weights": "EMA" if file.averaged else "raw",
        },
    )


def check_weights(config: WaveDiffConfig, weights: Mapping[str, Tensor]) -> None:
    """Compare weights with a configuration.

    Raises:
        OfficialFileError: Names, shapes or sizes differ (says which, and which presets would fit),
            or a weight is NaN or infinite.
    """
    with torch.device("meta"):
        generator = config.build().build_networks()["generator"]
    mismatch = describe_mismatch(generator.state_dict(), weights)
    if not mismatch:
        if problem := describe_unusable(weights, FLOATS):
            raise OfficialFileError(f"{problem}; take another checkpoint")
        return
    sizes = ""
    if "all_modules.0.weight" in weights and config.generator.input_pyramid == "residual":
        sizes = _describe_sizes(_expected(config), infer_shape(weights))
    fitting = ", ".join(_fitting_presets(weights)) or "none"
    raise OfficialFileError(
        f"the weights do not fit the configuration: {sizes or mismatch};"
        f" published configurations of their sizes: {fitting}"
    )


def _configuration(
    file: OfficialFile, preset: str | None, resolution: int | None
) -> WaveDiffConfig:
    """Return what the file itself, the preset, or the shapes and the resolution say."""
    known = None if file.arguments is None else wavediff_config(file.arguments)
    if preset is not None:
        config = PRESETS[preset]()
        if known is not None:
            _check_recorded(config, known, f"preset {preset} has")
        known = config
    if known is not None:
        if resolution not in (None, known.resolution):
            raise OfficialFileError(
                f"--resolution={resolution}, but the checkpoint or its preset has"
                f" {known.resolution}; leave --resolution out"
            )
        return known
    if resolution is not None:
        return _from_shape(infer_shape(file.weights), resolution)
    fitting = _fitting_presets(file.weights)
    if len(fitting) == 1:
        return PRESETS[fitting[0]]()
    ambiguous = f"the weights fit {' and '.join(fitting)}; choose one by --preset"
    unknown = (
        f"the weights are of no published size ({infer_shape(file.weights)}); give --resolution"
    )
    raise OfficialFileError(ambiguous if fitting else unknown)


def _check_recorded(wanted: WaveDiffConfig, recorded: WaveDiffConfig, who: str) -> None:
    """Raise OfficialFileError if settings that images depend on are not those of training."""
    changed = differences(to_json(recorded), to_json(wanted))
    for key, (before, after) in changed.items():
        if key.split(".")[0] in SAMPLED and key.rpartition(".")[2] not in CHANGEABLE:
            raise OfficialFileError(
                f"the checkpoint was trained with {key}={before}, {who} {after};"
                " leave that out, or choose another"
            )


def _from_shape(shape: InferredShape, resolution: int) -> WaveDiffConfig:
    """Complete inferred sizes by a resolution and the published defaults."""
    in_wavelets = shape.channels % 12 == 0
    space: WaveletSpace | PixelSpace = WaveletSpace() if in_wavelets else PixelSpace()
    patch_size = round((shape.channels / space.channels) ** 0.5)
    edge = space.edge(resolution) // patch_size
    return WaveDiffConfig(
        resolution=resolution,
        space=space,
        generator=GeneratorConfig(
            base_channels=shape.base_channels,
            channel_multipliers=shape.channel_multipliers,
            blocks_per_level=shape.blocks_per_level,
            attention_resolutions=tuple(
                edge >> level for level, attends in enumerate(shape.attention_levels) if attends
            ),
            patch_size=patch_size,
            latent_dim=shape.latent_dim,
            embedding_dim=shape.embedding_dim,
            mapping_layers=shape.mapping_layers,
            time_conditional=shape.time_conditional,
            frequency_blocks=shape.frequency_blocks,
            frequency_bottleneck=shape.frequency_blocks,
            frequency_pyramid=shape.frequency_pyramid,
        ),
        discriminator=DiscriminatorConfig(layers=3),
    )


def _fitting_presets(weights: Mapping[str, Tensor]) -> list[str]:
    try:
        found = infer_shape(weights)
    except ValueError:
        return []
    return [name for name, preset in PRESETS.items() if _expected(preset()) == found]


def _expected(config: WaveDiffConfig) -> InferredShape:
    edge = config.space.edge(config.resolution)
    return expected_shape(config.generator, config.space.channels, edge)


def _describe_sizes(expected: InferredShape, found: InferredShape) -> str:
    return ", ".join(
        f"{field.name}={getattr(found, field.name)} (configured {getattr(expected, field.name)})"
        for field in dataclasses.fields(InferredShape)
        if getattr(found, field.name) != getattr(expected, field.name)
    )


def _images_seen(file: OfficialFile) -> int:
    """Return 0 where unknown: netG files do not record batch and set sizes."""
    if file.arguments is None:
        return 0
    factors = (
        file.steps,
        file.arguments.get("batch_size", 0),
        file.arguments.get("world_size", 1),
    )
    for factor in factors:
        if not isinstance(factor, int) or not 0 <= factor < 1 << 40:
            raise OfficialFileError(
                f"global_step, batch_size, world_size={factors!r:.80} are not numbers of images"
            )
    return math.prod(factors)
