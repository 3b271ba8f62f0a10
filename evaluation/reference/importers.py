"""Read statistics files of other tools (docs/reference/evaluation.md#4).

Each kind is recognised by its content. Pickles are read by a restricted reader that executes
nothing; .npz files with pickled objects are rejected.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.detectors.inception import SPATIAL_CHANNELS
from evaluation.image_sets.npz import AnyArray, NpzArray, npz_names, read_npz
from evaluation.metrics.statistics import FeatureSet, FloatArray, Gaussian, gaussian_of
from evaluation.reference.statistics_file import read_reference
from models.convert.pickle_reader import (
    NUMPY_GLOBALS,
    PickleReadError,
    check_torch_pickles,
    read_pickle,
    read_pickled_npy,
)
from models.safe_files.archives import ArchiveError, check_torch_file, read_member
from models.safe_files.nearest import check_there
from models.safe_files.regular import check_file
from models.safe_files.transient import retried

SPATIAL_EDGE = 17
CLEAN_MODES = {
    "_clean_": "clean",
    "_legacy_tensorflow_": "tf1",
    "_legacy_pytorch_": "pytorch_fid",
}
"""Pipelines by what clean-fid writes into the names of its files."""
PICKLE_GLOBALS = NUMPY_GLOBALS | {"dnnlib.util.EasyDict": dict}


def read_statistics(path: Path, detector: Mapping[str, str]) -> FeatureSet:
    """Read a statistics or features file, our own or foreign.

    Args:
        path: The file.
        detector: Identity of the detector that made it: `name`, and `pipeline` for its
            preprocessing ("" if only the file's name may say it). Few files record either; what a
            file's name says is checked.

    Returns:
        Moments and, where the file has them, features, under our names of taps.

    Raises:
        ValueError: The file is damaged, holds objects that are rejected, is of no known kind,
            contradicts `detector`, or its preprocessing is unknown.
    """
    if path.exists():
        check_file(path)
    reader = _reader(path)
    if reader is None:
        return read_reference(path)
    try:
        gaussians, features, n = reader(path, detector["name"])
    except PickleReadError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, MemoryError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]!a}"
        raise ValueError(f"{path} holds other values than such a file ({reason})") from None
    preprocessing = _known_preprocessing(path, detector["pipeline"])
    for tap, gaussian in gaussians.items():
        gaussian.check(f"{path} ({tap})")
    meta = {
        "source": str(path),
        "images": {"kind": reader.__name__.removeprefix("_"), "path": str(path), "num_images": n},
        "detector": {**detector, "pipeline": preprocessing},
        "weights_sha256": "not recorded in the file",
    }
    rows = len(next(iter(features.values()))) if features else 0
    return FeatureSet(meta, n or rows, gaussians, features, range(rows))


def _known_preprocessing(path: Path, stated: str) -> str:
    """Return the stated preprocessing of a file, or that which tools write into its name."""
    known = CLEAN_MODES | {"-inception-v3-compat-": "tf1"}
    named = next((name for mark, name in known.items() if mark in path.name), "")
    if named and stated and named != stated:
        raise ValueError(
            f"{path} was made with the preprocessing {named} (its name says so), not {stated}"
        )
    if not (named or stated):
        raise ValueError(
            f"{path} does not record how its images were resized; add --reference-pipeline"
            " (e.g. tf1) if you know"
        )
    return named or stated


Content = tuple[dict[str, Gaussian], dict[str, FloatArray], int | None]
Reader = Callable[[Path, str], Content]


def main_tap(detector: str) -> str:
    """Return the tap of a detector whose statistics files of other tools hold."""
    return {
        "inception": "pool",
        "torchscript": "pool",
        "dinov2": "cls",
        "clip": "embedding",
        "effnet_lite0": "block4",
    }.get(detector, "features")


def _reader(path: Path) -> Reader | None:
    """Return the reader of a file's kind, None for our own."""
    check_there(path, "a statistics file")
    if path.suffix == ".npz":
        return _npz_reader(path, npz_names(path))
    readers: dict[str, Reader] = {".npy": _npy, ".pkl": _pickle, ".pt": _torch_cache}
    if path.suffix not in readers:
        raise ValueError(f"{path} is not a statistics file (.npz, .npy, .pkl or .pt)")
    return readers[path.suffix]


def _npz_reader(path: Path, names: set[str]) -> Reader | None:
    if "meta" in names:
        return None
    if "arr_0" in names and "mu" in names:
        return _adm_reference
    if {"mu", "sigma"} <= names:
        return _moments
    if "feat" in names:
        return _rdm_activations
    if "feats" in names:
        return _features("feats")
    if "reps" in names:
        return _features("reps")
    raise ValueError(f"{path} holds {', '.join(sorted(names))}: no known kind of statistics")


def _moments(path: Path, detector: str) -> Content:
    """pytorch-fid, TTUR, EDM and clean-fid: `mu`, `sigma`; the number of images is not recorded."""
    arrays = read_npz(path, ["mu", "sigma", "n", "mu_s", "sigma_s"])
    n = int(arrays["n"]) if "n" in arrays else None
    gaussians = {main_tap(detector): _gaussian(path, arrays, "", n)}
    if "mu_s" in arrays:
        gaussians["spatial"] = _gaussian(path, arrays, "_s", n)
    return gaussians, {}, n


def _adm_reference(path: Path, detector: str) -> Content:
    """ADM reference batch: moments of the whole training set; its images are for P/R."""
    gaussians, _, _ = _moments(path, detector)
    return gaussians, {}, None


def _rdm_activations(path: Path, detector: str) -> Content:
    """RDM: `feat` and `s_feat` of every image; the latter in C, H, W order."""
    del detector
    arrays = {name: NpzArray(path, name) for name in ("feat", "s_feat") if name in npz_names(path)}
    features = {"pool": _rows(arrays["feat"])}
    if "s_feat" in arrays:
        features["spatial"] = spatial_to_hwc(_rows(arrays["s_feat"]))
    gaussians = {tap: gaussian_of(values) for tap, values in features.items()}
    return gaussians, features, len(features["pool"])


def _rows(array: NpzArray) -> FloatArray:
    """Read all rows, as float32, block by block (files are float64 and large)."""
    rows = np.empty(array.shape, np.float32)
    for start in range(0, len(rows), 1024):
        stop = min(start + 1024, len(rows))
        rows[start:stop] = array.rows(range(start, stop))
    return rows


def spatial_to_hwc(features: FloatArray) -> FloatArray:
    """Reorder spatial features [N, 7 * 17 * 17] from C, H, W (RDM) to H, W, C (ADM, ours)."""
    shape = (len(features), SPATIAL_CHANNELS, SPATIAL_EDGE, SPATIAL_EDGE)
    if features.shape[1] != np.prod(shape[1:]):
        raise ValueError(f"spatial features have 2023 values, not {features.shape[1]}")
    return np.ascontiguousarray(features.reshape(shape).transpose(0, 2, 3, 1)).reshape(
        len(features), -1
    )


def _features(key: str) -> Reader:
    """clean-fid's KID files (`feats`) and dgm-eval's representations (`reps`)."""

    def features_file(path: Path, detector: str) -> Content:
        values = read_npz(path, [key])[key]
        return _from_features(path, values, main_tap(detector))

    return features_file


def _npy(path: Path, detector: str) -> Content:
    """DDGAN / WaveDiff `*_stat.npy` (a pickled dict of moments) or CMMD embeddings (float32)."""
    content = read_pickled_npy(path)
    if isinstance(content, dict) and {"mu", "sigma"} <= content.keys():
        return {main_tap(detector): _gaussian(path, content, "", None)}, {}, None
    return _from_features(path, np.asarray(content), main_tap(detector))


def _pickle(path: Path, detector: str) -> Content:
    """EDM2 `dataset-refs` or StyleGAN `gan-metrics`."""
    content = read_pickle(retried(path.read_bytes, f"reading {path}"), PICKLE_GLOBALS)
    if isinstance(content, dict) and "raw_mean" in content:
        return _stylegan(path, content, detector)
    keys = {"inception": "fid", "dinov2": "fd_dinov2"}
    if not isinstance(content, dict) or keys.get(detector, "") not in content:
        found = (
            ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        )
        raise ValueError(f"{path} holds {found}: no statistics of the {detector} detector")
    n = int(content["num_images"])
    return {main_tap(detector): _gaussian(path, content[keys[detector]], "", n)}, {}, n


def _stylegan(path: Path, content: Mapping[str, Any], detector: str) -> Content:
    """StyleGAN2/3: float64 sums, and features if they were captured."""
    n = int(content["num_items"])
    tap, gaussians, features = main_tap(detector), {}, {}
    if content["raw_mean"] is not None:
        mu = np.asarray(content["raw_mean"]) / n
        biased = np.asarray(content["raw_cov"]) / n - np.outer(mu, mu)
        gaussians[tap] = Gaussian(mu, biased * (n / (n - 1)), n)
    if content.get("all_features"):
        features[tap] = np.concatenate([np.asarray(part) for part in content["all_features"]])
        gaussians.setdefault(tap, gaussian_of(features[tap]))
    if not gaussians:
        raise ValueError(f"{path} captured neither moments nor features")
    return gaussians, features, n


def _torch_cache(path: Path, detector: str) -> Content:
    """torch-fidelity caches: a feature tensor, or a dict with numpy moments."""
    tap = main_tap(detector)
    try:
        check_torch_file(path)
    except ArchiveError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    try:
        check_torch_pickles(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the moments' cache holds numpy arrays, which torch rejects
        content = _zipped_pickle(path)
    if isinstance(content, torch.Tensor):
        return _from_features(path, content.numpy(), tap)
    if not isinstance(content, dict) or not {"mu", "sigma"} <= content.keys():
        raise ValueError(f"{path} is not a torch-fidelity cache")
    return {tap: _gaussian(path, content, "", None)}, {}, None


def _zipped_pickle(path: Path) -> Any:
    """Return the object of a torch file without tensors, by the restricted reader."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return read_pickle(read_member(archive, name), NUMPY_GLOBALS)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _from_features(path: Path, values: AnyArray, tap: str) -> Content:
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"{path}: features are {list(values.shape)}, expected finite [N, D]")
    features = np.asarray(values, np.float32)
    return {tap: gaussian_of(features)}, {tap: features}, len(features)


def _gaussian(path: Path, arrays: Mapping[str, Any], suffix: str, n: int | None) -> Gaussian:
    try:
        mu, sigma = (np.asarray(arrays[key + suffix], np.float64) for key in ("mu", "sigma"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has no readable mu{suffix} and sigma{suffix}: {error}") from None
    return Gaussian(np.atleast_1d(mu), np.atleast_2d(sigma), n)
