"""Reference statistics in our own format.

One uncompressed `.npz` without pickles: `mu`, `sigma` and `n` of the main tap (so that every tool
that reads those keys still can), `mu_<tap>`, `sigma_<tap>` of the others, `features_<tap>` of the
selected images, and a JSON string `meta` with the identity of images and detector.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.image_sets.npz import AnyArray, read_npz, write_npz
from evaluation.metrics.statistics import FeatureSet, Gaussian

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
    try:
        meta: dict[str, Any] = json.loads(str(arrays.pop("meta")))
        n, main = int(arrays["n"]), meta["main_tap"]
        if meta["format"] != FORMAT:
            raise ValueError(f"{path} has format {meta['format']}, this relaywave reads {FORMAT}")
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not of the format {FORMAT}: {error}") from None
    gaussians = {}
    for key in arrays:
        if key == "mu" or key.startswith("mu_"):
            tap = key[3:] or main
            gaussians[tap] = Gaussian(arrays[key], arrays["sigma" + key[2:]], n)
            gaussians[tap].check(f"{path} ({tap})")
    prefix = "features_"
    features = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    selected = arrays["selected"].tolist()
    source = meta | {"source": str(path)}
    return FeatureSet(source, n, gaussians, features, selected, arrays.get("labels"))
