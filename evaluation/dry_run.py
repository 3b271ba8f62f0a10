"""Judging a command line without beginning: launchers ask before they queue jobs.

What is refused here is refused by the functions that the command itself runs; detectors are loaded
on the CPU, samples are not drawn, and images are not decoded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from evaluation.arguments import parse
from evaluation.detectors.registry import DETECTORS, build_detector
from evaluation.evaluate import check_comparable, enough, requests_of
from evaluation.image_sets.image_set import open_images
from evaluation.protocols import find_protocol
from evaluation.reference.reference import read_statistics_file, same_reference
from evaluation.request import (
    detector_of,
    evaluations_of,
    metrics_of,
    plan_of,
    read_snapshots,
    split_overrides,
)
from evaluation.samples.generate import GeneratedImages, SamplePlan
from evaluation.samples.sample_dir import check_folder
from models.snapshot import Snapshot, check_stages


def judge(words: Sequence[str], *, inputs: bool = True) -> argparse.Namespace:
    """Judge a command line of `sample`, `reference` or `run`; returns what it says.

    Args:
        words: The command line.
        inputs: Whether the snapshots and images that it reads must be there already.

    Raises:
        ValueError: It would be refused.
        SystemExit: It does not parse; a usage message was printed.
    """
    args = parse(words)
    if args.command == "reference":
        _judge_reference(args, inputs)
    elif args.command == "run":
        _judge_run(args, inputs)
    elif args.command == "sample":
        plan = plan_of(args)
        if inputs:
            paths, overrides = split_overrides(args.source)
            _judge_samples(read_snapshots(paths, overrides), plan, args.out, args.shard_images)
    return args


def _judge_reference(args: argparse.Namespace, inputs: bool) -> None:
    detector = build_detector(detector_of(args))
    usual = DETECTORS[args.detector].reference_taps_of(detector)
    chosen = detector.with_taps(args.taps.split(",") if args.taps else usual)
    if inputs:
        same_reference(args.out, open_images(args.images), chosen)


def _judge_run(args: argparse.Namespace, inputs: bool) -> None:
    protocol = find_protocol(args.protocol) if args.protocol else None
    evaluations = evaluations_of(args) if inputs else []
    chosen = detector_of(args, protocol)
    detector = build_detector(chosen)
    requests_of(metrics_of(args, protocol), DETECTORS[chosen.name], detector)
    plan_of(args, protocol)
    if inputs or args.reference.exists():
        pipeline = args.reference_pipeline or (protocol.pipeline if protocol else "")
        statistics = read_statistics_file(args.reference, detector, pipeline)
        if statistics is None:
            open_images(args.reference)
        else:
            check_comparable(detector, statistics)
    for config in evaluations:
        if config.images is not None:
            enough(open_images(config.images))
        elif config.plan is not None:
            enough(GeneratedImages(config.snapshots, config.plan))
            _judge_samples(config.snapshots, config.plan, config.keep_images, config.shard_images)


def _judge_samples(
    snapshots: Sequence[Snapshot], plan: SamplePlan, folder: Path | None, shard_images: int | None
) -> None:
    """Refuse stages that do not fit, damaged weights, and a folder of other samples."""
    check_stages([snapshot.objective for snapshot in snapshots])
    for snapshot in snapshots:
        snapshot.check_weights()
    generated = GeneratedImages(snapshots, plan)
    if folder is not None:
        check_folder(generated, folder, shard_images)
