"""Validated requests: what command-line arguments ask for.

A request is made of groups of settings, one for each part of the work, and each part is given its
own group: samples (or images) -> features -> metrics against a reference -> result.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.detectors.base import DetectorConfig
from evaluation.image_sets.grid import GridSettings, check_grid
from evaluation.image_sets.image_set import ImageSet, open_images
from evaluation.image_sets.seeds import parse_seeds
from evaluation.metrics.registry import MetricSettings
from evaluation.protocols import Protocol, find_protocol, record_protocol
from evaluation.reference.reference import NUM_FEATURES, ReferenceSettings, open_reference
from evaluation.results.result_file import check_result_output
from evaluation.samples.generate import SampleSpec
from evaluation.samples.postprocess import PostProcess
from evaluation.samples.sample_dir import SampleRequest
from evaluation.sheets.make import SheetRequest
from models.snapshot import Snapshot, read_snapshot

DEFAULT_SAMPLES = 50_000
MIN_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation: images against a reference, by a detector's features, to a result file.

    Attributes:
        images: Samples to draw, or a set of images.
        reference: What they are compared with.
        detector: The feature extractor.
        metrics: What is computed of the features.
        batch_size: Images per forward pass of the detector.
        out: The result file.
        title: Name in tables.
        protocol: What the result records of the protocol that the settings come from, if any.
        replace: Whether the result of another request in `out` may be replaced.
    """

    images: SampleRequest | ImageSet
    reference: ReferenceSettings
    out: Path
    title: str
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    metrics: MetricSettings = field(default_factory=MetricSettings)
    batch_size: int = 64
    protocol: dict[str, Any] | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        if (count := count_images(self.images)) < MIN_IMAGES:
            raise ValueError(
                f"{count} image(s) are too few to evaluate; give at least {MIN_IMAGES}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What changes values besides images, reference and detector; a part of the identity."""
        return {
            "features of the reference": self.reference.num_features,
            "resamples": self.metrics.bootstrap,
            "batch size": self.batch_size,
            "compiled": self.detector.compile,
        }


def count_images(images: SampleRequest | ImageSet) -> int:
    """Return how many images are evaluated."""
    return len(images.spec.seeds) if isinstance(images, SampleRequest) else len(images)


def evaluations_of(args: argparse.Namespace, *, inputs: bool = True) -> list[Evaluation]:
    """Return the requests of `run`: one evaluation, or one per range of seeds of the protocol.

    Args:
        args: The arguments; options win over the protocol's settings.
        inputs: Whether the snapshots or images exist; if not (in a dry run), a request
            without snapshots stands for them.
    """
    protocol = find_protocol(args.protocol) if args.protocol else None
    images = _images(args, protocol) if inputs else SampleRequest((), spec_of(args, protocol))
    source = _source(args, images)
    request = Evaluation(
        images=images,
        reference=reference_of(args, protocol, inputs=inputs),
        detector=detector_of(args, protocol),
        metrics=metrics_of(args, protocol),
        batch_size=args.batch_size,
        out=args.out or default_out(source, protocol.name if protocol else args.detector),
        title=args.title or default_title(source),
        protocol=_record(protocol, args, images) if protocol else None,
        replace=args.replace,
    )
    requests = [request]
    if protocol is not None and not args.seeds and isinstance(images, SampleRequest):
        ranges = [spec_of(args, protocol, repeat) for repeat in range(protocol.repeats)]
        requests = [request] if len(ranges) == 1 else _on_ranges(request, images, ranges)
    for each in requests:
        check_result_output(each.out)
    return requests


def _images(args: argparse.Namespace, protocol: Protocol | None) -> SampleRequest | ImageSet:
    """Return the snapshots' samples, or the set of images, that the arguments name."""
    paths, overrides = split_overrides(args.source)
    if all(is_snapshot(path) for path in paths):
        if args.grid and not args.keep_images:
            raise ValueError("--grid needs the generated images: add --keep-images DIR")
        snapshots, spec = read_snapshots(paths, overrides), spec_of(args, protocol)
        return SampleRequest(snapshots, spec, args.keep_images, args.shard_images)
    if len(paths) != 1 or overrides:
        raise ValueError("expected snapshots (a relay's stages in order) or one set of images")
    return open_images(paths[0])


def _record(
    protocol: Protocol, args: argparse.Namespace, images: SampleRequest | ImageSet
) -> dict[str, Any]:
    spec = images.spec if isinstance(images, SampleRequest) else None
    preprocessing = detector_of(args, protocol).preprocessing
    return record_protocol(protocol, preprocessing, spec, count_images(images))


def _on_ranges(
    request: Evaluation, samples: SampleRequest, ranges: Sequence[SampleSpec]
) -> list[Evaluation]:
    """Return one evaluation for each range of seeds, with results numbered in their names."""
    return [
        dataclasses.replace(
            request,
            images=dataclasses.replace(samples, spec=spec),
            out=request.out.with_stem(f"{request.out.stem}-{number}"),
        )
        for number, spec in enumerate(ranges)
    ]


def samples_of(args: argparse.Namespace) -> SampleRequest:
    """Return the request of `sample`."""
    paths, overrides = split_overrides(args.source)
    snapshots = read_snapshots(paths, overrides)
    return SampleRequest(snapshots, spec_of(args), args.out, args.shard_images)


def spec_of(
    args: argparse.Namespace, protocol: Protocol | None = None, repeat: int = 0
) -> SampleSpec:
    """Return which samples are drawn; a protocol decides what no option does."""
    names = ("quantisation", "retouch", "codec")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    post = dataclasses.replace(protocol.post if protocol else PostProcess(), **given)
    default = protocol.seeds(repeat) if protocol else tuple(range(DEFAULT_SAMPLES))
    seeds = parse_seeds(args.seeds) if args.seeds else default
    return SampleSpec(seeds, args.labels, args.batch_size, post)


def detector_of(args: argparse.Namespace, protocol: Protocol | None = None) -> DetectorConfig:
    """Return the detector: the protocol's, or that of the options."""
    name = protocol.detector if protocol else args.detector
    preprocessing = args.pipeline or (protocol.preprocessing if protocol else "")
    return DetectorConfig(name, args.weights, preprocessing, args.weights_sha256, args.compile)


def metrics_of(args: argparse.Namespace, protocol: Protocol | None) -> MetricSettings:
    """Return the metrics of the options, or else of the protocol."""
    names = tuple(args.metrics.split(",")) if args.metrics else ()
    return MetricSettings(names or (protocol.metrics if protocol else ()), args.bootstrap)


def reference_of(
    args: argparse.Namespace, protocol: Protocol | None, *, inputs: bool = True
) -> ReferenceSettings:
    """Return the reference that `run` compares with; an empty one if it need not exist yet."""
    exists = inputs or args.reference.exists()
    statistics, images = open_reference(args.reference) if exists else (None, None)
    return ReferenceSettings(
        statistics=statistics,
        images=images,
        preprocessing=args.reference_pipeline or (protocol.preprocessing if protocol else ""),
        num_features=args.features or (protocol.num_features if protocol else NUM_FEATURES),
        batch_size=args.batch_size,
    )


def new_reference_of(args: argparse.Namespace) -> ReferenceSettings:
    """Return how `reference` computes statistics of images."""
    num_features = args.features or NUM_FEATURES
    return ReferenceSettings(num_features=num_features, batch_size=args.batch_size)


def taps_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the taps of `reference`; empty takes the detector's defaults."""
    return tuple(args.taps.split(",")) if args.taps else ()


def grid_of(args: argparse.Namespace) -> GridSettings | None:
    """Return the grid picture to write, None for none."""
    if not args.grid:
        return None
    check_grid(args.grid)
    return GridSettings(args.grid, args.grid_images, args.grid_upscale)


def sheet_of(args: argparse.Namespace) -> SheetRequest:
    """Return the request of `sheet`.

    Raises:
        ValueError: A set of images does not exist, or is a model, whose samples are not drawn yet.
    """
    for path in args.images:
        if is_snapshot(path):
            raise ValueError(
                f"{path} is a model; draw its samples first (relaywave eval sample), and name their"
                " directory"
            )
    return SheetRequest(
        kind=args.kind,
        sets=tuple(map(open_images, args.images)),
        reference=open_images(args.reference) if args.reference else None,
        out=args.out,
        rows=args.rows,
        columns=args.columns,
        upscale=args.upscale,
        classes=parse_seeds(args.classes) if args.classes else (),
        detector=detector_of(args),
        tap=args.tap,
        batch_size=args.batch_size,
        num_features=args.features,
    )


def split_overrides(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate paths from `key=value` overrides."""
    overrides = [text for text in arguments if "=" in text and not Path(text).exists()]
    paths = [Path(text) for text in arguments if text not in overrides]
    if not paths:
        raise ValueError("name a snapshot, a run or a set of images")
    return paths, overrides


def is_snapshot(path: Path) -> bool:
    """Tell a snapshot or run directory from a set of images."""
    return (path / "snapshot.json").exists() or (path / "snapshots").is_dir()


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
            raise ValueError(f"{text!r}: there are {len(paths)} snapshot(s)")
    return tuple(read_snapshot(p, changes) for p, changes in zip(paths, by_stage, strict=True))


def _source(args: argparse.Namespace, images: SampleRequest | ImageSet) -> Path:
    """Return where the images lie, or the snapshot (a relay's last) that draws them."""
    if not isinstance(images, SampleRequest):
        return split_overrides(args.source)[0][0]
    return images.snapshots[-1].path if images.snapshots else Path("RUN/snapshots/SNAPSHOT")


def default_out(path: Path, name: str) -> Path:
    """Return RUN/evaluation/SNAPSHOT-NAME.json. Raises ValueError outside of run directories."""
    if path.parent.name != "snapshots":
        if not path.exists():
            raise ValueError(f"{path} does not exist: there is neither a run nor a set of images")
        raise ValueError("--out is missing: name the result file (only runs have a default)")
    return path.parent.parent / "evaluation" / f"{path.name}-{name}.json"


def default_title(path: Path) -> str:
    """Return `RUN/images seen` for a run's snapshot, else the name of the file or directory."""
    path = path.resolve()
    if path.parent.name != "snapshots":
        return path.name
    return f"{path.parent.parent.name}/{path.name.lstrip('0') or '0'}"
