"""Weights of the FID Inception, from four kinds of files (docs/reference/evaluation.md#1.5).

Four kinds hold the same network: the public `.pth` (torchvision names), NVIDIA's TorchScript `.pt`
and its pickled `.pkl` (both with TensorFlow's names, no gammas), and our own `.safetensors`,
converted from any. The source text in a `.pkl` is not executed. The identity of the weights is a
digest of the tensors, not of the file, so that statistics made with any of them agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from evaluation.detectors.base import load_checked, weights_digest
from evaluation.detectors.inception import FidInception
from evaluation.detectors.torchscript import load_script
from evaluation.detectors.weights import PUBLIC_SHA256
from models.convert.pickle_reader import naming
from models.convert.rdm_files import module_tensors, read_module
from models.safe_files.atomic import atomic_path

COUNTER = "num_batches_tracked"

STEM = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}
BRANCHES = {
    "A": {
        "conv": "branch1x1",
        "tower.conv": "branch5x5_1",
        "tower.conv_1": "branch5x5_2",
        "tower_1.conv": "branch3x3dbl_1",
        "tower_1.conv_1": "branch3x3dbl_2",
        "tower_1.conv_2": "branch3x3dbl_3",
        "tower_2.conv": "branch_pool",
    },
    "B": {
        "conv": "branch3x3",
        "tower.conv": "branch3x3dbl_1",
        "tower.conv_1": "branch3x3dbl_2",
        "tower.conv_2": "branch3x3dbl_3",
    },
    "C": {
        "conv": "branch1x1",
        "tower.conv": "branch7x7_1",
        "tower.conv_1": "branch7x7_2",
        "tower.conv_2": "branch7x7_3",
        "tower_1.conv": "branch7x7dbl_1",
        "tower_1.conv_1": "branch7x7dbl_2",
        "tower_1.conv_2": "branch7x7dbl_3",
        "tower_1.conv_3": "branch7x7dbl_4",
        "tower_1.conv_4": "branch7x7dbl_5",
        "tower_2.conv": "branch_pool",
    },
    "D": {
        "tower.conv": "branch3x3_1",
        "tower.conv_1": "branch3x3_2",
        "tower_1.conv": "branch7x7x3_1",
        "tower_1.conv_1": "branch7x7x3_2",
        "tower_1.conv_2": "branch7x7x3_3",
        "tower_1.conv_3": "branch7x7x3_4",
    },
    "E": {
        "conv": "branch1x1",
        "tower_conv": "branch3x3_1",
        "tower_mixed_conv": "branch3x3_2a",
        "tower_mixed_conv_1": "branch3x3_2b",
        "tower_1_conv": "branch3x3dbl_1",
        "tower_1_conv_1": "branch3x3dbl_2",
        "tower_1_mixed_conv": "branch3x3dbl_3a",
        "tower_1_mixed_conv_1": "branch3x3dbl_3b",
        "tower_2_conv": "branch_pool",
    },
}
BLOCKS = {
    "mixed": ("Mixed_5b", "A"),
    "mixed_1": ("Mixed_5c", "A"),
    "mixed_2": ("Mixed_5d", "A"),
    "mixed_3": ("Mixed_6a", "B"),
    "mixed_4": ("Mixed_6b", "C"),
    "mixed_5": ("Mixed_6c", "C"),
    "mixed_6": ("Mixed_6d", "C"),
    "mixed_7": ("Mixed_6e", "C"),
    "mixed_8": ("Mixed_7a", "D"),
    "mixed_9": ("Mixed_7b", "E"),
    "mixed_10": ("Mixed_7c", "E"),
}
PARAMETERS = {
    "weight": "conv.weight",
    "beta": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
}


def load_inception_weights(path: Path, sha256: str = "") -> dict[str, Tensor]:
    """Return the network's 472 float tensors from a weights file of any of the four kinds.

    Args:
        path: The file.
        sha256: Digest that the file must have; "" takes the public one for `.pth` and checks
            nothing for the other kinds, whose digests are not published.

    Raises:
        ValueError: The digest is another, tensors are missing, unknown or of another shape, or a
            pickle is damaged or asks for a global that is not allowed.
    """
    if path.suffix in {".pt", ".pkl"}:
        weights_digest(path, sha256 or None)
        with naming(path):
            weights = from_nvidia(_script(path) if path.suffix == ".pt" else _pickled(path))
    else:
        expected = sha256 or (PUBLIC_SHA256 if path.suffix == ".pth" else None)
        weights, _ = load_checked(path, expected)
    return check_weights(weights, str(path))


def _script(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_script(path).state_dict()
    return state


def _pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of NVIDIA's `.pkl` by name, without executing what it contains."""
    return {name: stored.load() for name, stored in module_tensors(read_module(path))}


def is_published(path: Path, tensors_sha256: str) -> bool:
    """Tell whether weights are those of the public file, by its digest.

    Args:
        path: The file that they were read from, or what `convert_inception` made of the public one.
        tensors_sha256: Digest of the tensors in it.
    """
    if path.suffix != ".safetensors":
        return weights_digest(path, None) == PUBLIC_SHA256
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    expected = {"tensors_sha256": tensors_sha256, "source_sha256": PUBLIC_SHA256}
    return metadata.items() >= expected.items()


def check_weights(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the float tensors after checking names and shapes; counters are dropped."""
    with torch.device("meta"):
        expected = FidInception().state_dict()
    wanted = {key: tensor for key, tensor in expected.items() if not key.endswith(COUNTER)}
    given = {key: tensor for key, tensor in weights.items() if not key.endswith(COUNTER)}
    for kind, keys in (
        ("lacks", wanted.keys() - given),
        ("has the unknown", given.keys() - wanted),
    ):
        if keys:
            raise ValueError(f"{name} {kind} tensor {sorted(keys)[0]} ({len(keys)} in all)")
    for key, tensor in wanted.items():
        if given[key].shape != tensor.shape:
            shapes = f"{list(given[key].shape)}, expected {list(tensor.shape)}"
            raise ValueError(f"{name}: {key} has the shape {shapes}")
    return {key: given[key].to(torch.float32) for key in wanted}


def from_nvidia(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of NVIDIA's detector; gammas, which it lacks, are 1.

    Raises:
        ValueError: A name is not of the detector's.
    """
    weights: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        unit, _, parameter = key.removeprefix("layers.").rpartition(".")
        if unit == "output" and parameter in {"weight", "bias"}:
            weights[f"fc.{parameter}"] = tensor
            continue
        if parameter not in PARAMETERS:
            raise ValueError(f"tensor {key!r} is not one of NVIDIA's Inception detector")
        name = nvidia_unit(unit)
        weights[f"{name}.{PARAMETERS[parameter]}"] = tensor
        if parameter == "var":
            weights[f"{name}.bn.weight"] = torch.ones_like(tensor)
    return weights


def nvidia_unit(unit: str) -> str:
    """Return our name of a conv unit of NVIDIA's detector, e.g. `mixed.tower.conv`."""
    if unit in STEM:
        return STEM[unit]
    block, _, branch = unit.partition(".")
    if block in BLOCKS and branch in BRANCHES[BLOCKS[block][1]]:
        name, kind = BLOCKS[block]
        return f"{name}.{BRANCHES[kind][branch]}"
    raise ValueError(f"unit {unit!r} is not one of NVIDIA's Inception detector")


def tensors_digest(weights: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names and values, the same for every file kind of equal weights."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def convert_inception(source: Path, target: Path, sha256: str = "") -> str:
    """Write the weights as safetensors; returns the digest of the tensors."""
    weights = load_inception_weights(source, sha256)
    digest = tensors_digest(weights)
    metadata = {"tensors_sha256": digest, "source_sha256": weights_digest(source, None)}
    with atomic_path(target) as temporary:
        save_file(weights, temporary, metadata)
    return digest
