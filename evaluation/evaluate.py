"""One evaluation: a model (or images) against a reference, by one detector, to one JSON file.

Everything is reused: finished batches of features, metrics that the result already holds. The same
command goes on after any interruption, on any number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector, DetectorConfig
from evaluation.detectors.registry import DETECTORS, DetectorKind, build_detector
from evaluation.features import extract
from evaluation.image_sets.image_set import ImageSet, open_images
from evaluation.metrics.registry import MetricRequest, parse_request
from evaluation.metrics.statistics import FeatureSet
from evaluation.protocols import Protocol
from evaluation.reference.reference import load_reference
from evaluation.results.result_file import Result, new_result, read_result, reused, write_result
from evaluation.samples.generate import GeneratedImages, SamplePlan
from evaluation.samples.sample_dir import folder_lock, read_samples_manifest, write_samples
from models.snapshot import Snapshot

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
        shard_images: Kept images per tar shard, None for single files.
        detector: The feature extractor.
        metrics: `kind` or `kind:tap`; empty takes the detector's defaults.
        protocol: The protocol that the other settings came from, if any.
        bootstrap: Resamples for confidence intervals, 0 for none.
        batch_size: Images per forward pass of the detector (generated images come in their own).
        reference_pipeline: Pipeline of a foreign reference file that does not tell.
        num_features: Features that are kept of a reference that is computed.
        title: Name in tables.
    """

    out: Path
    reference: Path
    snapshots: tuple[Snapshot, ...] = ()
    images: Path | None = None
    plan: SamplePlan | None = None
    keep_images: Path | None = None
    shard_images: int | None = None
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    metrics: tuple[str, ...] = ()
    protocol: Protocol | None = None
    bootstrap: int = 0
    batch_size: int = 64
    reference_pipeline: str = ""
    num_features: int = 10_000
    title: str = ""


def evaluate(config: Evaluation, world: World) -> Result:
    """Compute the metrics that the result file lacks, write it and return its content.

    Raises:
        ValueError: The images, the detector and the reference do not fit together.
    """
    whole = build_detector(config.detector, world.device)
    kind = DETECTORS[config.detector.name]
    requests = requests_of(config.metrics, kind, whole)
    taps = list(dict.fromkeys(request.tap for request in requests))
    reference = load_reference(
        config.reference,
        whole.with_taps(kind.reference_taps_of(whole)),
        world,
        num_features=config.num_features,
        batch_size=config.batch_size,
        pipeline=config.reference_pipeline,
    )
    check_comparable(whole, reference)
    with folder_lock(work_folder(config.out), world):
        return _evaluate(config, whole.with_taps(taps), reference, requests, world)


def requests_of(
    metrics: Sequence[str], kind: DetectorKind, detector: Detector
) -> list[MetricRequest]:
    """Return the metrics that are asked for, or usual of a kind of detector.

    Raises:
        ValueError: One is unknown, or of a tap that the detector lacks.
    """
    wanted = metrics or kind.metrics_of(detector)
    return [parse_request(text, list(detector.widths)) for text in wanted]


def enough(images: ImageSet) -> None:
    """Refuse fewer images than a distance needs. Raises ValueError."""
    if len(images) < LEAST_IMAGES:
        raise ValueError(f"{len(images)} image(s) are too few to evaluate; give at least 2")


def _evaluate(
    config: Evaluation,
    detector: Detector,
    reference: FeatureSet,
    requests: Sequence[MetricRequest],
    world: World,
) -> Result:
    images, batch_size = _open(config, world)
    enough(images)
    result: Result = world.broadcast_object(
        _start(config, images, detector, reference) if world.rank == 0 else None
    )
    names = {request.name(detector.identity["name"]): request for request in requests}
    missing = {name: r for name, r in names.items() if name not in result["metrics"]}
    if missing:
        features = _features(images, detector, batch_size, config, world, result)
        for name, request in missing.items():
            result["metrics"][name] = request.compute(features, reference, world, config.bootstrap)
            if world.rank == 0:
                write_result(config.out, result)
    world.barrier()
    return result


def _features(
    images: ImageSet,
    detector: Detector,
    batch_size: int,
    config: Evaluation,
    world: World,
    result: Result,
) -> FeatureSet:
    """Extract features and note in the result what it took."""
    started = time.monotonic()
    features = extract(images, detector, work_folder(config.out), world, batch_size=batch_size)
    seconds = time.monotonic() - started
    if isinstance(images, GeneratedImages):
        sampling = max(world.gather_objects(images.seconds))
        result["nfe"] = images.nfe
        result["seconds"]["sampling"] = round((result["seconds"]["sampling"] or 0) + sampling, 3)
        seconds -= sampling
    result["seconds"]["features"] = round(result["seconds"]["features"] + seconds, 3)
    return features


def _open(config: Evaluation, world: World) -> tuple[ImageSet, int]:
    """Return the images to evaluate and the batch size to read them in."""
    if config.images is not None:
        return open_images(config.images), config.batch_size
    assert config.plan is not None, "snapshots need a plan"
    generated = GeneratedImages(config.snapshots, config.plan, world.device)
    if config.keep_images is None:
        return generated, config.plan.batch_size
    kept = write_samples(generated, config.keep_images, world, shard_images=config.shard_images)
    return kept, config.plan.batch_size


def _start(
    config: Evaluation, images: ImageSet, detector: Detector, reference: FeatureSet
) -> Result:
    """Return the result to fill: what the file on disk has of the same inputs, or a new one."""
    folder = config.images or config.keep_images
    result = new_result(
        title=config.title or usual_title(config.images or config.snapshots[-1].path),
        images=images.identity,
        samples=read_samples_manifest(folder) if folder and folder.is_dir() else None,
        reference=reference,
        detector=detector.identity,
        protocol=_protocol_facts(config, images),
    )
    return reused(read_result(config.out), result) if config.out.exists() else result


def _protocol_facts(config: Evaluation, images: ImageSet) -> dict[str, Any] | None:
    """Return the protocol, its published values, and in what this evaluation departs from it."""
    protocol = config.protocol
    if protocol is None:
        return None
    return asdict(protocol) | {"deviations": deviations(config, protocol, len(images))}


def deviations(config: Evaluation, protocol: Protocol, num_images: int) -> list[str]:
    """Say in what an evaluation departs from its protocol."""
    facts: list[tuple[str, object, object]] = [
        ("number of images", num_images, protocol.num_samples),
        ("pipeline", config.detector.pipeline, protocol.pipeline),
    ]
    if config.plan is None:
        return [*_unlike(facts), "images were given: seeds, labels and retouch are not checked"]
    starts = [protocol.seeds(repeat)[0] for repeat in range(protocol.repeats)]
    first = config.plan.seeds[0]
    facts.append(("first seed", first, first if first in starts else starts[0]))
    if protocol.per_class:
        facts.append(("labels", config.plan.labels, "balanced"))
    post, expected = asdict(config.plan.post), asdict(protocol.post)
    facts += [(name, value, expected[name]) for name, value in post.items()]
    return _unlike(facts)


def _unlike(facts: Sequence[tuple[str, object, object]]) -> list[str]:
    return [f"{what} is {ours}, not {theirs}" for what, ours, theirs in facts if ours != theirs]


def check_comparable(detector: Detector, reference: FeatureSet) -> None:
    """Refuse a reference that another detector, pipeline or weights file made.

    What a foreign file does not tell (its weights) cannot be checked.

    Raises:
        ValueError: They differ; says in what.
    """
    source, theirs = reference.meta.get("source", ""), reference.meta["detector"]
    unlike = [k for k, v in detector.identity.items() if theirs.get(k, v) != v]
    if unlike:
        differences = "; ".join(f"{k} is {theirs[k]}, not {detector.identity[k]}" for k in unlike)
        raise ValueError(f"the reference {source} was made differently: {differences}")
    for tap, gaussian in reference.gaussians.items():
        if detector.widths.get(tap, gaussian.dim) != gaussian.dim:
            raise ValueError(
                f"the reference {source} has {gaussian.dim} features at tap {tap}, the detector"
                f" {detector.identity['name']} gives {detector.widths[tap]}"
            )


def usual_title(path: Path) -> str:
    """Return `RUN/images seen` for a run's snapshot, else the name of the file or folder."""
    path = path.resolve()
    if path.parent.name != "snapshots":
        return path.name
    return f"{path.parent.parent.name}/{path.name.lstrip('0') or '0'}"


def work_folder(out: Path) -> Path:
    """Return the folder of working files of a result."""
    return out.with_name(out.name + ".work")
