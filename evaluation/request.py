"""From command-line arguments to validated requests: evaluations, samples, detectors."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from evaluation.detectors.base import DetectorConfig
from evaluation.evaluate import Evaluation
from evaluation.protocols import Protocol, find_protocol
from evaluation.samples.generate import SamplePlan, parse_seeds
from evaluation.samples.postprocess import PostProcess
from models.snapshot import Snapshot, read_snapshot

NUM_FEATURES = 10_000
USUAL_SAMPLES = 50_000


def evaluations_of(args: argparse.Namespace) -> list[Evaluation]:
    """Return what `run` is asked for: one evaluation, or as many as the protocol repeats."""
    protocol = find_protocol(args.protocol) if args.protocol else None
    repeats = protocol.repeats if protocol and not args.seeds else 1
    return [
        _evaluation(args, protocol, repeat if repeats > 1 else None) for repeat in range(repeats)
    ]


def _evaluation(
    args: argparse.Namespace, protocol: Protocol | None, repeat: int | None
) -> Evaluation:
    """Return what `run` is asked for; options win over the protocol's settings."""
    paths, overrides = split_overrides(args.source)
    are_snapshots = all(is_snapshot(path) for path in paths)
    if args.grid and are_snapshots and not args.keep_images:
        raise ValueError("--grid needs the generated images: add --keep-images FOLDER")
    if not are_snapshots and (len(paths) != 1 or overrides):
        raise ValueError("give snapshots (a relay's stages in order) or one set of images")
    snapshots = read_snapshots(paths, overrides) if are_snapshots else ()
    out: Path = args.out or default_out(snapshots, protocol.name if protocol else args.detector)
    if repeat is not None:
        out = out.with_stem(f"{out.stem}-{repeat}")
    return Evaluation(
        out=out,
        reference=args.reference,
        snapshots=snapshots,
        images=None if are_snapshots else paths[0],
        plan=plan_of(args, protocol, repeat or 0) if are_snapshots else None,
        keep_images=args.keep_images,
        shard_images=args.shard_images,
        detector=detector_of(args, protocol),
        metrics=metrics_of(args, protocol),
        protocol=protocol,
        bootstrap=args.bootstrap,
        batch_size=args.batch_size,
        reference_pipeline=args.reference_pipeline or (protocol.pipeline if protocol else ""),
        num_features=args.features or (protocol.num_features if protocol else NUM_FEATURES),
        title=args.title,
    )


def metrics_of(args: argparse.Namespace, protocol: Protocol | None) -> tuple[str, ...]:
    """Return the metrics that are asked for, or those of the protocol."""
    if args.metrics:
        return tuple(args.metrics.split(","))
    return protocol.metrics if protocol else ()


def split_overrides(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate paths from `key=value` overrides."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    paths = [Path(word) for word in words if word not in overrides]
    if not paths:
        raise ValueError("no snapshot or set of images was given")
    return paths, overrides


def read_snapshots(paths: Sequence[Path], overrides: Sequence[str]) -> tuple[Snapshot, ...]:
    """Read a model's snapshots; overrides go to the last one, `stage1:key=value` to a named one."""
    by_stage: list[list[str]] = [[] for _ in paths]
    for text in overrides:
        stage, separator, assignment = text.partition(":")
        number = stage.removeprefix("stage")
        if not (separator and stage.startswith("stage") and number.isdigit()):
            by_stage[-1].append(text)
        elif 1 <= int(number) <= len(paths):
            by_stage[int(number) - 1].append(assignment)
        else:
            raise ValueError(f"{text!r}: {len(paths)} snapshot(s) were given")
    return tuple(read_snapshot(p, changes) for p, changes in zip(paths, by_stage, strict=True))


def default_out(snapshots: Sequence[Snapshot], name: str) -> Path:
    """Return RUN/evaluation/SNAPSHOT-NAME.json. Raises ValueError outside of run folders."""
    if not snapshots or snapshots[-1].path.parent.name != "snapshots":
        raise ValueError("--out is missing: name the result file (only runs have a place for it)")
    path = snapshots[-1].path
    return path.parent.parent / "evaluation" / f"{path.name}-{name}.json"


def is_snapshot(path: Path) -> bool:
    """Tell a snapshot or run folder from a set of images."""
    return (path / "snapshot.json").exists() or (path / "snapshots").is_dir()


def plan_of(
    args: argparse.Namespace, protocol: Protocol | None = None, repeat: int = 0
) -> SamplePlan:
    """Return which samples are drawn; a protocol decides what no option does."""
    names = ("quantisation", "retouch", "codec")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    post = dataclasses.replace(protocol.post if protocol else PostProcess(), **given)
    usual = protocol.seeds(repeat) if protocol else tuple(range(USUAL_SAMPLES))
    seeds = parse_seeds(args.seeds) if args.seeds else usual
    return SamplePlan(seeds, args.labels, args.batch_size, post)


def detector_of(args: argparse.Namespace, protocol: Protocol | None = None) -> DetectorConfig:
    """Return the detector that is asked for, or that a protocol needs."""
    name = protocol.detector if protocol else args.detector
    pipeline = args.pipeline or (protocol.pipeline if protocol else "")
    return DetectorConfig(name, args.weights, pipeline, args.weights_sha256, args.compile)
