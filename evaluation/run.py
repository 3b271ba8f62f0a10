"""One evaluation: a model (or images) against a reference, by one detector, to one JSON file.

Everything is reused: finished batches of features, metrics that the result already holds. The same
command goes on after any interruption, on any number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from dist_train.distributed import World
from evaluation.detectors import Detector, DetectorConfig
from evaluation.features import extract, short_hash
from evaluation.generate import (
    GeneratedImages,
    SamplePlan,
    folder_lock,
    read_manifest,
    write_samples,
)
from evaluation.grid import write_bytes
from evaluation.images import ImageSet, open_images
from evaluation.metrics import DEFAULT_METRICS, MetricRequest, parse_request
from evaluation.reference import load_reference
from evaluation.statistics import FeatureSet
from models.snapshot import Snapshot

FORMAT = "relaywave-result-1"
LEAST_IMAGES = 2


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, against what, how.

    Attributes:
        out: The result file; working files lie beside it in `<name>.work`.
        reference: Statistics file, or images whose statistics are computed and cached.
        snapshots: The model, or a relay's stages in order; or
        images: a folder, zip, tar, packed set or sample batch of images.
        plan: Which samples are drawn from the snapshots.
        keep_images: Folder that generated samples are kept in, None to keep none.
        detector: The feature extractor.
        metrics: `kind` or `kind:tap`; empty takes the detector's defaults.
        batch_size: Images per forward pass of the detector (generated images come in their own).
        title: Name in tables.
    """

    out: Path
    reference: Path
    snapshots: tuple[Snapshot, ...] = ()
    images: Path | None = None
    plan: SamplePlan | None = None
    keep_images: Path | None = None
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    metrics: tuple[str, ...] = ()
    batch_size: int = 64
    title: str = ""


def evaluate(config: Evaluation, world: World) -> dict[str, Any]:
    """Compute the metrics that the result file lacks, write it and return its content.

    Raises:
        ValueError: The images, the detector and the reference do not fit together.
    """
    detector = config.detector.build(world.device)
    wanted = config.metrics or DEFAULT_METRICS[config.detector.name]
    requests = [parse_request(text, list(detector.widths)) for text in wanted]
    reference = load_reference(
        config.reference, detector, world, num_features=10_000, batch_size=config.batch_size
    )
    check_comparable(detector, reference)
    with folder_lock(work_folder(config.out), world):
        return _evaluate(config, detector, reference, requests, world)


def _evaluate(
    config: Evaluation,
    detector: Detector,
    reference: FeatureSet,
    requests: Sequence[MetricRequest],
    world: World,
) -> dict[str, Any]:
    images, batch_size = _open(config, world)
    if len(images) < LEAST_IMAGES:
        raise ValueError(f"{len(images)} image(s) are too few to evaluate; give at least 2")
    result: dict[str, Any] = world.broadcast_object(
        _start(config, images, detector, reference) if world.rank == 0 else None
    )
    names = {request.name(config.detector.name): request for request in requests}
    missing = {name: r for name, r in names.items() if name not in result["metrics"]}
    if missing:
        started = time.monotonic()
        features = extract(images, detector, work_folder(config.out), world, batch_size=batch_size)
        result["seconds"]["features"] += round(time.monotonic() - started, 3)
        for name, request in missing.items():
            result["metrics"][name] = request.compute(features, reference, world)
            if world.rank == 0:
                write_result(config.out, result)
    world.barrier()
    return result


def _open(config: Evaluation, world: World) -> tuple[ImageSet, int]:
    """Return the images to evaluate and the batch size to read them in."""
    if config.images is not None:
        return open_images(config.images), config.batch_size
    assert config.plan is not None, "snapshots need a plan"
    generated = GeneratedImages(config.snapshots, config.plan, world.device)
    if config.keep_images is None:
        return generated, config.plan.batch_size
    return write_samples(generated, config.keep_images, world), config.plan.batch_size


def _start(
    config: Evaluation, images: ImageSet, detector: Detector, reference: FeatureSet
) -> dict[str, Any]:
    """Return the result to fill: the one on disk if it is of the same inputs, else a new one."""
    source = dict(images.identity)
    manifest = read_manifest(config.images) if config.images and config.images.is_dir() else None
    identity = {
        "images": source["digest"],
        "reference": reference_digest(reference),
        "detector": detector.identity,
    }
    old = read_result(config.out) if config.out.exists() else None
    if old and old["identity"] == short_hash(identity):
        return old | {"title": config.title or old["title"]}
    return {
        "format": FORMAT,
        "title": config.title or _default_title(config),
        "identity": short_hash(identity),
        "images": source,
        "samples": manifest["identity"] if manifest else None,
        "reference": reference.meta | {"n": reference.n, "digest": identity["reference"]},
        "detector": detector.identity,
        "metrics": {},
        "seconds": {"generation": manifest["seconds"] if manifest else None, "features": 0.0},
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _default_title(config: Evaluation) -> str:
    path = config.images or config.snapshots[-1].path
    return path.name


def check_comparable(detector: Detector, reference: FeatureSet) -> None:
    """Refuse a reference that another detector, pipeline or weights file made.

    Raises:
        ValueError: They differ; says in what.
    """
    theirs = reference.meta["detector"]
    unlike = [k for k, v in detector.identity.items() if theirs.get(k) != v]
    if unlike:
        differences = "; ".join(
            f"{k} is {theirs.get(k)}, not {detector.identity[k]}" for k in unlike
        )
        raise ValueError(
            f"the reference {reference.meta.get('source', '')} was made differently: {differences}"
        )
    for tap, gaussian in reference.gaussians.items():
        width = detector.widths.get(tap)
        if width is not None and width != gaussian.dim:
            raise ValueError(
                f"the reference {reference.meta.get('source', '')} has {gaussian.dim} features at"
                f" tap {tap}, the detector gives {width}"
            )


def reference_digest(reference: FeatureSet) -> str:
    """Return a digest of the moments that distances are measured to."""
    digest = hashlib.sha256()
    for tap in sorted(reference.gaussians):
        gaussian = reference.gaussians[tap]
        for array in (gaussian.mu, gaussian.sigma):
            digest.update(np.ascontiguousarray(array, np.float64).tobytes())
    return digest.hexdigest()


def work_folder(out: Path) -> Path:
    """Return the folder of working files of a result."""
    return out.with_name(out.name + ".work")


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file. Raises ValueError if it is none."""
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a result: {error}") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of format {FORMAT}")
    return result


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result file atomically."""
    write_bytes(path, (json.dumps(result, indent=2, default=str) + "\n").encode())


def versions() -> dict[str, str]:
    """Return the versions of the software that values may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
