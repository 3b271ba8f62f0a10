"""Sweeps: a model evaluated with each point of a grid of sampler settings.

A point is an evaluation like any other: its samples, features and result are reused as those of
`run` are, and its result is a file of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.request import Evaluation, default_out, evaluations_of, is_snapshot, split_overrides
from evaluation.results.formats import check_tables, write_tables
from evaluation.results.result_file import Result
from evaluation.results.table import FIRST_COLUMN, table_blocks, to_csv
from evaluation.samples.generate import SampleSpec
from evaluation.samples.sample_dir import SampleRequest
from models.config_io import ConfigError, did_you_mean
from models.grid import assignments, grid_points
from models.snapshot import Snapshot, read_snapshot

TABLE = "table"
"""Stem of a sweep's tables."""
Drawn = tuple[tuple[Snapshot, ...], SampleSpec]
"""Samples: the models with their settings, and which are drawn."""


@dataclass(frozen=True)
class Point:
    """A point of a sweep.

    Attributes:
        settings: Values of the grid's axes.
        evaluation: Its evaluation; several protocols have one each.
    """

    settings: dict[str, str]
    evaluation: Evaluation


def point_names(args: argparse.Namespace) -> list[str]:
    """Return the names of the points that are asked for: all, or those of `--point`.

    Raises:
        ConfigError: There is no such point, or the grid is invalid.
    """
    known = [*grid_points(args.axes)]
    for name in args.point or []:
        if name not in known:
            raise ConfigError(
                f"--point {name} is not one of {', '.join(known)}{did_you_mean(name, known)}"
            )
    return args.point or known


def sweep_dir(args: argparse.Namespace) -> Path:
    """Return the directory of a sweep's results: `--out`, or RUN/evaluation/SNAPSHOT-sweep."""
    if args.out is not None:
        return Path(args.out)
    return default_out(_model_path(args), "sweep").with_suffix("")


def _model_path(args: argparse.Namespace) -> Path:
    return read_snapshot(split_overrides(args.source)[0][-1]).path


def sweep_points(args: argparse.Namespace, *, inputs: bool = True) -> list[Point]:
    """Return the points of a sweep that are asked for, in the order of the grid.

    Args:
        args: The arguments of `sweep`.
        inputs: Whether the snapshots must exist; if not (in a dry run), settings are not checked.

    Raises:
        ValueError: A point is invalid, which is named, or two points draw the same samples.
    """
    wanted = point_names(args)
    if not args.point and inputs:
        check_tables(sweep_dir(args) / TABLE, FIRST_COLUMN)
    for path in split_overrides(args.source)[0] if inputs else []:
        if path.exists() and not is_snapshot(path):
            raise ValueError(f"{path} is no model: a sweep changes how samples are drawn of one")
    out = sweep_dir(args) if inputs or args.out else Path("sweep")
    points = []
    drawn: dict[str, list[Drawn]] = {}
    for name, settings in grid_points(args.axes).items():
        try:
            evaluations = evaluations_of(_arguments_of(args, out, name, settings), inputs=inputs)
        except ValueError as error:
            raise ConfigError(f"point {name}: {error}") from None
        if inputs:
            _check_distinct(name, evaluations, drawn)
        points += [Point(settings, evaluation) for evaluation in evaluations if name in wanted]
    return points


def _arguments_of(
    args: argparse.Namespace, out: Path, name: str, settings: dict[str, str]
) -> argparse.Namespace:
    """Return the arguments of `run` for one point."""
    title = " ".join(filter(None, (args.title, *assignments(settings))))
    own = {
        "source": [*args.source, *assignments(settings)],
        "out": out / f"{name}.json",
        "title": title,
        "keep_images": args.keep_images and args.keep_images / name,
    }
    return argparse.Namespace(**vars(args) | own)


def _check_distinct(
    name: str, evaluations: Sequence[Evaluation], drawn: dict[str, list[Drawn]]
) -> None:
    """Note what a point draws. Raises ConfigError if another point draws the same samples."""
    samples = [
        (request.images.snapshots, request.images.spec)
        for request in evaluations
        if isinstance(request.images, SampleRequest)
    ]
    for other, theirs in drawn.items():
        if theirs == samples:
            raise ConfigError(f"points {other} and {name} draw the same samples; leave one out")
    drawn[name] = samples


def write_sweep(out: Path, points: Sequence[Point], results: Sequence[Result]) -> list[Path]:
    """Write the tables of a sweep as Markdown, CSV and LaTeX; returns the files."""
    places = [point.settings for point in points]
    return write_tables(out / TABLE, table_blocks(results, places), to_csv(results, places))
