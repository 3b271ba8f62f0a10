"""Where an evaluation's reference comes from: a statistics file, or images (computed, cached)."""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector
from evaluation.disk import work_dir_of
from evaluation.features import extract, short_hash
from evaluation.image_sets.image_set import ImageSet, open_images
from evaluation.image_sets.npz import npz_names
from evaluation.metrics.statistics import FeatureSet
from evaluation.reference.importers import read_statistics
from evaluation.reference.statistics_file import read_reference, write_reference

NUM_FEATURES = 10_000
"""Features that a computed reference stores by default."""
NAMES = {"pipeline": "preprocessing"}
"""Names of a detector's settings in messages, where the key in files is another."""
STATISTICS_SUFFIXES = {".npz", ".npy", ".pkl", ".pt"}


@dataclass(frozen=True)
class ReferenceSettings:
    """What generated images are compared with.

    Attributes:
        statistics: Statistics file, ours or foreign, None for a reference that is computed.
        images: Images that the reference, or the features that a file lacks, are computed of.
        preprocessing: Preprocessing of a foreign file that does not record it.
        num_features: Features stored of a computed reference.
        batch_size: Images per forward pass.
    """

    statistics: Path | None = None
    images: ImageSet | None = None
    preprocessing: str = ""
    num_features: int = NUM_FEATURES
    batch_size: int = 64


def open_reference(path: Path) -> tuple[Path | None, ImageSet | None]:
    """Return the statistics file and the images that a path names: one, or an ADM batch's both.

    Raises:
        ValueError: It does not exist, or is neither.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a statistics file or a set of images")
    arrays = npz_names(path) if path.suffix == ".npz" else set()
    is_file = path.suffix in STATISTICS_SUFFIXES and arrays != {"arr_0"}
    holds_images = not is_file or "arr_0" in arrays
    return path if is_file else None, open_images(path) if holds_images else None


def load_reference(settings: ReferenceSettings, detector: Detector, world: World) -> FeatureSet:
    """Return the reference of an evaluation; statistics of images are computed once and cached.

    Raises:
        ValueError: The file is of no known kind, does not record how its images were resized, or
            was made by another detector.
    """
    statistics = load_statistics(settings, detector)
    if settings.images is None:
        assert statistics is not None, "a reference is a file, images, or both"
        return statistics
    computed = _cached_reference(settings.images, settings, detector, world)
    if statistics is None:
        return computed
    return dataclasses.replace(statistics, features=computed.features, selected=computed.selected)


def load_statistics(settings: ReferenceSettings, detector: Detector) -> FeatureSet | None:
    """Return the statistics in the reference's file, ours or foreign; None if it has none.

    Raises:
        ValueError: As `load_reference`.
    """
    if settings.statistics is None:
        return None
    made_by = {"name": detector.identity["name"], "pipeline": settings.preprocessing}
    statistics = read_statistics(settings.statistics, made_by)
    check_comparable(detector, statistics)
    return statistics


def check_comparable(detector: Detector, reference: FeatureSet) -> None:
    """Reject a reference made by another detector, preprocessing or weights file.

    What a foreign file does not record (its weights) cannot be checked.

    Raises:
        ValueError: They differ; the message says in what.
    """
    source, theirs = reference.meta.get("source", ""), reference.meta["detector"]
    different = [k for k, v in detector.identity.items() if theirs.get(k, v) != v]
    if different:
        differences = "; ".join(
            f"{NAMES.get(k, k)} is {theirs[k]}, not {detector.identity[k]}" for k in different
        )
        raise ValueError(f"the reference {source} was made differently: {differences}")
    for tap, gaussian in reference.gaussians.items():
        if detector.widths.get(tap, gaussian.dim) != gaussian.dim:
            raise ValueError(
                f"the reference {source} has {gaussian.dim} features at tap {tap}, the detector"
                f" {detector.identity['name']} gives {detector.widths[tap]}"
            )


def make_reference(
    images: ImageSet, settings: ReferenceSettings, detector: Detector, out: Path, world: World
) -> bool:
    """Compute the reference of a set of images and write it to `out`.

    Returns:
        False if the file existed, made from the same images by the same detector.

    Raises:
        ValueError: The file exists and holds something else.
    """
    exists, identity = world.broadcast_object(
        (same_reference(out, images, detector), images.identity) if world.rank == 0 else None
    )
    if not exists:
        _compute(images, identity, settings, detector, out, world)
    return not exists


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


def _cached_reference(
    images: ImageSet, settings: ReferenceSettings, detector: Detector, world: World
) -> FeatureSet:
    """Return the reference of a set of images, computed once per content and detector."""
    detector = detector.with_taps(detector.reference_taps)
    path, exists, identity = world.broadcast_object(
        _find_cached(images, settings, detector) if world.rank == 0 else None
    )
    if not exists:
        _compute(images, identity, settings, detector, path, world)
    return read_reference(path)


def _find_cached(
    images: ImageSet, settings: ReferenceSettings, detector: Detector
) -> tuple[Path, bool, dict[str, Any]]:
    """Return the file of a cached reference, whether it exists, and the images' identity."""
    made_of = [images.identity["digest"], detector.identity, list(detector.widths)]
    path = cache_dir() / f"{short_hash([*made_of, settings.num_features])}.npz"
    return path, path.exists(), images.identity


def cache_dir() -> Path:
    """Return the directory of cached references ($RELAYWAVE_CACHE, or ~/.cache/relaywave)."""
    root = os.environ.get("RELAYWAVE_CACHE") or Path.home() / ".cache" / "relaywave"
    return Path(root) / "references"


def _compute(
    images: ImageSet,
    identity: dict[str, Any],
    settings: ReferenceSettings,
    detector: Detector,
    out: Path,
    world: World,
) -> None:
    """Compute the statistics of images and write them to `out`."""
    work_dir = work_dir_of(out)
    features = extract(
        images, identity, detector, work_dir, world,
        batch_size=settings.batch_size, num_kept=settings.num_features, title="reference",
    )  # fmt: skip
    features = features.thinned(settings.num_features)
    if world.rank == 0:
        write_reference(out, features)
        shutil.rmtree(work_dir)
    world.barrier()
