"""Charts of results: metrics over training, NFE and eta, precision and recall, spectra."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evaluation.results.compare import AXES, run_name
from evaluation.results.plots import (
    BARS,
    BOUNDED,
    Name,
    lines_of,
    published_values,
    spans_decades,
    value_names,
)
from evaluation.results.result_file import Result
from slurm.report.charts import GREY, NO_RUN, Chart, Line, Palette, colours
from slurm.report.collect import Run, Spectrum


def metric_charts(results: Sequence[Result], runs: Sequence[Run]) -> list[Chart]:
    """Return each value over each axis on which results differ, with published values."""
    charts = []
    names = list(dict.fromkeys(name for result in results for name in value_names(result)))
    for axis in AXES:
        for name in names:
            chart = _metric_chart(results, runs, axis, name)
            if chart is not None:
                charts.append(chart)
    return charts


def _metric_chart(
    results: Sequence[Result], runs: Sequence[Run], axis: str, name: Name
) -> Chart | None:
    lines = lines_of(results, axis, name)
    xs = [point.x for points in lines.values() for point in points]
    if all(len(points) < 2 for points in lines.values()):  # other results, not along this axis
        return None
    series, palette, ends = [], Palette(), [min(xs), max(xs)]
    run_colours = dict(zip([run.root.name for run in runs], colours(len(runs)), strict=True))
    for line, points in lines.items():
        number = _run_of(line, runs)
        colour = run_colours[runs[number].root.name] if number != NO_RUN else palette.of(line)
        series.append(
            Line(
                line,
                [p.x for p in points],
                [p.y for p in points],
                number,
                colour,
                [p.low for p in points],
                [p.high for p in points],
                mode="lines+markers",
            )
        )  # fmt: skip
    for anchor in published_values(results, name, axis):
        place = ends if anchor.x is None else [anchor.x]
        series.append(
            Line(
                f"published: {anchor.value:g}",
                place,
                [anchor.value] * len(place),
                colour=GREY,
                notes=[anchor.label] * len(place),
                dash="dash",
                symbol="star",
            )
        )
    metric, value = name
    title = metric if value in ("distance", "score") else f"{metric}: {value}"
    values = [y for line in series for y in line.y if y is not None]
    has_bars = any(high > low for s in series for low, high in zip(s.low, s.high, strict=True))
    return Chart(
        f"{metric}_{value}_{axis}".replace(" ", "_"), f"{title} over {axis}", axis, title, series,
        f"{BARS.capitalize()}." if has_bars else "", log_x=spans_decades(xs),
        log_y=value not in BOUNDED and spans_decades(values),
    )  # fmt: skip


def _run_of(line: str, runs: Sequence[Run]) -> int:
    """Return the number of the run that a line is named by, if any."""
    words = {line, *(part.removeprefix("run ") for part in line.split(", "))}
    return next((n for n, run in enumerate(runs) if run.root.name in words), NO_RUN)


def precision_recall_chart(results: Sequence[Result], runs: Sequence[Run]) -> Chart | None:
    """Return precision against recall, a point for each result that has both."""
    metrics = dict.fromkeys(
        name for r in results for name, metric in r["metrics"].items()
        if {"precision", "recall"} <= metric["values"].keys()
    )  # fmt: skip
    places: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    for metric in metrics:
        for result in results:
            values = result["metrics"].get(metric, {"values": {}})["values"]
            if "precision" in values:
                place = (values["recall"], values["precision"], str(result["title"]))
                places.setdefault((run_name(result), metric), []).append(place)
    palette, series = Palette(), []
    for (run, metric), points in places.items():
        number = next((n for n, other in enumerate(runs) if other.root.name == run), NO_RUN)
        label = run if len(metrics) == 1 else f"{run}, {metric}"
        recall, precision, notes = map(list, zip(*points, strict=True))
        colour = colours(len(runs))[number] if number != NO_RUN else palette.of(run)
        series.append(Line(label, recall, precision, number, colour, notes=notes, mode="markers"))
    series += _published_places(results, list(metrics))
    if not series:
        return None
    return Chart("precision_recall", "Precision against recall", "recall", "precision", series)


def _published_places(results: Sequence[Result], metrics: Sequence[str]) -> Iterable[Line]:
    found = {}
    for protocol in (result["protocol"] for result in results if result["protocol"]):
        for metric in metrics:
            values = [protocol["published"].get(f"{metric}.{v}") for v in ("recall", "precision")]
            if None not in values:
                found[str(protocol.get("source") or protocol["name"])] = values
    for source, (recall, precision) in found.items():
        yield Line(
            f"published: {recall:g}, {precision:g}", [recall], [precision], colour=GREY,
            notes=[source], mode="markers", symbol="star",
        )  # fmt: skip


def spectrum_charts(spectra: Sequence[Spectrum]) -> list[Chart]:
    """Return the powers, and the ratios of image to noise power, of each table."""
    charts = []
    for number, spectrum in enumerate(spectra):
        frequency = spectrum.columns["cycles_per_image"][1:]
        for kind, title, unit in (
            ("power_ noise_", "power per DCT coefficient", "power"),
            ("snr_", "signal-to-noise ratio", "ratio"),
        ):
            names = [name for name in spectrum.columns if name.startswith(tuple(kind.split()))]
            series = [
                Line(name.replace("_", " "), frequency, spectrum.columns[name][1:], colour=colour)
                for name, colour in zip(names, colours(len(names)), strict=True)
            ]
            if series:
                key = f"spectrum_{unit}_{number}"
                charts.append(
                    Chart(
                        key,
                        f"{spectrum.name}: {title}",
                        "cycles per image",
                        unit,
                        series,
                        log_x=True,
                        log_y=True,
                    )
                )
    return charts
