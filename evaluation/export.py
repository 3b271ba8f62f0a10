"""Writing the field's statistics files from ours."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.arrays import write_npz
from evaluation.formats import SPATIAL_EDGE, main_tap
from evaluation.grid import write_bytes
from evaluation.inception import SPATIAL_CHANNELS
from evaluation.statistics import FeatureSet, FloatArray


def export(features: FeatureSet, path: Path, kind: str) -> None:
    """Write statistics as a file of another tool; see EXPORTERS for the kinds.

    Raises:
        ValueError: The kind is unknown, or the set lacks what it needs.
    """
    if kind not in EXPORTERS:
        raise ValueError(f"format {kind!r} is not one of {', '.join(EXPORTERS)}")
    EXPORTERS[kind](features, path)


def spatial_to_chw(features: FloatArray) -> FloatArray:
    """Reorder spatial features [N, 17 * 17 * 7] from H, W, C (ours) to C, H, W (RDM)."""
    shape = (len(features), SPATIAL_EDGE, SPATIAL_EDGE, SPATIAL_CHANNELS)
    planes = features.reshape(shape).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(planes).reshape(len(features), -1)


def _tap(features: FeatureSet) -> str:
    return main_tap(features.meta["detector"]["name"])


def _moments(features: FeatureSet, path: Path) -> None:
    """pytorch-fid, EDM, clean-fid: `mu`, `sigma`; ADM's spatial moments too if they are there."""
    gaussian = features.gaussian(_tap(features))
    arrays = {"mu": gaussian.mu, "sigma": gaussian.sigma}
    if "spatial" in features.gaussians:
        spatial = features.gaussian("spatial")
        arrays |= {"mu_s": spatial.mu, "sigma_s": spatial.sigma}
    write_npz(path, arrays)


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
}
