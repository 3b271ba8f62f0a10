"""One evaluation: images -> features -> metrics against a reference -> one result file.

Everything is reused: finished batches of samples and features, and metrics that the result already
holds. The same command resumes after any interruption, on any number of ranks.
"""

from __future__ import annotations

import time

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector
from evaluation.detectors.registry import build_detector
from evaluation.disk import dir_lock, work_dir_of
from evaluation.features import extract
from evaluation.image_sets.image_set import ImageSet
from evaluation.metrics.statistics import FeatureSet
from evaluation.reference.reference import load_reference
from evaluation.request import Evaluation
from evaluation.results.result_file import Result, start_result, write_result
from evaluation.samples.generate import GeneratedImages
from evaluation.samples.sample_dir import SampleRequest, open_samples


def evaluate(request: Evaluation, world: World) -> Result:
    """Compute the metrics that the result file lacks, write it and return its content.

    Raises:
        ValueError: The images, the detector and the reference do not fit together.
    """
    detector = build_detector(request.detector, world.device)
    metrics = request.metrics.requests(detector)
    reference = load_reference(request.reference, detector, world)
    with dir_lock(work_dir_of(request.out), world):
        images = request.images
        if isinstance(images, SampleRequest):
            images = open_samples(images, world)
        result = start_result(
            request.out,
            world,
            title=request.title,
            images=images,
            reference=reference,
            detector=detector.identity,
            protocol=request.protocol,
        )
        missing = {name: m for name, m in metrics.items() if name not in result["metrics"]}
        if missing:
            taps = list(dict.fromkeys(metric.tap for metric in metrics.values()))
            features = _features(request, images, detector.with_taps(taps), world, result)
        for name, metric in missing.items():
            result["metrics"][name] = metric.compute(features, reference, world)
            if world.rank == 0:
                write_result(request.out, result)
        world.barrier()
    return result


def _features(
    request: Evaluation, images: ImageSet, detector: Detector, world: World, result: Result
) -> FeatureSet:
    """Extract features and record in the result what it took."""
    started = time.monotonic()
    work_dir = work_dir_of(request.out)
    features = extract(
        images, result["images"], detector, work_dir, world, batch_size=request.batch_size
    )
    seconds = time.monotonic() - started
    if isinstance(images, GeneratedImages):
        sampling = images.seconds
        result["nfe"] = images.nfe
        result["seconds"]["sampling"] = round((result["seconds"]["sampling"] or 0) + sampling, 3)
        seconds -= sampling
    result["seconds"]["features"] = round(result["seconds"]["features"] + seconds, 3)
    return features
