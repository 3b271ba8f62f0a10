"""Where the weights of detectors are on this machine, and what is published of them.

One file of the user's names them, so that no command needs `--weights`:

    inception = "/models/pt_inception-2015-12-05-6726825d.pth"
    dinov2 = "dinov2_vitl14_pretrain.pth"          # beside this file

It is what $RELAYWAVE_WEIGHTS names, else relaywave/weights.toml in $XDG_CONFIG_HOME or ~/.config.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from models.config_io import ConfigError, did_you_mean
from models.safe_files.user_toml import read_toml, user_file

VARIABLE = "RELAYWAVE_WEIGHTS"
PUBLIC_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of `pt_inception-2015-12-05-6726825d.pth`."""
NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"


@dataclass(frozen=True)
class Download:
    """A published weights file.

    Attributes:
        url: Where it is published.
        sha256: Its digest, "" where none is published.
    """

    url: str
    sha256: str = ""


DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "inception": (
        Download(
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
            "pt_inception-2015-12-05-6726825d.pth",
            PUBLIC_SHA256,
        ),
        Download(f"{NVIDIA}/inception-2015-12-05.pt"),
        Download(
            "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files/"
            "metrics/inception-2015-12-05.pkl"
        ),
    ),
    "torchscript": (Download(f"{NVIDIA}/inception-2015-12-05.pt"),),
    "dinov2": (
        Download("https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"),
    ),
    "clip": (
        Download(
            "https://huggingface.co/openai/clip-vit-large-patch14-336/resolve/main/"
            "model.safetensors"
        ),
    ),
    "vgg16": (Download(f"{NVIDIA}/vgg16.pt"),),
}
"""Detectors that need a weights file, and the files that they take; the preferred one first."""


def weights_file() -> Path:
    """Return where the user's list of weights files is, whether it exists or not."""
    return user_file("weights.toml", VARIABLE)


def configured_weights() -> dict[str, Path]:
    """Return the weights file of each detector that the user's list names.

    Relative paths are relative to the list. Without a list there are none.

    Raises:
        ConfigError: The list that $RELAYWAVE_WEIGHTS names does not exist, or the list cannot be
            read, or names an unknown detector.
    """
    path = weights_file()
    if not (os.environ.get(VARIABLE) or path.exists()):
        return {}
    named: dict[str, str] = read_toml(path, dict[str, str], "a list of weights files")
    for name, value in named.items():
        if name not in DOWNLOADS:
            known = ", ".join(DOWNLOADS)
            raise ConfigError(
                f"{path}: {name[:80]!r} is no detector that needs weights; expected {known}"
                f"{did_you_mean(name, [*DOWNLOADS])}"
            )
        if not value or "\0" in value:
            raise ConfigError(f"{path}: {name}={value[:80]!r} is no path; name the weights file")
    return {name: path.parent / Path(value).expanduser() for name, value in named.items()}


def find_weights(name: str) -> Path:
    """Return the weights file of a detector, as the user's list names it.

    Raises:
        ConfigError: The list is invalid, as of `configured_weights`.
        ValueError: It has none for this detector, or names a file that does not exist.
    """
    path = configured_weights().get(name)
    if path is None:
        raise ValueError(
            f"the {name} detector needs its weights file: give --weights FILE, or name it in"
            f' {weights_file()} ({name} = "FILE"); `relaywave eval weights` says where to get it'
        )
    if not path.exists():
        raise ValueError(
            f"{weights_file()} names {path} for {name}, which does not exist;"
            " `relaywave eval weights` says where to get it"
        )
    return path
