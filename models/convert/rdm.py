"""Official RDM and EDM checkpoints to snapshots, without executing what they contain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models.config_io import override
from models.convert.rdm_files import ModuleObject, module_tensors, read_container
from models.rdm import presets
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.unet import UNet, UNetConfig
from models.snapshot import Snapshot, SnapshotError, describe_mismatch, file_sha256, write_snapshot

Stage = Literal["edm", "relay"]
NAME_PREFIX = "model."
BUFFER = "resample_filter"
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
    container = read_container(source)
    module = container["ema"]
    unet = unet_config(constructor_arguments(module))
    weights = network_weights(
        {name: stored.load() for name, stored in module_tensors(module)}, unet, str(source)
    )
    images_seen = container.get("step") if images_seen is None else images_seen
    if images_seen is None:
        raise SnapshotError(
            f"{source} does not say how many images it was trained on; give --images-seen"
        )
    return write_snapshot(
        target,
        weights,
        objective=override(objective_config(module, unet, stage), overrides),
        network="denoiser",
        images_seen=int(images_seen),
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
    return json.loads(json.dumps(arguments, default=str))


def unet_config(arguments: Mapping[str, Any]) -> UNetConfig:
    """Translate the official wrapper's arguments, filling in its defaults.

    Raises:
        SnapshotError: The network is not the ADM U-Net.
    """
    model_type = arguments.get("model_type", "DhariwalUNet")
    if model_type != "DhariwalUNet":
        raise SnapshotError(f"the checkpoint's network is a {model_type}, not the ADM U-Net of RDM")
    return UNetConfig(
        resolution=int(arguments["img_resolution"]),
        image_channels=int(arguments["img_channels"]),
        model_channels=int(arguments.get("model_channels", 192)),
        channel_mult=tuple(arguments.get("channel_mult", (1, 2, 3, 4))),
        num_blocks=int(arguments.get("num_blocks", 3)),
        attn_resolutions=tuple(arguments.get("attn_resolutions", (32, 16, 8))),
        label_dim=int(arguments.get("label_dim", 0)),
        augment_dim=int(arguments.get("augment_dim", 0)),
        dropout=float(arguments.get("dropout", 0.10)),
        compute_dtype="float16" if arguments.get("use_fp16") else "float32",
    )


def objective_config(
    module: ModuleObject, unet: UNetConfig, stage: Stage | None
) -> EdmConfig | RelayConfig:
    """Return the published configuration that fits the network."""
    label_dropout = float(constructor_arguments(module).get("label_dropout", 0.0))
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
    official: Mapping[str, Tensor], unet: UNetConfig, source: str
) -> dict[str, Tensor]:
    """Return the weights under this package's names: no prefix, no buffers.

    Raises:
        SnapshotError: Names or shapes are not those of the network, or a buffer is not the 2x2
            mean that all published networks resample with.
    """
    weights = {}
    for name, tensor in official.items():
        if not name.endswith(BUFFER):
            weights[name.removeprefix(NAME_PREFIX)] = tensor.to(torch.float32)
        elif not torch.equal(tensor.to(torch.float32), torch.full((1, 1, 2, 2), 0.25)):
            raise SnapshotError(f"{source}: {name} is not the 2x2 mean of the published networks")
    with torch.device("meta"):
        expected = UNet(replace(unet, compute_dtype="float32")).state_dict()
    problems = describe_mismatch(expected, weights)
    if problems:
        raise SnapshotError(f"{source} does not fit the arguments that it records: {problems}")
    return weights
