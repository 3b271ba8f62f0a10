"""Reference statistics in our own format, and where to get them from.

One uncompressed `.npz` without pickles: `mu`, `sigma` and `n` of the main tap (so that every tool
that reads those keys still can), `mu_<tap>`, `sigma_<tap>` of the others, `features_<tap>` of the
selected images, and a JSON string `meta` with the identity of images and detector.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector
from evaluation.features import evenly_spread, extract, short_hash
from evaluation.image_sets.image_set import ImageSet, open_images
from evaluation.image_sets.npz import AnyArray, npz_names, read_npz, write_npz
from evaluation.metrics.statistics import FeatureSet, Gaussian
from evaluation.reference.importers import pipeline_of_name, read_statistics

FORMAT = "relaywave-statistics-1"
STATISTICS_SUFFIXES = {".npz", ".npy", ".pkl", ".pt"}


def write_reference(path: Path, features: FeatureSet, num_features: int) -> None:
    """Write a set's moments, and the features of up to `num_features` images, evenly spread."""
    main = next(iter(features.gaussians))
    keep = evenly_spread(len(features.selected), num_features)
    meta = features.meta | {"format": FORMAT, "main_tap": main, "covariance": "unbiased"}
    arrays: dict[str, AnyArray] = {"n": np.array(features.n)}
    for tap, gaussian in features.gaussians.items():
        suffix = "" if tap == main else f"_{tap}"
        arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"] = gaussian.mu, gaussian.sigma
    for tap, values in features.features.items():
        arrays[f"features_{tap}"] = np.asarray(values[keep], np.float32)
    if features.labels is not None:
        arrays["labels"] = np.asarray(features.labels, np.int64)[keep]
    arrays["selected"] = np.array([features.selected[i] for i in keep], np.int64)
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


def make_reference(
    images: ImageSet,
    detector: Detector,
    path: Path,
    world: World,
    *,
    num_features: int = 10_000,
    batch_size: int = 64,
) -> bool:
    """Compute the reference of a set of images and write it to `path`.

    Returns:
        False if the file was there already, made from the same images by the same detector.

    Raises:
        ValueError: The file is there and holds something else.
    """
    if world.broadcast_object(same_reference(path, images, detector) if world.rank == 0 else None):
        return False
    work = path.with_name(path.name + ".work")
    features = extract(
        images, detector, work, world,
        batch_size=batch_size, num_kept=num_features, title="reference",
    )  # fmt: skip
    if world.rank == 0:
        write_reference(path, features, num_features)
        remove_work(work)
    world.barrier()
    return True


def remove_work(work: Path) -> None:
    """Delete a working folder of features."""
    for folder in work.glob("*"):
        for file in folder.glob("*"):
            file.unlink()
        folder.rmdir()
    work.rmdir()


def cached_reference(
    images: ImageSet, detector: Detector, world: World, *, num_features: int, batch_size: int
) -> FeatureSet:
    """Return the reference of a set of images, computed once per content and detector."""
    digest = world.broadcast_object(images.identity["digest"] if world.rank == 0 else None)
    name = short_hash([digest, detector.identity, list(detector.widths), num_features])
    path = cache_folder() / f"{name}.npz"
    make_reference(images, detector, path, world, num_features=num_features, batch_size=batch_size)
    return read_reference(path)


def cache_folder() -> Path:
    """Return the folder of cached references ($RELAYWAVE_CACHE, or ~/.cache/relaywave)."""
    root = os.environ.get("RELAYWAVE_CACHE") or Path.home() / ".cache" / "relaywave"
    return Path(root) / "references"


def load_reference(
    path: Path,
    detector: Detector,
    world: World,
    *,
    num_features: int = 10_000,
    batch_size: int = 64,
    pipeline: str = "",
) -> FeatureSet:
    """Return the reference that `path` names: a statistics file, or images (computed, cached).

    Args:
        path: Our own or a foreign statistics file, or any set of images.
        detector: The detector that features are compared by.
        world: The ranks.
        num_features: Features to keep of a reference that is computed.
        batch_size: Images per forward pass.
        pipeline: Pipeline that a foreign file was made by, if its name does not tell.

    Raises:
        ValueError: The file is of no known kind, or nobody says by which pipeline it was made.
    """
    reference = read_statistics_file(path, detector, pipeline)
    if reference is not None and "arr_0" not in _names(path):
        return reference
    images = cached_reference(
        open_images(path), detector, world, num_features=num_features, batch_size=batch_size
    )
    if reference is None:
        return images
    return dataclasses.replace(reference, features=images.features, selected=images.selected)


def read_statistics_file(path: Path, detector: Detector, pipeline: str = "") -> FeatureSet | None:
    """Return the statistics in a file, ours or foreign; None if `path` names images alone.

    Raises:
        ValueError: As `load_reference`, whose arguments these are.
    """
    names = _names(path)
    if "meta" in names:
        return read_reference(path)
    if path.suffix not in STATISTICS_SUFFIXES or names == {"arr_0"}:
        return None
    pipeline = pipeline or pipeline_of_name(path)
    made_by = {"name": detector.identity["name"], "pipeline": pipeline}
    reference = read_statistics(path, made_by)
    if not pipeline:
        raise ValueError(
            f"{path} does not say how its images were resized; add --reference-pipeline"
            f" (e.g. {detector.identity['pipeline']}) if you know"
        )
    return reference


def _names(path: Path) -> set[str]:
    return npz_names(path) if path.suffix == ".npz" else set()


def same_reference(path: Path, images: ImageSet, detector: Detector) -> bool:
    """Tell whether `path` is the reference of these images; raise ValueError if it is another."""
    if not path.exists():
        return False
    meta = read_reference(path).meta
    if meta["detector"] != detector.identity:
        raise ValueError(
            f"{path} exists and was made by {meta['detector']}; delete it or choose another name"
        )
    if meta["images"]["digest"] != images.identity["digest"]:
        raise ValueError(
            f"{path} exists and was made from other images ({meta['images']['path']});"
            " delete it or choose another name"
        )
    return True
