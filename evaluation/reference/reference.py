"""Where an evaluation's reference comes from: a statistics file, or images (kept features)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector
from evaluation.digest import short_hash
from evaluation.disk import file_lock, lock_path
from evaluation.features.extract import extract
from evaluation.image_sets.image_set import ImageSet, open_images
from evaluation.image_sets.npz import npz_names
from evaluation.metrics.statistics import SELECTED_BY, STORED, FeatureSet, selection_of
from evaluation.reference.importers import read_statistics
from evaluation.reference.statistics_file import read_reference, write_reference
from models.safe_files.nearest import check_there

NUM_FEATURES = 10_000
"""Features that a computed reference stores by default."""
NAMES = {"pipeline": "preprocessing"}
"""Names of a detector's settings in messages, where the key in files is another."""
STATISTICS_OR_IMAGES = "a statistics file or a set of images"
STATISTICS_SUFFIXES = {".npz", ".npy", ".pkl", ".pt"}


@dataclass(frozen=True)
class ReferenceSettings:
    """What generated images are compared with.

    Attributes:
        statistics: Statistics file, ours or foreign, None for a reference that is computed.
        features: Statistics file whose features are taken, where `statistics` gives the moments.
        images: Images that the reference, or the features that a file lacks, are computed of.
        preprocessing: Preprocessing of a foreign file that does not record it.
        num_features: Features stored of a computed reference.
        batch_size: Images per forward pass.
    """

    statistics: Path | None = None
    features: Path | None = None
    images: ImageSet | None = None
    preprocessing: str = ""
    num_features: int = NUM_FEATURES
    batch_size: int = 64


def open_reference(path: Path) -> tuple[Path | None, ImageSet | None]:
    """Return the statistics file and the images that a path names: one, or an ADM batch's both.

    Raises:
        ValueError: It does not exist, or is neither.
    """
    check_there(path, STATISTICS_OR_IMAGES)
    arrays = npz_names(path) if path.suffix == ".npz" else set()
    is_file = path.suffix in STATISTICS_SUFFIXES and arrays != {"arr_0"}
    holds_images = not is_file or "arr_0" in arrays
    return path if is_file else None, open_images(path) if holds_images else None


def load_reference(
    settings: ReferenceSettings, detector: Detector, taps: Collection[str], world: World
) -> FeatureSet:
    """Return the reference of an evaluation; features of images are computed once and kept.

    Args:
        settings: Where it comes from.
        detector: The detector.
        taps: Those of which statistics or features are needed.
        world: The ranks.

    Raises:
        ValueError: The file is of no known kind, does not record how its images were resized, or
            was made by another detector.
    """
    statistics = load_statistics(settings, detector)
    if settings.images is None:
        assert statistics is not None, "a reference is a file, images, or both"
        return statistics
    used = [tap for tap in detector.widths if tap in taps] or [*detector.widths][:1]
    computed = _extract(settings.images, settings, detector.with_taps(used), world)
    return _joined(settings, statistics, computed)


def describe_reference(settings: ReferenceSettings, detector: Detector) -> FeatureSet:
    """Return a reference as `load_reference` does, but without the features of its images.

    That is enough to tell it from others; the images are read, not decoded.
    """
    statistics = load_statistics(settings, detector)
    if settings.images is None:
        assert statistics is not None, "a reference is a file, images, or both"
        return statistics
    meta: dict[str, Any] = {
        "images": settings.images.identity,
        "detector": dict(detector.identity),
        **selection_of(len(settings.images), settings.num_features),
    }
    return _joined(settings, statistics, FeatureSet(meta, len(settings.images)))


def _joined(
    settings: ReferenceSettings, statistics: FeatureSet | None, computed: FeatureSet
) -> FeatureSet:
    """Return the reference that a file's statistics, if any, and images' features make."""
    if statistics is None:
        return computed
    if computed.meta["images"]["path"] == str(settings.statistics):  # one file holds both
        return _with_rows(statistics, computed)
    return _with_features(statistics, computed, computed.meta["images"]["digest"])


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
    if settings.features is None:
        return _with_count(statistics) if settings.images is None else statistics
    others = read_statistics(settings.features, made_by)
    check_comparable(detector, others)
    if not others.features:
        raise ValueError(f"{settings.features} holds no features, only moments; name another file")
    digest = hashlib.sha256()
    for tap in sorted(others.features):
        digest.update(tap.encode() + np.ascontiguousarray(others.features[tap], np.float32).data)
    return _with_features(statistics, others, digest.hexdigest())


def _with_count(statistics: FeatureSet) -> FeatureSet:
    """Return the statistics of a file, recording how many features it stores if not as by default.

    Files of the same images are told apart by that: what is known of them is the images.
    """
    stored = statistics.num_rows
    if "images" not in statistics.meta or stored in (0, min(statistics.n, NUM_FEATURES)):
        return statistics
    return dataclasses.replace(statistics, meta=statistics.meta | {STORED: stored})


def _with_features(moments: FeatureSet, others: FeatureSet, digest: str) -> FeatureSet:
    """Return moments with the features, and classes, of another set; both are recorded."""
    joined = _with_rows(dataclasses.replace(moments, labels=others.labels), others)
    source = {"of": others.meta["images"], "digest": digest}
    return dataclasses.replace(joined, meta=joined.meta | {"features_from": source})


def _with_rows(moments: FeatureSet, others: FeatureSet) -> FeatureSet:
    """Return moments with the features of another set, and how those were selected."""
    meta = {name: value for name, value in moments.meta.items() if name != SELECTED_BY}
    if SELECTED_BY in others.meta:
        meta[SELECTED_BY] = others.meta[SELECTED_BY]
    return dataclasses.replace(
        moments, features=others.features, selected=others.selected, meta=meta
    )


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
    with file_lock(lock_path(out), world):
        if _agreed(out, images, settings, detector, world):
            return False
        features = _extract(images, settings, detector, world)
        if world.rank == 0:
            flipped = {"flipped": bool(images.identity.get("flipped", False))}
            write_reference(out, dataclasses.replace(features, meta=features.meta | flipped))
        world.barrier()
    return True


def _agreed(
    out: Path, images: ImageSet, settings: ReferenceSettings, detector: Detector, world: World
) -> bool:
    """Return on all ranks what rank 0 says of `same_reference`, also its error."""
    same, problem = False, None
    if world.rank == 0:
        try:
            same = same_reference(out, images, settings, detector)
        except ValueError as error:
            problem = str(error)
    same, problem = world.broadcast_object((same, problem))
    if problem:
        raise ValueError(problem)
    return bool(same)


def same_reference(
    path: Path, images: ImageSet, settings: ReferenceSettings, detector: Detector
) -> bool:
    """Tell whether `path` is this reference; raise ValueError if it is another."""
    if not path.exists():
        return False
    found = read_reference(path)
    made_by, made_of = found.meta["detector"], found.meta.get("images", {})
    stored = min(settings.num_features, len(images))
    facts: list[tuple[str, Any, Any]] = [
        ("made by", dict(made_by), detector.identity),
        ("made from other images", made_of.get("path"), str(images.identity["path"])),
        ("of the taps", [*found.gaussians], [*detector.widths]),
        ("made with the features of", len(found.selected), stored),
    ]
    if made_of.get("digest") == images.identity["digest"]:
        facts.pop(1)  # wherever they are
    if found.labels is not None:
        classes = images.labels(found.selected)
        facts.append(
            ("made with the classes", short_hash(found.labels.tolist()),
             None if classes is None else short_hash(classes.tolist()))
        )  # fmt: skip
    for what, theirs, ours in facts:
        if theirs != ours or what == "made from other images":
            raise ValueError(
                f"{path} exists and was {what} ({theirs}, not {ours}); delete it or choose another"
                " name (features that are stored are not computed again)"
            )
    return True


def _extract(
    images: ImageSet, settings: ReferenceSettings, detector: Detector, world: World
) -> FeatureSet:
    """Return statistics and features of a set of images, from the cache or computed into it."""
    identity = world.broadcast_object(images.identity if world.rank == 0 else None)
    (features,) = extract(
        images, identity, [detector], feature_cache(), world,
        batch_size=settings.batch_size, num_kept=settings.num_features, title="reference",
    )  # fmt: skip
    return features.thinned(settings.num_features)


def feature_cache() -> Path:
    """Return where features of image sets are kept ($RELAYWAVE_CACHE, or ~/.cache/relaywave)."""
    root = os.environ.get("RELAYWAVE_CACHE") or Path.home() / ".cache" / "relaywave"
    return Path(root) / "features"
