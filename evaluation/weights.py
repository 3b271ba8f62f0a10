"""Reading of detectors' weights files: digests checked, no code executed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from models.convert.pickle_reader import unreadable


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
        raise ValueError(
            f"{path} cannot be read as a plain state dict: {unreadable(error)}"
        ) from None
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
