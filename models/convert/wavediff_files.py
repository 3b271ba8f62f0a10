"""Official files of WaveDiff and DDGAN: settings and weights (docs/reference/wavediff.md#6)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config_io import from_json, to_json
from models.convert.pickle_reader import check_torch_pickles, unreadable
from models.safe_files.archives import check_torch_file
from models.safe_files.trees import check_tree
from models.snapshot import FLOATS
from models.wavediff.config import WaveDiffConfig
from models.wavediff.data_space import PixelSpace, WaveletSpace
from models.wavediff.diffusion import DiffusionConfig
from models.wavediff.discriminator import DiscriminatorConfig
from models.wavediff.generator_config import GeneratorConfig

MAX_WEIGHTS, MAX_LEVELS = 5000, 64
MAX_COPIES = 4
"""Bytes of weights per byte of a file, at most: tensors may share their storage."""

FREE_BYTES = 512 << 20
"""Bytes of weights that a file may hold in any case."""

BOUNDS = {
    "num_res_blocks": 64, "n_mlp": 64, "num_channels_dae": 4096, "ch_mult": 64, "nz": 4096,
    "z_emb_dim": 8192, "t_emb_dim": 8192, "ngf": 4096, "num_disc_layers": 16, "patch_size": 64,
    "image_size": 8192, "current_resolution": 8192, "num_timesteps": 10_000, "num_channels": 64,
}  # fmt: skip
"""Largest values of settings, far above all published ones."""

SMALL_DATASETS = ("cifar10", "stl10", "stackmnist", "tiny_imagenet", "tiny-imagenet")
"""Data sets that the official trainers give the small discriminator."""

UNSUPPORTED = {
    "resblock_type": ("biggan", "biggan_oneadagn"),
    "progressive": ("none", "output_skip"),
    "embedding_type": ("positional",),
    "dropout": (0.0,),
    "fir_kernel": ([1, 3, 3, 1],),
}
"""Values that the official code can compute with; all others crash or give NaN there, or change the
networks in ways that no published run uses."""


class OfficialFileError(ValueError):
    """A file that is no official WaveDiff checkpoint, or one that cannot be converted."""


@dataclass(frozen=True)
class OfficialFile:
    """A weight file of the official trainers.

    Attributes:
        weights: Generator weights by parameter name, float32, without the `module.` prefix.
        arguments: The training run's settings (content.pth), or None (netG files).
        epoch: Finished epochs, if known.
        steps: Training steps, 0 if unknown.
        averaged: Whether the weights are an EMA.
    """

    weights: dict[str, Tensor]
    arguments: dict[str, Any] | None
    epoch: int | None
    steps: int
    averaged: bool


def read_official(path: Path, *, averaged: bool = True) -> OfficialFile:
    """Read netG_<epoch>.pth (always EMA weights) or content.pth without running anything in it.

    Args:
        path: The file.
        averaged: Take the EMA out of content.pth's optimizer state, rather than the raw weights.

    Raises:
        OfficialFileError: The file cannot be read safely, holds something else, or lacks averages
            that are asked for.
    """
    try:
        check_torch_file(path)
        check_torch_pickles(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            document = torch.load(path, map_location="cpu", weights_only=True)
        check_tree(document)
    except OSError as error:
        raise OfficialFileError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # pickle, zip and torch each raise their own kinds
        raise OfficialFileError(
            f"{path} is no readable weight file of PyTorch: {unreadable(error)}; download it again"
            " from where you trust (nothing in it was executed)"
        ) from None
    if not isinstance(document, dict):
        raise OfficialFileError(f"{path} holds a {type(document).__name__}, expected named weights")
    if "netG_dict" in document:
        return _read_content(path, document, averaged)
    epoch = path.stem.rpartition("_")[2]
    weights = _named_weights(path, document)
    return OfficialFile(weights, None, int(epoch) if epoch.isdigit() else None, 0, averaged=True)


def _read_content(path: Path, document: dict[str, Any], averaged: bool) -> OfficialFile:
    weights = _named_weights(path, document["netG_dict"])
    try:
        arguments = vars(document["args"])
        epoch, steps = int(document["epoch"]), int(document["global_step"])
        states = document["optimizerG"]["state"] if averaged else {}
        averages = {
            name: states[index]["ema"]
            for index, name in enumerate(weights)
            if "ema" in states.get(index, {})
        }
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {str(error)[:100]!a}"
        raise OfficialFileError(f"{path} is an incomplete content.pth: {reason}") from None
    if averaged and averages.keys() != weights.keys():
        missing = len(weights) - len(averages)
        raise OfficialFileError(
            f"{path} has no average (optimizerG.state[...]['ema']) of {missing} of its"
            f" {len(weights)} weights; add --raw to take the weights themselves"
        )
    if averages:
        weights = _named_weights(path, averages)
    return OfficialFile(weights, arguments, epoch, steps, averaged=averaged)


def _named_weights(path: Path, document: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return tensors by name, cloned out of shared storage, without a literal `module.` prefix."""
    if not isinstance(document, Mapping) or len(document) > MAX_WEIGHTS:
        raise OfficialFileError(f"{path} holds no dict of up to {MAX_WEIGHTS} named weights")
    weights = {}
    left = max(MAX_COPIES * path.stat().st_size, FREE_BYTES)
    for name, value in document.items():
        shown = repr(name)[:80]
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise OfficialFileError(f"{path}: {shown} is a {type(value).__name__}, not a weight")
        left -= value.numel() * value.element_size()
        stored = value.layout == torch.strided and value.device.type == "cpu"  # not "meta"
        if not stored or value.dtype not in FLOATS or left < 0:
            raise OfficialFileError(
                f"{path}: {shown} is larger than the file, or no weight ({value.dtype})"
            )
        weights[name.removeprefix("module.")] = value.detach().float().clone()
    return weights


def generator_config(arguments: Mapping[str, Any], *, wavelet: bool) -> GeneratorConfig:
    """Translate the official generator settings.

    Args:
        arguments: Official argument names with their values.
        wavelet: Whether it is a WaveletNCSNpp (net_type=wavelet), else an NCSNpp.

    Raises:
        OfficialFileError: A value that the official code cannot run with.
    """
    for name, supported in UNSUPPORTED.items():
        if arguments.get(name, supported[0]) not in supported:
            found = repr(arguments[name])[:80]
            raise OfficialFileError(
                f"{name}={found} is not supported; expected one of {list(supported)}"
            )
    pyramid = arguments.get("progressive_input", "residual")
    return GeneratorConfig(
        base_channels=arguments["num_channels_dae"],
        channel_multipliers=tuple(arguments["ch_mult"]),
        blocks_per_level=arguments["num_res_blocks"],
        attention_resolutions=tuple(arguments["attn_resolutions"]),
        patch_size=arguments.get("patch_size", 1),
        latent_dim=arguments["nz"],
        embedding_dim=arguments["z_emb_dim"],
        mapping_layers=arguments["n_mlp"],
        frequency_blocks=wavelet and not arguments.get("no_use_freq", False),
        frequency_bottleneck=wavelet and not arguments.get("no_use_fbn", False),
        frequency_pyramid=wavelet and not arguments.get("no_use_residual", False),
        time_conditional=arguments.get("conditional", True),
        fir=arguments.get("fir", True),
        rescale=arguments.get("skip_rescale", True),
        adaptive_norms=1 if arguments.get("resblock_type") == "biggan_oneadagn" else 2,
        input_pyramid="skip" if pyramid == "input_skip" else pyramid,
        combine=arguments.get("progressive_combine", "sum"),
        output_pyramid="skip" if arguments.get("progressive") == "output_skip" else "none",
        centered=arguments.get("centered", True),
        tanh=not arguments.get("not_use_tanh", False),
    )


def discriminator_config(arguments: Mapping[str, Any]) -> DiscriminatorConfig:
    """Translate the official discriminator settings of a training run."""
    kind = "small" if arguments["dataset"] in SMALL_DATASETS else "large"
    return DiscriminatorConfig(
        kind=kind,  # type: ignore[arg-type]
        layers=arguments.get("num_disc_layers", 4 if kind == "small" else 6),
        base_channels=arguments["ngf"],
        embedding_dim=arguments["t_emb_dim"],
        patch_size=1 if in_wavelets(arguments) else arguments.get("patch_size", 1),
        local_head=arguments.get("use_local_loss", False),
        stddev_group=min(arguments["batch_size"], 4),
    )


def in_wavelets(arguments: Mapping[str, Any]) -> bool:
    """Whether the file is of the wavelet trainer, by the channels of its networks."""
    return bool(arguments["num_channels"] == 12)


def wavediff_config(arguments: Mapping[str, Any]) -> WaveDiffConfig:
    """Translate a training run's settings, as content.pth has them.

    Raises:
        OfficialFileError: A setting is missing, or its value cannot run.
        ValueError: The settings do not fit each other.
    """
    try:
        _check_bounds(arguments)
        config = _wavediff_config(arguments)
        return from_json(WaveDiffConfig, to_json(config), "the training settings")  # checks types
    except KeyError as error:
        raise OfficialFileError(f"the training settings lack {error}") from None
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise OfficialFileError(f"the training settings are damaged: {error}") from None


def _check_bounds(arguments: Mapping[str, Any]) -> None:
    """Raise OfficialFileError if a setting is far from all published ones: building takes time."""
    for name, value in arguments.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        largest = BOUNDS.get(name, sys.maxsize)
        if len(numbers) > MAX_LEVELS:
            raise OfficialFileError(f"{name} has {len(numbers)} entries, more than {MAX_LEVELS}")
        for number in numbers:
            if isinstance(number, int) and not -largest <= number <= largest:
                raise OfficialFileError(f"{name}={number} is larger than {largest}")


def _wavediff_config(arguments: Mapping[str, Any]) -> WaveDiffConfig:
    space: WaveletSpace | PixelSpace = PixelSpace()
    resolution = arguments["image_size"]
    if in_wavelets(arguments):
        swapped = arguments.get("use_pytorch_wavelet", False)
        space = WaveletSpace(band_order="LL_HL_LH_HH" if swapped else "LL_LH_HL_HH")
        resolution = 2 * arguments["current_resolution"]
    return WaveDiffConfig(
        resolution=resolution,
        space=space,
        generator=generator_config(arguments, wavelet=arguments.get("net_type") == "wavelet"),
        discriminator=discriminator_config(arguments),
        diffusion=DiffusionConfig(
            steps=arguments["num_timesteps"],
            beta_min=arguments.get("beta_min", 0.1),
            beta_max=arguments.get("beta_max", 20.0),
            geometric=arguments.get("use_geometric", False),
        ),
        r1_gamma=arguments["r1_gamma"],
        r1_interval=arguments["lazy_reg"] or 1,
        reconstruction_weight=float(arguments.get("rec_loss", False)),
    )
