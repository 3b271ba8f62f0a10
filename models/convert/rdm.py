"""Official RDM and EDM checkpoints to snapshots, without executing what they contain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from models.config_io import override
from models.convert.pickle_reader import naming
from models.convert.rdm_files import (
    ModuleObject,
    StoredTensor,
    module_tensors,
    read_container,
)
from models.rdm import presets
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.unet import UNet, UNetConfig
from models.safe_files.transient import file_sha256
from models.snapshot import (
    Snapshot,
    SnapshotError,
    check_output,
    describe_mismatch,
    write_snapshot,
)

Stage = Literal["edm", "relay"]
NAME_PREFIX = "model."
BUFFER = "resample_filter"
MAX_EDGE, MAX_LEVELS, MAX_CLASSES = 4096, 64, 10**6
MAX_IMAGES = 1 << 62
"""Bounds on what a file says, far above all published networks: building one takes time."""

RELAY_RESOLUTION = 256  # the official training script takes stage 2 at exactly this resolution


def convert_official(
    source: Path,
    target: Path,
    *,
    stage: Stage | None = None,
    images_seen: int | None = None,
    overrides: Sequence[str] = (),
) -> Snapshot:
    """Write the averaged network of an official `.pkl` or `.pt` as a snapshot.

    The file records the network, not the process or the sampler: stage 2 gets those of CelebA-HQ if
    the network is unconditional, else those of ImageNet; `overrides` change them.

    Args:
        source: The official checkpoint.
        target: Directory of the snapshot.
        stage: Kind of model; null takes relay for 256 pixels, edm for others.
        images_seen: Training progress; null takes the file's `step`.
        overrides: `key=value` changes of the objective's configuration.

    Raises:
        PickleReadError: The file is damaged, or asks for a global that is not allowed.
        SnapshotError: The network is of another architecture, or the progress is unknown.
    """
    check_output(target)
    container = read_container(source)
    module = container["ema"]
    with naming(source):
        unet = unet_config(constructor_arguments(module))
        published = objective_config(module, unet, stage)
    objective = override(published, overrides)
    with naming(source):
        weights = network_weights(dict(module_tensors(module)), unet, str(source))
        images_seen = container.get("step") if images_seen is None else images_seen
        if images_seen is None:
            raise SnapshotError(
                f"{source} does not say how many images it was trained on; give --images-seen"
            )
        images_seen = _whole_number("step", images_seen, 0, MAX_IMAGES)
    return write_snapshot(
        target,
        weights,
        objective=objective,
        network="denoiser",
        images_seen=images_seen,
        ema="as in the official checkpoint",
        provenance={
            "converted_from": source.name,
            "sha256": file_sha256(source),
            "official_arguments": plain_json(constructor_arguments(module)),
        },
    )


def constructor_arguments(module: ModuleObject) -> dict[str, Any]:
    """Return the keyword arguments by which the official wrapper was built."""
    arguments = vars(module).get("_init_kwargs")
    if not isinstance(arguments, dict):
        raise SnapshotError("the checkpoint does not record its network's constructor arguments")
    return dict(arguments)


def plain_json(arguments: Mapping[str, Any]) -> Any:
    """Return arguments as JSON values; what JSON cannot hold is described."""
    try:
        return json.loads(json.dumps(arguments, default=str, skipkeys=True))
    except (TypeError, ValueError, RecursionError) as error:
        raise SnapshotError(f"the network's constructor arguments are damaged: {error}") from None


def unet_config(arguments: Mapping[str, Any]) -> UNetConfig:
    """Translate the official wrapper's arguments, filling in its defaults.

    Raises:
        SnapshotError: The network is not the ADM U-Net, or an argument is of a wrong type or size.
    """
    model_type = arguments.get("model_type", "DhariwalUNet")
    if not isinstance(model_type, str) or model_type != "DhariwalUNet":
        raise SnapshotError(
            f"the checkpoint's network is a {str(model_type)[:80]}, not the ADM U-Net of RDM"
        )

    def number(name: str, default: int | None, smallest: int, largest: int) -> int:
        return _whole_number(name, arguments.get(name, default), smallest, largest)

    def numbers(name: str, default: tuple[int, ...], largest: int) -> tuple[int, ...]:
        values = arguments.get(name, default)
        if not isinstance(values, (list, tuple)) or len(values) > MAX_LEVELS:
            raise SnapshotError(f"the checkpoint's {name} is not a list of up to {MAX_LEVELS}")
        return tuple(_whole_number(name, value, 1, largest) for value in values)

    return UNetConfig(
        resolution=number("img_resolution", None, 1, MAX_EDGE),
        image_channels=number("img_channels", None, 1, MAX_EDGE),
        model_channels=number("model_channels", 192, 1, MAX_EDGE),
        channel_mult=numbers("channel_mult", (1, 2, 3, 4), MAX_EDGE),
        num_blocks=number("num_blocks", 3, 1, MAX_LEVELS),
        attn_resolutions=numbers("attn_resolutions", (32, 16, 8), MAX_EDGE),
        label_dim=number("label_dim", 0, 0, MAX_CLASSES),
        augment_dim=number("augment_dim", 0, 0, MAX_EDGE),
        dropout=_probability("dropout", arguments.get("dropout", 0.10)),
        compute_dtype="float16" if arguments.get("use_fp16") is True else "float32",
    )


def _whole_number(name: str, value: Any, smallest: int, largest: int) -> int:
    """Return a number of the file. Raises SnapshotError if it is none, or out of bounds."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise SnapshotError(f"the checkpoint's {name} is a {type(value).__name__}, not a number")
    if not smallest <= value <= largest:
        raise SnapshotError(
            f"the checkpoint's {name} is {str(value)[:20]}, expected {smallest} to {largest}"
        )
    return int(value)


def _probability(name: str, value: Any) -> float:
    if not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
        raise SnapshotError(f"the checkpoint's {name} is not a number from 0 to 1")
    return float(value)


def objective_config(
    module: ModuleObject, unet: UNetConfig, stage: Stage | None
) -> EdmConfig | RelayConfig:
    """Return the published configuration that fits the network."""
    arguments = constructor_arguments(module)
    label_dropout = _probability("label_dropout", arguments.get("label_dropout", 0.0))
    if stage == "edm" or (stage is None and unet.resolution != RELAY_RESOLUTION):
        edm = presets.IMAGENET_EDM if unet.label_dim else presets.CELEBAHQ_EDM
        return EdmConfig(unet=unet, label_dropout=label_dropout, sampling=edm)
    conditional = unet.label_dim > 0
    return RelayConfig(
        unet=unet,
        label_dropout=label_dropout,
        process=presets.IMAGENET_PROCESS if conditional else presets.CELEBAHQ_PROCESS,
        sampling=presets.IMAGENET_RELAY if conditional else presets.CELEBAHQ_RELAY,
    )


def network_weights(
    official: Mapping[str, StoredTensor | Tensor], unet: UNetConfig, source: str
) -> dict[str, Tensor]:
    """Return the weights under this package's names: no prefix, no buffers.

    Args:
        official: Tensors by official name; those of a file are read once names and shapes fit.
        unet: The network that they are for.
        source: Where they come from, for messages.

    Raises:
        SnapshotError: Names or shapes are not those of the network, or a buffer is not the 2x2
            mean that all published networks resample with.
    """
    stored = {name.removeprefix(NAME_PREFIX): tensor for name, tensor in official.items()}
    buffers = {name: stored.pop(name) for name in [*stored] if name.endswith(BUFFER)}
    with torch.device("meta"):
        expected = UNet(replace(unet, compute_dtype="float32")).state_dict()
    problems = describe_mismatch(expected, stored)  # before anything is loaded
    if problems:
        raise SnapshotError(f"{source} does not fit the arguments that it records: {problems}")
    mean = torch.full((1, 1, 2, 2), 0.25)
    for name, buffer in buffers.items():
        if buffer.shape != mean.shape or not torch.equal(_loaded(buffer), mean):
            raise SnapshotError(f"{source}: {name} is not the 2x2 mean of the published networks")
    return {name: _loaded(tensor) for name, tensor in stored.items()}


def _loaded(tensor: StoredTensor | Tensor) -> Tensor:
    """Return a tensor in float32."""
    return (tensor.load() if isinstance(tensor, StoredTensor) else tensor).to(torch.float32)
