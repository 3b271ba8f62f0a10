"""Dry run: validate a command line so that launchers can reject it before queueing.

The request is built and checked by the functions that the command itself uses. Detectors are loaded
on the CPU and samples are not drawn. Images are read only where a result is already there: whether
it is of the same request.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from evaluation.agreement import R, recorded_batch_size
from evaluation.arguments import parse
from evaluation.detectors.passes import AUTO
from evaluation.detectors.registry import build_detector
from evaluation.evaluate import check_result
from evaluation.metrics.registry import METRICS
from evaluation.reference.reference import load_statistics, same_reference
from evaluation.request import (
    Evaluation,
    evaluations_of,
    new_reference_of,
    samples_of,
    spec_of,
    timing_of,
)
from evaluation.samples.sample_dir import SampleRequest, check_samples
from evaluation.sweep import sweep_points


def dry_run(arguments: Sequence[str], *, inputs: bool = True) -> argparse.Namespace:
    """Validate a command line that draws or evaluates images; returns the parsed arguments.

    Args:
        arguments: The command line.
        inputs: Whether the snapshots and images that it reads must exist already.

    Raises:
        ValueError: The command would reject it.
        SystemExit: It does not parse; a usage message was printed.
    """
    args = parse(arguments)
    check(args, inputs=inputs)
    return args


def check(args: argparse.Namespace, *, inputs: bool = True) -> None:
    """Validate the arguments of a command that draws or evaluates images, as `dry_run` does."""
    if args.command == "sample":
        _check_sample(args, inputs)
    elif args.command == "reference":
        _check_reference(args, inputs)
    elif args.command == "run":
        requests = evaluations_of(args, inputs=inputs)
        _check_evaluations(_in_recorded_batches(requests, args), inputs)
    elif args.command == "time":
        timing_of(args)
    elif args.command == "sweep":
        points = sweep_points(args, inputs=inputs)
        requests = [point.evaluation for point in points]
        _check_evaluations(_in_recorded_batches(requests, args), inputs)


def _check_sample(args: argparse.Namespace, inputs: bool) -> None:
    if inputs:
        (request,) = _in_recorded_batches([samples_of(args)], args)
        check_samples(request)
    else:
        spec_of(args)


def _in_recorded_batches(requests: Sequence[R], args: argparse.Namespace) -> Sequence[R]:
    """Return the requests with the batch size that `auto` would take of what is there."""
    size = recorded_batch_size(requests) if args.batch_size == AUTO else None
    return [request.with_batch_size(size) for request in requests] if size else requests


def _check_reference(args: argparse.Namespace, inputs: bool) -> None:
    request = new_reference_of(args, inputs=inputs)
    detector = build_detector(request.detector)
    detector = detector.with_taps(request.taps_of(detector))
    if request.images is not None:
        same_reference(args.out, request.images, request.settings, detector)


def value_names(arguments: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return what `run` would compute of snapshots that do not exist yet.

    Returns:
        Names of metrics, as results have them, each with the names of its values; none where
        these depend on the images.

    Raises:
        ValueError: The command would reject the arguments.
    """
    found = []
    for request in evaluations_of(parse(["run", "SNAPSHOT", *arguments]), inputs=False):
        metrics = request.metrics.requests(build_detector(request.detector))
        found += [(name, METRICS[metric.kind].values) for name, metric in metrics.items()]
    return found


def _check_evaluations(requests: Sequence[Evaluation], inputs: bool) -> None:
    unlike = {(r.detector, r.metrics, r.reference.preprocessing): r for r in requests}
    detectors = {r.detector: build_detector(r.detector) for r in unlike.values()}
    for request in unlike.values():  # a protocol's repeats differ in their samples only
        detector = detectors[request.detector]
        metrics = request.metrics.requests(detector)
        statistics = load_statistics(request.reference, detector)
        for metric in metrics.values():
            if statistics is not None and request.reference.images is None:
                metric.check_reference(statistics)
    for request in requests:
        if isinstance(request.images, SampleRequest):
            check_samples(request.images)
        if inputs:
            check_result(request, detectors[request.detector])
