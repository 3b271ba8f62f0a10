"""Validated requests: what command-line arguments ask for.

A request is made of groups of settings, one for each part of the work, and each part is given its
own group: samples (or images) -> features -> metrics against a reference -> result.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_train.recipes import find_recipe
from evaluation.detectors.base import Detector, DetectorConfig
from evaluation.detectors.passes import AUTO, DEFAULT
from evaluation.detectors.registry import DEFAULT_DETECTOR, DETECTORS, check_name
from evaluation.features.store import selected_by
from evaluation.image_sets.grid import GridSettings, check_grid
from evaluation.image_sets.image_set import ImageSet, open_images
from evaluation.image_sets.seeds import parse_seeds
from evaluation.metrics.registry import MetricSettings
from evaluation.protocols import Protocol, find_protocol
from evaluation.reference.prepared import prepare_images
from evaluation.reference.reference import (
    NUM_FEATURES,
    STATISTICS_OR_IMAGES,
    ReferenceSettings,
    open_reference,
)
from evaluation.results.result_file import check_result_output, range_path
from evaluation.samples.generate import SampleSpec
from evaluation.samples.postprocess import PostProcess
from evaluation.samples.sample_dir import SampleRequest
from evaluation.samples.timing import TimingRequest
from evaluation.sheets.make import SheetRequest
from evaluation.unused_options import check_grid_options, check_run_options
from models.config_io import override
from models.safe_files.nearest import check_there
from models.snapshot import Snapshot, check_stages, read_snapshot

DEFAULT_SAMPLES = 50_000
MIN_IMAGES = 2
OF_ONE_DETECTOR = ("weights", "weights_sha256", "pipeline", "metrics")
"""Options that must say of which detector they are, where there are several."""


@dataclass(frozen=True)
class SeedRange:
    """One of the ranges of seeds that a protocol evaluates one after another.

    Attributes:
        number: Which one, from 0.
        count: How many there are.
    """

    number: int
    count: int


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
        protocol: The protocol that the settings come from, if any.
        replace: Whether the result of another request in `out` may be replaced.
        seed_range: Which of a protocol's ranges of seeds the images are of; None for the only one.
    """

    images: SampleRequest | ImageSet
    reference: ReferenceSettings
    out: Path
    title: str
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    metrics: MetricSettings = field(default_factory=MetricSettings)
    batch_size: int = DEFAULT
    protocol: Protocol | None = None
    replace: bool = False
    seed_range: SeedRange | None = None

    def __post_init__(self) -> None:
        if (count := count_images(self.images)) < MIN_IMAGES:
            raise ValueError(
                f"{count} image(s) are too few to evaluate; give at least {MIN_IMAGES}"
            )

    @property
    def best_out(self) -> Path | None:
        """The file of the result over all ranges of seeds, beside those of each; else None."""
        if self.seed_range is None:
            return None
        return self.out.with_stem(self.out.stem.removesuffix(f"-{self.seed_range.number}"))

    @property
    def settings(self) -> dict[str, Any]:
        """What changes values besides images, reference and detector; a part of the identity."""
        return {
            "features of the reference": self.reference.num_features,
            "resamples": self.metrics.bootstrap,
            "batch size": self.batch_size,
            "compiled": self.detector.compile,
            **selected_by(count_images(self.images)),
        }

    def with_batch_size(self, size: int) -> Evaluation:
        """Return the request with another batch size, also of its samples and reference."""
        images = self.images
        return dataclasses.replace(
            self,
            images=images.with_batch_size(size) if isinstance(images, SampleRequest) else images,
            reference=dataclasses.replace(self.reference, batch_size=size),
            batch_size=size,
        )

    def taps_of(self, detector: Detector) -> list[str]:
        """Return the taps of a detector that the metrics need."""
        requests = self.metrics.requests(detector).values()
        return list(dict.fromkeys(metric.tap for metric in requests))


def count_images(images: SampleRequest | ImageSet) -> int:
    """Return how many images are evaluated."""
    return len(images.spec.seeds) if isinstance(images, SampleRequest) else len(images)


def evaluations_of(args: argparse.Namespace, *, inputs: bool = True) -> list[Evaluation]:
    """Return the requests of `run`: one for each protocol, detector and range of seeds.

    Those of the same samples share them.

    Args:
        args: The arguments; options win over the protocol's settings.
        inputs: Whether the snapshots or images exist; if not (in a dry run), a request
            without snapshots stands for them.
    """
    protocols: list[Protocol | None] = [find_protocol(name) for name in _names(args.protocol)]
    pairs = [(p, name) for p in protocols or [None] for name in detectors_of(args, p)]
    _check_options(args, [name for _, name in pairs])
    _check_paths(args, [name for _, name in pairs], inputs)
    source = _Source(args, inputs)
    requests = [
        _evaluation(args, source, protocol, name, several=len(pairs) > 1, seed_range=seed_range)
        for protocol, name in pairs
        for seed_range in _seed_ranges(args, protocol, source)
    ]
    first = requests[0]
    check_run_options(args, first.images, first.reference, [r.metrics for r in requests])
    check_grid_options(args)
    outs = result_files(requests)
    for out in outs:
        if outs.count(out) > 1:
            raise ValueError(f"{out} would be the result of several requests; name each once")
        check_result_output(out)
    return requests


def result_files(requests: Sequence[Evaluation]) -> list[Path]:
    """Return the files that requests write: their results, and those over ranges of seeds."""
    over_ranges = dict.fromkeys(out for request in requests if (out := request.best_out))
    return [*(request.out for request in requests), *over_ranges]


def batch_size_of(args: argparse.Namespace) -> int:
    """Return the images per forward pass; of `auto` those of CPUs, until the devices are known."""
    return DEFAULT if args.batch_size == AUTO else int(args.batch_size)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(","))) if text else []


def _seed_ranges(
    args: argparse.Namespace, protocol: Protocol | None, source: _Source
) -> list[SeedRange | None]:
    """Return the protocol's ranges of seeds; [None] for a single one."""
    if protocol is None or args.seeds or not source.draws or protocol.repeats == 1:
        return [None]
    return [SeedRange(number, protocol.repeats) for number in range(protocol.repeats)]


def _evaluation(
    args: argparse.Namespace,
    source: _Source,
    protocol: Protocol | None,
    detector: str,
    *,
    several: bool,
    seed_range: SeedRange | None,
) -> Evaluation:
    """Return one request; its result has what tells it from the others in its name."""
    name = protocol.name if protocol else detector
    if protocol and detector != protocol.detector:
        name += f"-{detector}"
    out = args.out or default_out(source.path, name)
    if args.out and several:
        out = out.with_stem(f"{out.stem}-{name}")
    number = seed_range.number if seed_range else 0
    out = range_path(out, number) if seed_range else out
    return Evaluation(
        images=source.images(spec_of(args, protocol, number)),
        reference=reference_of(args, protocol, detector, inputs=source.exists),
        detector=detector_of(args, protocol, detector),
        metrics=metrics_of(args, protocol, detector),
        batch_size=batch_size_of(args),
        out=out,
        title=args.title or default_title(source.path),
        protocol=protocol,
        replace=args.replace,
        seed_range=seed_range,
    )


class _Source:
    """The snapshots or the set of images that a command line names; equal samples are one request.

    Attributes:
        exists: Whether they must exist.
        path: Where the images lie, or the snapshot (a relay's last) that draws them.
        draws: Whether samples are drawn.
    """

    def __init__(self, args: argparse.Namespace, exists: bool) -> None:
        self._args, self.exists = args, exists
        self._samples: dict[SampleSpec, SampleRequest] = {}
        self._set: ImageSet | None = None
        self._snapshots: tuple[Snapshot, ...] = ()
        self.path = Path("RUN/snapshots/SNAPSHOT")
        if exists:
            self._open(args)
        self.draws = self._set is None

    def _open(self, args: argparse.Namespace) -> None:
        paths, overrides = split_overrides(args.source)
        if all(is_snapshot(path) for path in paths):
            if args.grid and not args.keep_images:
                raise ValueError("--grid needs the generated images: add --keep-images DIR")
            self._snapshots = read_snapshots(paths, overrides)
            self.path = self._snapshots[-1].path
        elif len(paths) != 1 or overrides:
            raise ValueError("expected snapshots (a relay's stages in order) or one set of images")
        else:
            self._set, self.path = open_images(paths[0]), paths[0]

    def images(self, spec: SampleSpec) -> SampleRequest | ImageSet:
        """Return the samples of a spec, or the set of images."""
        if self._set is not None:
            return self._set
        if spec not in self._samples:
            if self._samples and self._args.keep_images:
                raise ValueError(
                    "--keep-images stores one set of samples, but the protocols draw several;"
                    " name one of them at a time"
                )
            stored = (self._args.keep_images, self._args.shard_images) if self.exists else ()
            self._samples[spec] = SampleRequest(self._snapshots, spec, *stored)
        return self._samples[spec]


def samples_of(args: argparse.Namespace) -> SampleRequest:
    """Return the request of `sample`."""
    paths, overrides = split_overrides(args.source)
    _check_sources(paths)
    check_grid_options(args)
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
    return SampleSpec(seeds, args.labels, batch_size_of(args), post)


def detectors_of(args: argparse.Namespace, protocol: Protocol | None = None) -> list[str]:
    """Return the names of the detectors: those of the options, or the protocol's, or the default.

    Raises:
        ValueError: One is unknown.
    """
    names = _names(args.detector) or [protocol.detector if protocol else DEFAULT_DETECTOR]
    for name in names:
        check_name(name)
    return names


def _check_options(args: argparse.Namespace, detectors: Sequence[str]) -> None:
    """Raise ValueError if an option names no detector of several, or one that is not asked for."""
    several = len(set(detectors)) > 1
    for option in (*OF_ONE_DETECTOR, "reference", "reference_pipeline"):
        named = [name for name, _ in _pieces(str(getattr(args, option)))]
        flag = f"--{option.replace('_', '-')}"
        for name in filter(None, named):
            if name not in detectors:
                raise ValueError(f"{flag} {name}=... is not one of --detector")
            if named.count(name) > 1:
                raise ValueError(f"{flag} names {name} twice; give each detector one value")
        if several and "" in named and option in OF_ONE_DETECTOR:
            example = ",".join(f"{name}=..." for name in dict.fromkeys(detectors))
            raise ValueError(f"{flag} is for one detector; with several, write {flag} {example}")


def _check_paths(args: argparse.Namespace, detectors: Sequence[str], inputs: bool) -> None:
    """Raise ValueError if a path leads nowhere, before anything is opened."""
    if not inputs:  # they may be made before the request is done
        return
    _check_sources(split_overrides(args.source)[0])
    for path in references_of(args):
        check_there(path, STATISTICS_OR_IMAGES)
    for name in detectors:
        _with_weights(DetectorConfig(name, _value_for(args.weights, name)))


def _with_weights(detector: DetectorConfig) -> DetectorConfig:
    """Return a detector. Raises ValueError if its weights are named and not there."""
    if path := detector.weights:
        missing = f"weights file {path} cannot be read: it does not exist"
        check_there(Path(path), f"one of {detector.name}", missing)
    return detector


def _check_sources(paths: Sequence[Path]) -> None:
    for path in paths:
        check_there(path, "a snapshot, a run or a set of images")


def _pieces(text: str) -> list[tuple[str, str]]:
    """Split `a=X,b=Y` into detectors and values; a text without detectors is for any ("")."""
    parts = [part.partition("=") for part in text.split(",")] if text else []
    if not (parts and parts[0][0] in DETECTORS and parts[0][1]):
        return [("", text)] if text else []
    found: list[tuple[str, str]] = []
    for name, separator, value in parts:
        if separator and name in DETECTORS:
            found.append((name, value))
        else:  # continues the value before it, e.g. a list of metrics
            found[-1] = (found[-1][0], f"{found[-1][1]},{name}{separator}{value}")
    return found


def _value_for(text: str, detector: str) -> str:
    return next((value for name, value in _pieces(text) if name in ("", detector)), "")


def detector_of(
    args: argparse.Namespace, protocol: Protocol | None = None, name: str = ""
) -> DetectorConfig:
    """Return a detector: of this name, or the only one of the options or the protocol."""
    if not name:
        name, *others = detectors_of(args, protocol)
        if others:
            raise ValueError(f"--detector {args.detector}: this command takes one detector")
    theirs = protocol.preprocessing if protocol and name == protocol.detector else ""
    return DetectorConfig(
        name,
        _value_for(args.weights, name),
        _value_for(args.pipeline, name) or theirs,
        _value_for(args.weights_sha256, name),
        args.compile,
    )


def metrics_of(
    args: argparse.Namespace, protocol: Protocol | None, detector: str
) -> MetricSettings:
    """Return the metrics of the options, or else of the protocol, if it has the same detector."""
    given = _value_for(args.metrics, detector)
    theirs = protocol.metrics if protocol and detector == protocol.detector else ()
    return MetricSettings(tuple(given.split(",")) if given else theirs, args.bootstrap)


def reference_of(
    args: argparse.Namespace, protocol: Protocol | None, detector: str, *, inputs: bool = True
) -> ReferenceSettings:
    """Return the reference that `run` compares with; an empty one if it need not exist yet."""
    path, others = _reference_paths(args, detector)
    statistics, images = open_reference(path) if inputs or path.exists() else (None, None)
    features = None
    if others is not None:
        if images is not None and statistics is None:
            raise ValueError(f"--reference moments={path} are images; name the statistics file")
        features, images = open_reference(others) if inputs or others.exists() else (None, None)
    theirs = protocol.preprocessing if protocol and detector == protocol.detector else ""
    return ReferenceSettings(
        statistics=statistics,
        features=features if images is None else None,
        images=images,
        preprocessing=_value_for(args.reference_pipeline, detector) or theirs,
        num_features=args.features or (protocol.num_features if protocol else NUM_FEATURES),
        batch_size=batch_size_of(args),
    )


def references_of(args: argparse.Namespace) -> list[Path]:
    """Return the references that `run` compares with: one, or each detector's."""
    if args.reference.exists():
        return [args.reference]
    if parts := _moments_and_features(str(args.reference)):
        return [*parts]
    return [Path(value) for _, value in _pieces(str(args.reference))]


def _moments_and_features(text: str) -> tuple[Path, Path] | None:
    """Split `moments=A,features=B`; None for anything else.

    Raises:
        ValueError: One is given without the other.
    """
    if not text.startswith(("moments=", "features=")):
        return None
    found = re.fullmatch("moments=(.+),features=(.+)|features=(.+),moments=(.+)", text)
    if not found:
        raise ValueError(f"--reference {text}: expected moments=FILE,features=FILE")
    return Path(found[1] or found[4]), Path(found[2] or found[3])


def _reference_paths(args: argparse.Namespace, detector: str) -> tuple[Path, Path | None]:
    """Return a detector's reference and, if they are elsewhere, what gives its features."""
    if args.reference.exists():
        return Path(args.reference), None
    if parts := _moments_and_features(str(args.reference)):
        return parts
    value = _value_for(str(args.reference), detector)
    if not value:
        raise ValueError(
            f"--reference {args.reference} has none for {detector}; add {detector}=FILE, or give"
            " images, which serve all detectors"
        )
    return Path(value), None


@dataclass(frozen=True, kw_only=True)
class NewReference:
    """What `reference` computes, and of what.

    Attributes:
        images: The images, prepared as the protocol says; None if they need not exist yet.
        settings: How many features are stored.
        detector: The feature extractor.
        taps: Taps of which statistics are computed; empty takes the detector's defaults.
    """

    images: ImageSet | None
    settings: ReferenceSettings
    detector: DetectorConfig
    taps: tuple[str, ...]

    def with_batch_size(self, size: int) -> NewReference:
        """Return the request with another batch size."""
        settings = dataclasses.replace(self.settings, batch_size=size)
        return dataclasses.replace(self, settings=settings)

    def taps_of(self, detector: Detector) -> tuple[str, ...]:
        """Return the taps of a detector of which statistics are computed."""
        return self.taps or detector.reference_taps


def new_reference_of(args: argparse.Namespace, *, inputs: bool = True) -> NewReference:
    """Return the request of `reference`; a protocol decides what no option does.

    Raises:
        ValueError: The protocol is unknown, or its images are of another resolution.
    """
    protocol = find_protocol(args.protocol) if args.protocol else None
    detector = _with_weights(detector_of(args, protocol))
    theirs = protocol.reference_taps if protocol and detector.name == protocol.detector else ()
    num_features = protocol.num_features if protocol else NUM_FEATURES
    return NewReference(
        images=_images_of_reference(args.images, protocol) if inputs else None,
        settings=ReferenceSettings(
            num_features=args.features or num_features, batch_size=batch_size_of(args)
        ),
        detector=detector,
        taps=tuple(args.taps.split(",")) if args.taps else theirs,
    )


def _images_of_reference(path: Path, protocol: Protocol | None) -> ImageSet:
    """Return the images of a reference, prepared as the protocol says."""
    images = open_images(path)
    if protocol is None:
        return images
    edge = images.batch([0]).shape[-1]
    if protocol.resolution not in (None, edge):
        raise ValueError(
            f"{path} holds images of {edge} pixels, but {protocol.name} is of"
            f" {protocol.resolution}; pack the original images at that resolution, or leave"
            " --protocol out"
        )
    return prepare_images(images, protocol.preparation)


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
    for path in [*args.images, *([args.reference] if args.reference else [])]:
        check_there(path, "a set of images")
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
        detector=_with_weights(detector_of(args)),
        tap=args.tap,
        batch_size=args.batch_size,
        num_features=args.features,
    )


def timing_of(args: argparse.Namespace) -> TimingRequest:
    """Return the request of `time`: of snapshots, or of recipes, whose settings are as good.

    Raises:
        ValueError: A snapshot is invalid, or there is no such recipe.
    """
    paths, overrides = split_overrides(args.source)
    if any(path.exists() for path in paths):
        _check_sources(paths)
        objectives = [snapshot.objective for snapshot in read_snapshots(paths, overrides)]
    else:
        objectives = [find_recipe(str(path))().objective for path in paths]
        objectives[-1] = override(objectives[-1], overrides)
    check_stages(objectives)
    return TimingRequest(
        objectives=tuple(objectives),
        title=args.title or " ".join(map(str, paths)),
        out=args.out,
        batch_size=args.batch_size,
        warm_up=args.warm_up,
        repeats=args.repeats,
    )


def split_overrides(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate paths from `key=value` overrides."""
    overrides = [
        text
        for text in arguments
        if "=" in text and "/" not in text.partition("=")[0] and not Path(text).exists()
    ]
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


def default_out(path: Path, name: str) -> Path:
    """Return RUN/evaluation/SNAPSHOT-NAME.json. Raises ValueError outside of run directories."""
    if path.parent.name != "snapshots":
        raise ValueError("--out is missing: name the result file (only runs have a default)")
    return path.parent.parent / "evaluation" / f"{path.name}-{name}.json"


def default_title(path: Path) -> str:
    """Return `RUN/images seen` for a run's snapshot, else the name of the file or directory."""
    path = path.resolve()
    if path.parent.name != "snapshots":
        return path.name
    return f"{path.parent.parent.name}/{path.name.lstrip('0') or '0'}"
