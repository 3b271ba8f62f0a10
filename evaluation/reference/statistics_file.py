"""Reference statistics in our own format.

One uncompressed `.npz` without pickles: `mu`, `sigma` and `n` of the main tap (so that every tool
that reads those keys still can), `mu_<tap>`, `sigma_<tap>` of the others, `features_<tap>` of the
selected images, and a JSON string `meta` with the identity of images and detector.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from evaluation.image_sets.npz import AnyArray, read_npz, write_npz
from evaluation.metrics.statistics import FeatureSet, Gaussian
from models.safe_files.documents import parse_object
from models.safe_files.typed_json import ConfigError, from_json

FORMAT = "relaywave-statistics-1"


def write_reference(path: Path, features: FeatureSet) -> None:
    """Write a set's moments, and the features that it holds."""
    main = next(iter(features.gaussians))
    meta = features.meta | {"format": FORMAT, "main_tap": main, "covariance": "unbiased"}
    arrays: dict[str, AnyArray] = {"n": np.array(features.n)}
    for tap, gaussian in features.gaussians.items():
        suffix = "" if tap == main else f"_{tap}"
        arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"] = gaussian.mu, gaussian.sigma
    for tap, values in features.features.items():
        arrays[f"features_{tap}"] = np.asarray(values, np.float32)
    if features.labels is not None:
        arrays["labels"] = np.asarray(features.labels, np.int64)
    arrays["selected"] = np.array(features.selected, np.int64)
    arrays["meta"] = np.array(json.dumps(meta))
    write_npz(path, arrays)


def read_reference(path: Path) -> FeatureSet:
    """Read and check a file of our own format.

    Raises:
        ValueError: The file is damaged, of another format, or its moments are no moments.
    """
    arrays = read_npz(path)
    meta, n = _read_meta(path, arrays), arrays.get("n", np.array(-1))
    if n.shape or n.dtype.kind not in "iu" or n < 0:
        raise ValueError(f"{path} does not say how many images it is of")
    gaussians = {}
    for key in arrays:
        if key == "mu" or key.startswith("mu_"):
            tap = key[3:] or meta["main_tap"]
            gaussians[tap] = _gaussian(path, arrays, key[2:], int(n))
    prefix = "features_"
    features = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    selected = _check_features(path, arrays, features, int(n))
    source = meta | {"source": str(path)}
    return FeatureSet(source, int(n), gaussians, features, selected, arrays.get("labels"))


@dataclass(frozen=True)
class _Images:
    """What is used of the identity of the images."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    path: str = ""
    digest: str = ""


@dataclass(frozen=True)
class _Meta:
    """What is used of `meta`; all else is kept as it is. A detector's identity is all texts."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    format: str
    main_tap: str
    detector: dict[str, Any]
    images: _Images = field(default_factory=_Images)

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"it has format {self.format[:80]}, this relaywave reads {FORMAT}")
        if not {"name", "pipeline"} <= self.detector.keys():
            raise ValueError("detector has no name or no pipeline")


def _read_meta(path: Path, arrays: dict[str, AnyArray]) -> dict[str, Any]:
    if "meta" not in arrays:
        raise ValueError(f"{path} is not of the format {FORMAT}: it has no meta")
    meta = parse_object(str(arrays.pop("meta")).encode(errors="replace"), f"{path} (meta)")
    try:
        from_json(_Meta, meta, "meta")
    except ConfigError as error:
        raise ValueError(f"{path} is not of the format {FORMAT}: {error}") from None
    return meta


def _gaussian(path: Path, arrays: dict[str, AnyArray], suffix: str, n: int) -> Gaussian:
    sigma = arrays.get(f"sigma{suffix}")
    if sigma is None:
        raise ValueError(f"{path} has mu{suffix}, but no sigma{suffix}")
    mu = arrays[f"mu{suffix}"]
    if not mu.dtype.kind == sigma.dtype.kind == "f":
        raise ValueError(f"{path}: mu{suffix} or sigma{suffix} holds no numbers")
    gaussian = Gaussian(mu, sigma, n)
    gaussian.check(f"{path} (mu{suffix})")
    return gaussian


def _check_features(
    path: Path, arrays: dict[str, AnyArray], features: dict[str, AnyArray], n: int
) -> list[int]:
    """Check features and classes; return the indices of the images that they are of."""
    selected = arrays.get("selected", np.empty(0, np.int64))
    ascending = selected.ndim == 1 and selected.dtype.kind in "iu"
    if not ascending or (np.diff(selected, prepend=-1, append=n) <= 0).any():
        raise ValueError(f"{path}: selected does not list images in order")
    for tap, rows in features.items():
        if rows.dtype.kind != "f" or rows.ndim != 2 or len(rows) != len(selected):
            raise ValueError(
                f"{path}: features_{tap} is {rows.dtype} {list(rows.shape)}, expected float"
                f" [{len(selected)}, D]"
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"{path}: features_{tap} holds NaN or infinite values")
    labels = arrays.get("labels")
    if labels is not None and (labels.shape != selected.shape or labels.dtype.kind not in "iu"):
        raise ValueError(f"{path}: labels are {labels.dtype} {list(labels.shape)}")
    result: list[int] = selected.tolist()
    return result
