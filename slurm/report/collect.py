"""Reads runs, results and spectra into plain values. Nothing is written."""

from __future__ import annotations

import csv
import functools
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from dist_train.runtime.metrics_file import read_metrics
from dist_train.runtime.run_dir import RunLock, read_run_config
from dist_train.runtime.run_files import is_run
from evaluation.results.compare import axis_value, run_name
from evaluation.results.result_file import Result, find_results
from models.config_io import ConfigError, to_json
from slurm.jobs.jobs import STOP
from slurm.jobs.records import STOPS, JobDir
from slurm.monitor.history import History, read_history

GRID = re.compile(r"(\d{12})\.png")
SPECTRUM = "spectrum.csv"
MOST_BYTES = 1 << 24
"""Of a table of spectra, which has a line per frequency."""


@dataclass(frozen=True)
class Grid:
    """A picture of samples of one snapshot.

    Attributes:
        path: The file.
        images_seen: Of the snapshot.
        width: In pixels.
        height: In pixels.
    """

    path: Path
    images_seen: int
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """What a page shows of a run.

    Attributes:
        name: Unique among the runs of the page.
        root: The run directory.
        settings: Its configuration as JSON; {} if that cannot be read.
        lines: Its metrics.
        history: When it trained.
        state: `running`, `finished`, `stopped` or `damaged`.
        note: More on the state, e.g. who trains, or why it was stopped.
        grids: Pictures of samples, in order of training.
        results: Evaluations of its snapshots, in order of training.
    """

    name: str
    root: Path
    settings: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    history: History
    state: str
    note: str = ""
    grids: tuple[Grid, ...] = ()
    results: tuple[Result, ...] = ()

    @property
    def images_seen(self) -> int:
        """Images of the last interval."""
        return int(self.lines[-1]["images_seen"]) if self.lines else 0

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """What it logs, as `network/metric` or `speed/...`, in the order of the first lines."""
        return tuple(dict.fromkeys(key for line in self.lines for key in line if "/" in key))

    @property
    def total_images(self) -> int:
        """Length of training."""
        return int(self.settings.get("total_images", 0))

    @property
    def grid_columns(self) -> int:
        """Samples in a row of its grids; 0 if they have none (as `dist_train.snapshots.tile`)."""
        return max(round(self.num_seeds**0.5), 1) if self.num_seeds else 0

    @property
    def num_seeds(self) -> int:
        """Samples of its grids: sample k has the seed k."""
        return int(self.settings.get("logging", {}).get("grid_seeds", 0))


@dataclass(frozen=True)
class Spectrum:
    """A table that `relaywave spectrum` wrote: values by the names of their columns."""

    name: str
    columns: Mapping[str, list[float]]


@dataclass(frozen=True)
class Found:
    """All that a page is about."""

    runs: tuple[Run, ...]
    results: tuple[Result, ...]
    spectra: tuple[Spectrum, ...]
    skipped: tuple[str, ...] = field(default=())
    """What could not be read, a line each."""


def collect(paths: Sequence[Path]) -> Found:
    """Read all runs, results and spectra at `paths`, or up to two levels below them.

    Args:
        paths: Directories of runs, parents of some, directories of results, result files.

    Raises:
        ValueError: A path holds nothing of that; a run that was named is damaged.
    """
    roots: dict[Path, None] = {}
    results: dict[str, Result] = {}
    spectra: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist; name directories of runs, or parents of some")
        places = [path, *_below(path)] if path.is_dir() else [path]
        runs = [place for place in places if is_run(place)]
        found = _results(places)
        if not (runs or found):
            found = _results_of(path)
        tables = [place / SPECTRUM for place in places if (place / SPECTRUM).is_file()]
        if not (runs or found or tables):
            raise ValueError(
                f"{path} holds neither a run nor results; name directories of runs, or parents of"
                " some"
            )
        roots |= {run.absolute(): None for run in runs}
        results |= {result["identity"] + str(result["title"]): result for result in found}
        spectra |= dict.fromkeys(tables)
        if is_run(path):
            read_run_config(path)  # one that was named must be readable
    skipped: list[str] = []
    names = _names(list(roots))
    read = tuple(
        _read_run(root, name, list(results.values()), skipped) for root, name in names.items()
    )
    tables_read = tuple(filter(None, (_read_spectrum(table, skipped) for table in spectra)))
    return Found(read, tuple(results.values()), tables_read, tuple(skipped))


def _below(path: Path) -> list[Path]:
    """Return the directories one and two levels below, but those that runs hold."""
    found = []
    for child in sorted(path.glob("*/")):
        if child.is_dir() and not child.name.startswith(".") and not is_run(path):
            found += [child, *(() if is_run(child) else sorted(child.glob("*/")))]
    return [place for place in found if place.is_dir()]


def _results(places: Iterable[Path]) -> list[Result]:
    """Return the results of files, and those in `evaluation/` of directories."""
    found: list[Result] = []
    for place in places:
        if place.is_file():
            found += find_results([place])
        elif (place / "evaluation").is_dir():
            found += _results_of(place)
    return found


def _results_of(place: Path) -> list[Result]:
    try:
        return find_results([place])
    except ValueError:  # there is none yet
        return []


def _names(roots: Sequence[Path]) -> dict[Path, str]:
    """Return a name for each run: that of its directory, with parents where two are the same."""
    names = {root: root.name for root in roots}
    for depth in (2, 3):
        counts = Counter(names.values())
        for root in roots:
            if counts[names[root]] > 1:
                names[root] = "/".join(root.parts[-depth:])
    counts = Counter(names.values())
    return {root: name if counts[name] == 1 else str(root) for root, name in names.items()}


def _read_run(root: Path, name: str, results: Sequence[Result], skipped: list[str]) -> Run:
    settings: dict[str, Any] = {}
    state, note = "damaged", ""
    owner = RunLock.owner(root) if (root / "lock").is_file() else None
    try:
        settings = to_json(read_run_config(root))
        lines = read_metrics(root)
    except (ConfigError, OSError, ValueError) as error:
        skipped.append(str(error))
        lines, note = [], str(error)
    else:
        state, note = _state(root, owner, lines, int(settings["total_images"]))
    mine = [result for result in results if run_name(result) == root.name]
    return Run(
        name=name,
        root=root,
        settings=settings,
        lines=lines,
        history=read_history(root, lines, time.time() if owner else None),
        state=state,
        note=note,
        grids=tuple(_grids(root, skipped)),
        results=tuple(sorted(mine, key=lambda r: axis_value(r, "images seen") or 0.0)),
    )


def _state(
    root: Path, owner: str | None, lines: Sequence[Mapping[str, Any]], total: int
) -> tuple[str, str]:
    if owner:
        return "running", owner
    if lines and lines[-1]["images_seen"] >= total:
        return "finished", ""
    stop = JobDir(root).slurm_dir / STOP
    if not stop.exists():
        return "stopped" if lines else "not started", ""
    try:
        return "stopped", STOPS.read(stop).why
    except (OSError, ValueError) as error:
        return "stopped", f"the reason is unknown ({error})"


def _grids(root: Path, skipped: list[str]) -> Iterable[Grid]:
    for path in sorted((root / "grids").glob("*.png")):
        if not (match := GRID.fullmatch(path.name)) or not path.is_file():
            continue
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                picture.verify()
                yield Grid(path, int(match[1]), *picture.size)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
            skipped.append(f"{path} is no picture: {error}")


def _read_spectrum(path: Path, skipped: list[str]) -> Spectrum | None:
    """Return a table of `relaywave spectrum`; None, with a line on why, if it is none."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        values = [[float(cell) for cell in row] for row in rows]
        if "cycles_per_image" not in header or not all(map(_is_finite, values)):
            raise ValueError("not a table of `relaywave spectrum`")
        columns = [list(column) for column in zip(*values, strict=True)]
        return Spectrum(path.parent.name, dict(zip(header, columns, strict=True)))
    except (OSError, ValueError) as error:
        skipped.append(f"{path} is left out: {error}")
        return None


def _is_finite(row: Sequence[float]) -> bool:
    return all(map(math.isfinite, row))
