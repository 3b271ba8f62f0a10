"""Write statistics files of other tools from ours, and sample batches from images."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.detectors.inception import SPATIAL_CHANNELS
from evaluation.disk import write_bytes
from evaluation.image_sets.image_set import ImageSet
from evaluation.image_sets.npz import AnyArray, write_npz
from evaluation.metrics.statistics import FeatureSet, FloatArray
from evaluation.progress import Progress
from evaluation.reference.importers import CLEAN_MODES, SPATIAL_EDGE, main_tap
from models.safe_files.atomic import new_file

BATCH = 64


def export(features: FeatureSet, path: Path, kind: str, images: ImageSet | None = None) -> None:
    """Write statistics as a file of another tool; see FORMATS for the kinds.

    Args:
        features: The statistics.
        path: The file.
        kind: Whose file.
        images: Images that an ADM reference batch holds as well.

    Raises:
        ValueError: The kind is unknown, the set lacks what it needs, or another file is there.
    """
    if kind == "adm_reference":
        if images is None:
            raise ValueError("an ADM reference batch holds images, too: add --images DATA")
        write_batch(images, path, _spatial_moments(features))
        return
    if kind not in EXPORTERS:
        raise ValueError(f"format {kind!r} is not one of {', '.join(FORMATS)}")
    if kind in ("clean_fid", "clean_fid_kid"):
        _check_clean_name(features, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        EXPORTERS[kind](features, temporary)


def write_batch(images: ImageSet, path: Path, arrays: Mapping[str, AnyArray] | None = None) -> None:
    """Write an ADM batch, streamed: images as `arr_0` uint8 [N, H, W, 3], classes as `arr_1`.

    Raises:
        ValueError: The images are of mixed sizes, one cannot be decoded, or another file is there.
    """
    labels = images.labels(range(len(images)))
    classes = {} if labels is None else {"arr_1": labels}
    height, width = images.batch([0]).shape[2:]
    shape = (len(images), height, width, 3)
    stream = (np.dtype(np.uint8), shape, _pixel_rows(images))
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        write_npz(temporary, {**(arrays or {}), **classes}, {"arr_0": stream})


def _pixel_rows(images: ImageSet) -> Iterator[AnyArray]:
    progress = Progress(len(images), "images")
    for start in range(0, len(images), BATCH):
        indices = range(start, min(start + BATCH, len(images)))
        yield images.batch(indices).permute(0, 2, 3, 1).contiguous().numpy()
        progress.add(len(indices))


def spatial_to_chw(features: FloatArray) -> FloatArray:
    """Reorder spatial features [N, 17 * 17 * 7] from H, W, C (ours) to C, H, W (RDM)."""
    shape = (len(features), SPATIAL_EDGE, SPATIAL_EDGE, SPATIAL_CHANNELS)
    planes = features.reshape(shape).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(planes).reshape(len(features), -1)


def _tap(features: FeatureSet) -> str:
    return main_tap(features.meta["detector"]["name"])


def _moments(features: FeatureSet, path: Path) -> None:
    """pytorch-fid, EDM: `mu`, `sigma`."""
    gaussian = features.gaussian(_tap(features))
    write_npz(path, {"mu": gaussian.mu, "sigma": gaussian.sigma})


def _clean_fid_kid(features: FeatureSet, path: Path) -> None:
    """clean-fid's features for KID: `feats`."""
    write_npz(path, {"feats": _all_rows(features, _tap(features))})


def _check_clean_name(features: FeatureSet, path: Path) -> None:
    preprocessing = features.meta["detector"]["pipeline"]
    if CLEAN_MODES.get(next((m for m in CLEAN_MODES if m in path.name), "")) != preprocessing:
        modes = ", ".join(f"NAME{mark}train_32.npz" for mark in CLEAN_MODES)
        raise ValueError(
            f"clean-fid recognises preprocessing by file names like {modes}; {path.name} does"
            f" not fit statistics made with {preprocessing}"
        )


def _spatial_moments(features: FeatureSet) -> dict[str, AnyArray]:
    """ADM: `mu`, `sigma`, and `mu_s`, `sigma_s` of the spatial features."""
    pool, spatial = features.gaussian("pool"), features.gaussian("spatial")
    return {"mu": pool.mu, "sigma": pool.sigma, "mu_s": spatial.mu, "sigma_s": spatial.sigma}


def _edm2(features: FeatureSet, path: Path) -> None:
    """EDM2 `dataset-refs`: a pickled dict."""
    key = {"inception": "fid", "dinov2": "fd_dinov2"}.get(features.meta["detector"]["name"])
    if key is None:
        raise ValueError("EDM2 references hold statistics of inception or dinov2 only")
    gaussian = features.gaussian(_tap(features))
    moments = {"mu": np.asarray(gaussian.mu), "sigma": np.asarray(gaussian.sigma)}
    write_bytes(path, pickle.dumps({"num_images": features.n, key: moments}))


def _stat_npy(features: FeatureSet, path: Path) -> None:
    """DDGAN / WaveDiff `*_stat.npy`: a pickled dict in a 0-d array."""
    gaussian = features.gaussian(_tap(features))
    buffer = io.BytesIO()
    content: Any = {"mu": gaussian.mu, "sigma": gaussian.sigma}
    np.save(buffer, np.array(content, dtype=object))
    write_bytes(path, buffer.getvalue())


def _rdm(features: FeatureSet, path: Path) -> None:
    """RDM activations: `feat` and, if there, `s_feat` in C, H, W order; float64."""
    arrays = {"feat": np.asarray(_all_rows(features, "pool"), np.float64)}
    if "spatial" in features.features:
        arrays["s_feat"] = spatial_to_chw(_all_rows(features, "spatial")).astype(np.float64)
    write_npz(path, arrays)


def _torch_fidelity(features: FeatureSet, path: Path) -> None:
    """torch-fidelity's features cache: one float32 tensor."""
    rows = torch.from_numpy(np.asarray(_all_rows(features, _tap(features)), np.float32))
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    write_bytes(path, buffer.getvalue())


def _torch_fidelity_moments(features: FeatureSet, path: Path) -> None:
    """torch-fidelity's cache of moments: `mu` in float32, `sigma` in float64."""
    gaussian = features.gaussian(_tap(features))
    buffer = io.BytesIO()
    content = {"mu": np.asarray(gaussian.mu, np.float32), "sigma": np.asarray(gaussian.sigma)}
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def _all_rows(features: FeatureSet, tap: str) -> FloatArray:
    rows = features.rows(tap)
    if len(rows) != features.n:
        raise ValueError(
            f"the set keeps {len(rows)} of {features.n} images' features; compute it with"
            f" --features {features.n}"
        )
    return rows


EXPORTERS: dict[str, Callable[[FeatureSet, Path], None]] = {
    "pytorch_fid": _moments,
    "edm": _moments,
    "edm2": _edm2,
    "stat_npy": _stat_npy,
    "rdm": _rdm,
    "torch_fidelity": _torch_fidelity,
    "torch_fidelity_moments": _torch_fidelity_moments,
    "clean_fid": _moments,
    "clean_fid_kid": _clean_fid_kid,
}
FORMATS = (*EXPORTERS, "adm_reference", "adm_samples")
"""All that `export` writes; the ADM batches hold images."""
