"""Official RDM and EDM checkpoints to snapshots, without executing what they contain."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from models.config_io import differences, override, to_json
from models.convert.pickle_reader import naming
from models.convert.rdm_files import (
    ModuleObject,
    StoredTensor,
    module_tensors,
    read_container,
)
from models.rdm import presets
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.edm_sampler import EdmSampling
from models.rdm.process import EdmProcess
from models.rdm.sampler import SamplingBase
from models.rdm.unet import UNet, UNetConfig
from models.safe_files.transient import file_sha256
from models.snapshot import (
    FLOATS,
    Snapshot,
    SnapshotError,
    check_output,
    describe_mismatch,
    describe_unusable,
    write_snapshot,
)

Stage = Literal["edm", "relay"]
WRAPPER = "EDMPrecond"
"""Class of the official wrappers of both stages; EDM's code has others for other models."""
LEVELS = {"sigma_min": 0.0, "sigma_max": math.inf}
COMMON = {"P_mean": "p_mean", "P_std": "p_std", "sigma_data": "sigma_data"}
LOSSES: dict[str, tuple[Stage, dict[str, str]]] = {
    "EDMLoss": ("edm", COMMON),
    "BlurLoss": (
        "relay",
        COMMON
        | {
            "up_scale": "upscale",
            "prob_length": "prob_length",
            "blur_sigma_max": "blur_sigma_max",
            "min_scale": "min_scale",
            "block_scale": "block_noise_alpha",
        },
    ),
}
"""Official losses: the stage that they train, and our names of their attributes."""
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
    sampler: str | None = None,
    overrides: Sequence[str] = (),
) -> Snapshot:
    """Write the averaged network of an official `.pkl` or `.pt` as a snapshot.

    The file records the network, a `.pkl` its process as well. Where it does not, stage 2 gets the
    process of CelebA-HQ if the network is unconditional, else that of ImageNet. No file records
    the sampler: the snapshot gets that of the paper's main result, and names it. `overrides` change
    both, but not what the file records.

    Args:
        source: The official checkpoint.
        target: Directory of the snapshot.
        stage: Kind of model; null takes that of the recorded loss, or else relay for 256 pixels and
            edm for others.
        images_seen: Training progress; null takes the file's `step`.
        sampler: Name of one of `presets.SAMPLERS`; null takes the first that fits.
        overrides: `key=value` changes of the objective's configuration.

    Raises:
        PickleReadError: The file is damaged, or asks for a global that is not allowed.
        SnapshotError: The network is of another architecture or preconditioning, contradicts what
            is asked for, or has unusable weights; the progress is unknown, or the sampler does
            not fit.
    """
    check_output(target)
    container = read_container(source)
    module = container["ema"]
    with naming(source):
        check_wrapper(module)
        unet = unet_config(constructor_arguments(module))
        found = recorded_process(module, container.get("loss_fn"))
        stage = found.stage_of(stage, unet)
        sampler = sampler or samplers_of(stage, unet)[0]
        published = objective_config(module, unet, stage, found.settings, sampler)
    objective = override(published, overrides)
    with naming(source):
        found.check(objective)
        weights = network_weights(dict(module_tensors(module)), objective.unet, str(source))
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
            "sampler": sampler,
            "sampler_changes": _changes(published.sampling, objective.sampling),
        },
    )


def samplers_of(stage: Stage, unet: UNetConfig) -> list[str]:
    """Return the names of the published samplers that fit a network, the main one first."""
    kind = "edm" if stage == "edm" else "relay"
    prefix = f"{'imagenet' if unet.label_dim else 'celebahq'}_{kind}"
    return [name for name in presets.SAMPLERS if name.startswith(prefix)]


def _changes(published: SamplingBase, ours: SamplingBase) -> dict[str, Any]:
    """Return which of a published sampler's settings were changed, and to what."""
    changed = differences(to_json(published), to_json(ours))
    return {name: after for name, (_, after) in changed.items()}


def check_wrapper(module: ModuleObject) -> None:
    """Check that a network is preconditioned as EDM's: others' weights would sample noise.

    Raises:
        SnapshotError: It is VP, VE, iDDPM or unknown, or its attributes contradict its arguments.
    """
    if module.class_name != WRAPPER:
        raise SnapshotError(
            f"the checkpoint's network is a {str(module.class_name)[:80]!a}, expected {WRAPPER}:"
            " its preconditioning is another one, and only EDM's and RDM's can be converted"
        )
    arguments, attributes = constructor_arguments(module), vars(module)
    for name in ("img_resolution", "img_channels", "label_dim"):
        if name in arguments and name in attributes and arguments[name] != attributes[name]:
            raise SnapshotError(
                f"the checkpoint's {name} is {str(attributes[name])[:20]}, but was built as"
                f" {str(arguments[name])[:20]}: the file is damaged or was changed"
            )


@dataclass(frozen=True)
class RecordedProcess:
    """What a file says of the process that its network was trained with.

    Attributes:
        stage: Kind of model by the recorded loss; null if there is none.
        settings: Settings of EdmProcess or RelayProcess.
        sigma_min: Smallest level that the wrapper accepts,
        sigma_max: and the largest.
    """

    stage: Stage | None
    settings: dict[str, Any]
    sigma_min: float
    sigma_max: float

    def stage_of(self, wanted: Stage | None, unet: UNetConfig) -> Stage:
        """Return the kind of model. Raises SnapshotError if the file says another one."""
        if wanted and self.stage and wanted != self.stage:
            raise SnapshotError(
                f"the checkpoint was trained by the loss of the {self.stage} stage, not {wanted};"
                " leave --stage out, or give the file of the other stage"
            )
        by_size: Stage = "relay" if unet.resolution == RELAY_RESOLUTION else "edm"
        return wanted or self.stage or by_size

    def check(self, objective: EdmConfig | RelayConfig) -> None:
        """Raise SnapshotError if settings contradict the file."""
        for name, value in self.settings.items():
            if (given := getattr(objective.process, name)) != value:
                raise SnapshotError(
                    f"process.{name}={given}, but the checkpoint was trained with {value};"
                    " leave the override out"
                )
        low, high = objective.sampling.sigma_min, objective.sampling.sigma_max
        if low < self.sigma_min or high > self.sigma_max:
            raise SnapshotError(
                f"sampling.sigma_min={low} and sampling.sigma_max={high} are outside the levels"
                f" {self.sigma_min} to {self.sigma_max} that the checkpoint's network accepts;"
                " set them within"
            )


def recorded_process(module: ModuleObject, loss: Any) -> RecordedProcess:
    """Read what a network's wrapper and, in a `.pkl`, its loss record of the process.

    Raises:
        SnapshotError: The loss is that of another model, a number is none, or the two differ.
    """
    attributes = vars(module)
    levels = [_level(name, attributes.get(name, default)) for name, default in LEVELS.items()]
    settings = {"sigma_data": _level("sigma_data", attributes.get("sigma_data", 0.5))}
    if not isinstance(loss, ModuleObject):
        return RecordedProcess(None, settings, *levels)
    if loss.class_name not in LOSSES:
        raise SnapshotError(
            f"the checkpoint was trained by {str(loss.class_name)[:80]!a}, expected one of"
            f" {', '.join(LOSSES)}: it is of another model"
        )
    stage, names = LOSSES[loss.class_name]
    recorded = {
        ours: _level(name, vars(loss)[name]) for name, ours in names.items() if name in vars(loss)
    }
    if (found := recorded.get("sigma_data", settings["sigma_data"])) != settings["sigma_data"]:
        raise SnapshotError(
            f"the checkpoint's network has sigma_data={settings['sigma_data']}, its loss {found}:"
            " the file is damaged or was changed"
        )
    if "upscale" in recorded:
        upscale = _whole_number("up_scale", vars(loss)["up_scale"], 2, MAX_EDGE)
        recorded["upscale"] = upscale
    return RecordedProcess(stage, settings | recorded, *levels)


def _level(name: str, value: Any) -> float:
    """Return a number of the file, which may be infinite. Raises SnapshotError if it is none."""
    numeric = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not numeric or not float(value) == float(value):
        raise SnapshotError(f"the checkpoint's {name} is {str(value)[:20]!a}, not a number")
    return float(value)


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
    module: ModuleObject, unet: UNetConfig, stage: Stage, process: Mapping[str, Any], sampler: str
) -> EdmConfig | RelayConfig:
    """Return the published configuration that fits the network, with a sampler of this name."""
    if sampler not in (fitting := samplers_of(stage, unet)):
        raise SnapshotError(
            f"the sampler {sampler[:80]!r} does not fit this network; expected {', '.join(fitting)}"
        )
    sampling = presets.SAMPLERS[sampler]
    arguments = constructor_arguments(module)
    label_dropout = _probability("label_dropout", arguments.get("label_dropout", 0.0))
    if isinstance(sampling, EdmSampling):
        return EdmConfig(
            unet=unet, label_dropout=label_dropout, process=EdmProcess(**process), sampling=sampling
        )
    published = presets.IMAGENET_PROCESS if unet.label_dim else presets.CELEBAHQ_PROCESS
    return RelayConfig(
        unet=unet,
        label_dropout=label_dropout,
        process=replace(published, **process),
        sampling=sampling,
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
            mean that all published networks resample with, or a weight is NaN, infinite or no
            floating-point number.
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
        if buffer.shape != mean.shape or not torch.equal(_raw(buffer).to(torch.float32), mean):
            raise SnapshotError(f"{source}: {name} is not the 2x2 mean of the published networks")
    loaded = {name: _raw(tensor) for name, tensor in stored.items()}
    if problem := describe_unusable(loaded, FLOATS):
        raise SnapshotError(f"{source}: {problem}")
    weights = {name: tensor.to(torch.float32) for name, tensor in loaded.items()}
    if problem := describe_unusable(weights, FLOATS):
        raise SnapshotError(f"{source}: {problem}, rounded to float32")
    return weights


def _raw(tensor: StoredTensor | Tensor) -> Tensor:
    return tensor.load() if isinstance(tensor, StoredTensor) else tensor
