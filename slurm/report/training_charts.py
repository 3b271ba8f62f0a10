"""Charts of training: losses, gradients, rates, where time goes, starts and roll-backs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from slurm.jobs.throughput import RATE
from slurm.monitor.history import Mark
from slurm.report.charts import NO_RUN, Bar, Chart, Line, colours, dash, steps
from slurm.report.collect import Run

IMAGES = "images seen"
NOISE_LEVEL = re.compile(r"(\w+)/loss_sigma_([\d.e+-]+)_(inf|[\d.e+-]+)")
OPTIMISER = ("gradient_norm", "learning_rate", "skipped_updates", "loss_scale")
"""What is logged of every network besides what its loss measures."""
PHASES = ("data_wait", "forward", "backward", "update", "ema", "save")
ZEROS = ("skipped_updates",)
"""What is worth a chart only if it is ever more than 0."""


def loss_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return the losses of all networks, then by noise level or by term, run by run."""
    names = _names(runs, lambda network, metric: metric == "loss")
    charts = [
        _over_runs(runs, name, f"Loss of the {_network(name)}", "loss, mean of an interval")
        for name in names
    ]
    for number, run in enumerate(runs):
        charts += _by_noise_level(number, run)
        charts += _by_term(number, run)
    return charts


def optimiser_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return gradient norms and learning rates, and what went wrong with updates if it did."""
    charts = []
    for name in _names(runs, lambda network, metric: metric in OPTIMISER):
        network, _, metric = name.partition("/")
        if metric in ZEROS and not any(line.get(name) for run in runs for line in run.lines):
            continue
        title = f"{metric.replace('_', ' ').capitalize()} of the {network}"
        is_norm = metric == "gradient_norm"
        unit = "L2 norm, last update" if is_norm else metric.replace("_", " ")
        charts.append(_over_runs(runs, name, title, unit, log_y=is_norm or metric == "loss_scale"))
    return charts


def speed_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return throughput, utilisation and where the time of a step goes."""
    titles = {
        RATE: ("Throughput", "images per second"),
        "speed/mfu": ("Model FLOPs utilisation", "fraction of the peak"),
        "memory/peak_gb": ("Peak memory of rank 0", "GB"),
    }
    there = _names(runs, lambda network, metric: f"{network}/{metric}" in titles)
    charts = [_over_runs(runs, name, *titles[name]) for name in titles if name in there]
    return [*charts, *_step_time(runs)]


def time_chart(runs: Sequence[Run]) -> Chart | None:
    """Return the progress of runs over hours, with their starts, roll-backs and ends."""
    series: list[Line] = []
    for number, run in enumerate(runs):
        if not run.lines or not run.history.marks:
            continue
        colour = colours(len(runs))[number]
        seen = [line["images_seen"] for line in run.lines]
        series.append(Line(run.name, run.history.hours, seen, number, colour, dash=dash(number)))
        series += _marks(number, run, colour)
    if not series:
        return None
    return Chart(
        "time", "Progress, restarts and roll-backs", "hours since the first start", IMAGES, series,
        "Triangles: starts; crosses: roll-backs; squares: ends. Point at one for its reason.",
    )  # fmt: skip


SYMBOLS = {"start": "triangle-right", "roll_back": "x", "end": "square-open"}
WORDS = {"start": "started", "roll_back": "rolled back", "end": "ended"}


def _marks(number: int, run: Run, colour: str) -> Iterable[Line]:
    marks, first = run.history.marks, run.history.marks[0].time
    for kind, symbol in SYMBOLS.items():
        found = [mark for mark in marks if mark.kind == kind]
        if found:
            yield Line(
                f"{run.name}: {WORDS[kind]}",
                [(mark.time - first) / 3600 for mark in found],
                [mark.images_seen for mark in found],
                number,
                colour,
                notes=[_described(mark) for mark in found],
                mode="markers",
                symbol=symbol,
                in_legend=False,
            )


def _described(mark: Mark) -> str:
    ranks = f" on {mark.ranks} ranks" if mark.ranks else ""
    return f"{WORDS[mark.kind]}{ranks}{f': {mark.why}' if mark.why else ''}"


def _by_noise_level(number: int, run: Run) -> Iterable[Chart]:
    found = [match for name in run.keys if (match := NOISE_LEVEL.fullmatch(name))]
    found.sort(key=lambda match: float(match[2]))
    if found:
        series = [
            _line(run, number, match[0], f"σ {match[2]} to {match[3].replace('inf', '∞')}", colour)
            for match, colour in zip(found, steps(len(found)), strict=True)
        ]
        yield Chart(
            f"noise_level_{number}", f"{run.name}: loss by noise level", IMAGES,
            "weighted loss", series, log_y=True, run=number,
        )  # fmt: skip


def _by_term(number: int, run: Run) -> Iterable[Chart]:
    """Yield the terms of each network's loss, and what else it measured, by kind."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in run.keys:
        network, _, metric = name.partition("/")
        is_measured = f"{network}/loss" in run.keys and metric not in ("loss", *OPTIMISER)
        if is_measured and not NOISE_LEVEL.fullmatch(name):
            kind = metric.partition("_")[0] if metric.startswith(("loss_", "accuracy_")) else metric
            kinds.setdefault((network, kind), []).append(name)
    for (network, kind), names in kinds.items():
        title = f"terms of the {network}'s loss" if kind == "loss" else f"{kind} of the {network}"
        series = [
            _line(run, number, name, name.partition("/")[2].removeprefix(f"{kind}_"), colour)
            for name, colour in zip(names, colours(len(names)), strict=True)
        ]
        yield Chart(
            f"{network}_{kind}_{number}", f"{run.name}: {title}", IMAGES, kind, series, run=number
        )


def _step_time(runs: Sequence[Run]) -> Iterable[Chart]:
    measured = [run for run in runs if _mean_seconds(run)]
    if measured:
        seconds = [_mean_seconds(run) for run in measured]
        labels = [
            f"{run.name} ({1000 * sum(parts.values()):.4g} ms)"
            for run, parts in zip(measured, seconds, strict=True)
        ]
        series = [
            Bar(
                phase.replace("_", " "),
                labels,
                [100 * parts[phase] / sum(parts.values()) for parts in seconds],
                colour,
            )
            for phase, colour in zip((*PHASES, "other"), colours(8), strict=False)
        ]
        yield Chart(
            "step_time", "Where the time of a step goes", "% of a step", "", series,
            "Means over the run, with the length of a step; for data and saving, training waits.",
        )  # fmt: skip


def _mean_seconds(run: Run) -> Mapping[str, float]:
    """Return the mean seconds of a step by phase, {} if they were not measured."""
    total, sums, before = 0.0, dict.fromkeys((*PHASES, "other"), 0.0), 0
    for line in run.lines:
        images, before = line["images_seen"] - before, line["images_seen"]
        rate, size = line.get(RATE), run.settings.get("global_batch_size")
        phases = {phase: line.get(f"seconds/{phase}") for phase in PHASES}
        if not rate or not size or None in phases.values() or images <= 0:
            continue
        count = images / size
        total += count
        for phase, seconds in phases.items():
            sums[phase] += count * (seconds or 0.0)
        sums["other"] += max(images / rate - count * sum(v or 0.0 for v in phases.values()), 0.0)
    return {phase: value / total for phase, value in sums.items()} if total else {}


def _over_runs(runs: Sequence[Run], name: str, title: str, unit: str, log_y: bool = False) -> Chart:
    series = [
        replace(_line(run, number, name, run.name, colour), dash=dash(number))
        for number, (run, colour) in enumerate(zip(runs, colours(len(runs)), strict=True))
        if name in run.keys
    ]
    return Chart(name.replace("/", "_"), title, IMAGES, unit, series, log_y=log_y, run=NO_RUN)


def _line(run: Run, number: int, key: str, name: str, colour: str) -> Line:
    seen = [line["images_seen"] for line in run.lines]
    values = [line.get(key) for line in run.lines]
    return Line(name, seen, values, number, colour, of_training=True)


def _names(runs: Sequence[Run], is_wanted: Callable[[str, str], Any]) -> list[str]:
    """Return the keys of all runs that are wanted, by network and metric."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    return [key for key in keys if is_wanted(*key.split("/", 1))]


def _network(name: str) -> str:
    return name.partition("/")[0]
