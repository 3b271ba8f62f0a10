"""Evaluations: samples -> features -> statistics -> results.

Everything is reused: finished batches of samples, features of a set by detector and tap, and
metrics that a result already holds. The same command resumes after any interruption, on any number
of ranks.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector, DetectorConfig
from evaluation.detectors.passes import least_sizes
from evaluation.detectors.registry import build_detector
from evaluation.digest import short_hash
from evaluation.disk import file_lock, lock_path
from evaluation.features.extract import extract
from evaluation.features.store import features_dir
from evaluation.image_sets.image_set import ImageSet
from evaluation.metrics.registry import METRICS, MetricRequest
from evaluation.metrics.statistics import FeatureSet
from evaluation.protocols import record_protocol
from evaluation.reference.reference import describe_reference, load_reference
from evaluation.request import Evaluation
from evaluation.results.repeats import best_of, write_best
from evaluation.results.result_file import (
    Result,
    new_result,
    read_result,
    resumed,
    start_result,
    write_result,
)
from evaluation.samples.generate import GeneratedImages
from evaluation.samples.sample_dir import SampleRequest, open_samples


@dataclass(frozen=True)
class Prepared:
    """An evaluation before its images are drawn: all that can be rejected has been checked.

    Attributes:
        request: The request.
        detector: Its detector.
        metrics: Its metrics, by their names in results.
        reference: What the images are compared with.
    """

    request: Evaluation
    detector: Detector
    metrics: dict[str, MetricRequest]
    reference: FeatureSet


def evaluate(requests: Sequence[Evaluation], world: World) -> list[Result]:
    """Compute the metrics that the result files lack, write and return them.

    Requests of the same images share one pass over them, whatever detectors they name.

    Raises:
        ValueError: The images, a detector and a reference do not fit together, or a result file
            holds the result of another request.
    """
    done: list[Evaluation] = []
    results: list[Result] = []
    detectors: dict[DetectorConfig, Detector] = {}
    for config in dict.fromkeys(request.detector for request in requests):
        build = functools.partial(build_detector, config, world.device)
        detectors[config] = world.attempt(build)
    for group in _of_same_images(requests):
        prepared = [prepare(request, detectors[request.detector], world) for request in group]
        with ExitStack() as locks:
            for out in sorted(request.out for request in group):  # in one order: no deadlock
                locks.enter_context(file_lock(lock_path(out), world))
            images = group[0].images
            if isinstance(images, SampleRequest):
                images = open_samples(images, world)
            results += _evaluate_images(prepared, images, world)
            done += group
    _write_best(done, results, detectors, world)
    return results


def prepare(request: Evaluation, detector: Detector, world: World) -> Prepared:
    """Load what does not need the images, and check that it fits together."""
    metrics = request.metrics.requests(detector)
    taps = {metric.tap for metric in metrics.values() if metric.takes_reference}
    reference = load_reference(request.reference, detector, taps, world)
    for metric in metrics.values():
        metric.check_reference(reference)
    return Prepared(request, detector, metrics, reference)


def _of_same_images(requests: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Return the requests in groups of the same images, in order."""
    groups: list[list[Evaluation]] = []
    for request in requests:
        for group in groups:
            if group[0].images == request.images:
                group.append(request)
                break
        else:
            groups.append([request])
    return groups


def _evaluate_images(
    evaluations: Sequence[Prepared], images: ImageSet, world: World
) -> list[Result]:
    """Evaluate one set of images in one pass."""
    identity = world.broadcast_object(images.identity if world.rank == 0 else None)
    results = [_start(evaluation, identity, images, world) for evaluation in evaluations]
    classes = world.broadcast_object([_classes(e, images) for e in evaluations])
    unfinished = [
        (evaluation, result, missing, known)
        for evaluation, result, known in zip(evaluations, results, classes, strict=True)
        if (missing := _missing(evaluation, result, known))
    ]
    if unfinished:
        wanted = _restricted([(evaluation, names) for evaluation, _, names, _ in unfinished])
        sets, seconds = _features(evaluations[0].request, images, identity, wanted, world)
        for (evaluation, result, names, known), features in zip(unfinished, sets, strict=True):
            _note_times(result, seconds)
            _compute(evaluation, result, names, features, known, world)
    world.barrier()
    return results


def _classes(evaluation: Prepared, images: ImageSet) -> str:
    """Return a digest of the classes of images and reference, "" if no metric takes them.

    They are known beside the images, whose digest does not tell.
    """
    if not any(METRICS[metric.kind].classes for metric in evaluation.metrics.values()):
        return ""
    both = (images.labels(range(len(images))), evaluation.reference.labels)
    return short_hash([None if labels is None else labels.tolist() for labels in both])


def _missing(evaluation: Prepared, result: Result, classes: str) -> list[str]:
    """Return the metrics that a result lacks, or has of other classes."""
    found = result["metrics"]
    return [
        name
        for name, metric in evaluation.metrics.items()
        if name not in found
        or (METRICS[metric.kind].classes and found[name].get("classes", classes) != classes)
    ]


def _write_best(
    requests: Sequence[Evaluation],
    results: Sequence[Result],
    detectors: Mapping[DetectorConfig, Detector],
    world: World,
) -> None:
    """Write the results over all ranges of seeds, of those that were evaluated by ranges."""
    ranges: dict[Path, list[tuple[Evaluation, Result]]] = {}
    for request, result in zip(requests, results, strict=True):
        if request.best_out is not None:
            ranges.setdefault(request.best_out, []).append((request, result))
    for out, pairs in ranges.items():
        request = pairs[0][0]
        metrics = request.metrics.requests(detectors[request.detector])
        highest = {name for name, metric in metrics.items() if METRICS[metric.kind].highest}
        best = best_of([result for _, result in pairs], len(pairs), highest)
        write_best(out, best, world, replace=request.replace)


def check_result(request: Evaluation, detector: Detector) -> None:
    """Raise ValueError if the result file holds the result of another request, as the run would.

    It is taken to run on devices of the kind that the file was made on: a dry run may be made on
    another machine. The images are read only if the file is there.
    """
    images = request.images
    is_open = not isinstance(images, SampleRequest) or bool(images.snapshots)
    files = [out for out in (request.out, request.best_out) if out is not None and out.exists()]
    if request.replace or not is_open or not files:
        return
    old = read_result(files[0])
    if isinstance(images, SampleRequest):
        device = _device(old["images"].get("device"))
        images = GeneratedImages(images.snapshots, images.spec, device)
    device = _device(old.get("made_of", {}).get("device of the detector"))
    new = _new_result(
        request,
        dataclasses.replace(detector, device=device),
        describe_reference(request.reference, detector),
        images.identity,
        images,
    )
    for out, expected in _files(request, new):
        if out.exists():
            resumed(out, read_result(out), expected)


def _files(request: Evaluation, result: Result) -> list[tuple[Path, Result]]:
    """Return the files that a request writes, each with a result of what identifies it.

    Of several ranges of seeds, the first one identifies the result over all of them.
    """
    files, seed_range = [(request.out, result)], request.seed_range
    if request.best_out is not None and seed_range is not None and seed_range.number == 0:
        files.append((request.best_out, best_of([result], seed_range.count)))
    return files


def _device(recorded: Any) -> torch.device:
    """Return the kind of device that a file records; the CPU where it records none."""
    return torch.device("cuda" if recorded == "cuda" else "cpu")


def _start(
    evaluation: Prepared, identity: Mapping[str, Any], images: ImageSet, world: World
) -> Result:
    request, detector = evaluation.request, evaluation.detector
    result = _new_result(request, detector, evaluation.reference, identity, images)
    if request.protocol is not None:
        metrics = evaluation.metrics.values()
        result["protocol"] = record_protocol(request.protocol, result, metrics)
    for out, expected in _files(request, result)[1:]:  # before anything is drawn
        start_result(out, expected, world, replace=request.replace)
    return start_result(request.out, result, world, replace=request.replace)


def _new_result(
    request: Evaluation,
    detector: Detector,
    reference: FeatureSet,
    identity: Mapping[str, Any],
    images: ImageSet,
) -> Result:
    return new_result(
        title=request.title,
        images=identity,
        samples=images.manifest,
        resolution=resolution_of(images),
        reference=reference,
        detector=detector,
        settings=request.settings,
        protocol=request.protocol.name if request.protocol else None,
    )


def resolution_of(images: ImageSet) -> int:
    """Return the edge of images in pixels, without drawing any."""
    if isinstance(images, GeneratedImages):
        return images.resolution
    return images.batch([0]).shape[-1]


def _restricted(wanted: Sequence[tuple[Prepared, Sequence[str]]]) -> list[Detector]:
    """Return each evaluation's detector with the taps that it, or another with it, lacks."""
    taps: dict[DetectorConfig, dict[str, None]] = {}
    for evaluation, names in wanted:
        lacking = (evaluation.metrics[name].tap for name in names)
        taps.setdefault(evaluation.request.detector, {}).update(dict.fromkeys(lacking))
    return [e.detector.with_taps([*taps[e.request.detector]]) for e, _ in wanted]


def _features(
    request: Evaluation,
    images: ImageSet,
    identity: dict[str, Any],
    detectors: Sequence[Detector],
    world: World,
) -> tuple[list[FeatureSet], dict[str, Any]]:
    """Return the features of the images by each detector, and what it took."""
    started = time.monotonic()
    store, size = features_dir(request.out.parent), request.batch_size
    sets = extract(images, identity, detectors, store, world, batch_size=size)
    taken: dict[str, Any] = {"features": time.monotonic() - started}
    passes = {"detector": [detector.passes for detector in detectors]}
    if isinstance(images, GeneratedImages):
        taken |= {"nfe": images.nfe, "sampling": images.seconds}
        taken["features"] -= images.seconds
        passes["sampling"] = [images.passes]
    return sets, taken | {"at_once": least_sizes(passes, world)}


def _note_times(result: Result, taken: Mapping[str, Any]) -> None:
    seconds = result["seconds"]
    if "nfe" in taken:
        result["nfe"] = taken["nfe"]
        seconds["sampling"] = round((seconds["sampling"] or 0) + taken["sampling"], 3)
    seconds["features"] = round(seconds["features"] + taken["features"], 3)
    if taken["at_once"]:
        result["images_at_once"] = taken["at_once"]


def _compute(
    evaluation: Prepared,
    result: Result,
    names: Sequence[str],
    features: FeatureSet,
    classes: str,
    world: World,
) -> None:
    """Compute metrics; each is on disk as soon as it is known."""
    for name in names:
        metric = evaluation.metrics[name]
        computed = metric.compute(features, evaluation.reference, world)
        made_of = {"classes": classes} if METRICS[metric.kind].classes else {}
        result["metrics"][name] = computed | made_of
        if world.rank == 0:
            write_result(evaluation.request.out, result)
