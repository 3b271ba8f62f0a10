"""Results over training: metric against images seen, NFE and eta, as a table and SVG plots."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from evaluation.disk import write_bytes
from evaluation.results.result_file import Result
from evaluation.results.table import align, comparability, models_of, short_names

AXES = ("images seen", "NFE", "eta")
WIDTH, HEIGHT, MARGIN = 640, 400, 60
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")

Point = tuple[float, float]
Series = dict[str, list[Point]]


def axis_value(result: Result, axis: str) -> float | None:
    """Return a result's place on an axis, None if it has none."""
    models = models_of(result)
    if axis == "NFE":
        return None if result["nfe"] is None else float(result["nfe"])
    if not models:
        return None
    if axis == "images seen":
        return float(models[-1]["images_seen"])
    eta = _find(models[-1]["objective"], "eta")
    return None if eta is None else float(eta)


def format_comparison(results: Sequence[Result]) -> str:
    """Return one row per result and value, ordered by images seen."""
    names = list(dict.fromkeys(name for result in results for name in values_of(result)))
    header = ["model", *AXES, "n", *short_names(names, results)]
    ordered = sorted(results, key=lambda r: axis_value(r, "images seen") or 0.0)
    rows = [
        [
            str(result["title"]),
            *(_text(axis_value(result, axis)) for axis in AXES),
            str(result["images"]["num_images"]),
            *(_text(values_of(result).get(name)) for name in names),
        ]
        for result in ordered
    ]
    return align([header, *rows]) + "\n\n" + comparability(results)


def values_of(result: Result) -> dict[str, float]:
    """Return all values of a result by `metric` or `metric.value`."""
    flat = {}
    for name, metric in result["metrics"].items():
        for key, value in metric["values"].items():
            flat[name if len(metric["values"]) == 1 else f"{name}.{key}"] = float(value)
    return flat


def write_plots(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write one SVG per axis and value where at least two places differ; returns the files."""
    written = []
    names = list(dict.fromkeys(name for result in results for name in values_of(result)))
    for axis in AXES:
        for name in names:
            series = _series(results, axis, name)
            if len({x for points in series.values() for x, _ in points}) > 1:
                path = folder / f"{name}_by_{axis.replace(' ', '_').lower()}.svg"
                write_bytes(path, svg_plot(series, axis, name).encode())
                written.append(path)
    return written


def _series(results: Sequence[Result], axis: str, name: str) -> Series:
    """Return the points of each line: results that agree in all but the axis.

    Lines are named by what they differ in.
    """
    placed = [
        (_facts(result, axis), x, y)
        for result in results
        if (x := axis_value(result, axis)) is not None
        and (y := values_of(result).get(name)) is not None
    ]
    varying = [k for k in _facts(results[0], axis) if len({facts[k] for facts, _, _ in placed}) > 1]
    series: Series = {}
    for facts, x, y in placed:
        line = ", ".join(f"{k} {facts[k]}" for k in varying) or facts["run"]
        series.setdefault(line, []).append((x, y))
    return {line: sorted(points) for line, points in series.items()}


def _facts(result: Result, axis: str) -> dict[str, str]:
    """Return what may tell lines of a plot over an axis apart."""
    facts = {
        "run": run_name(result),
        "detector": f"{result['detector']['name']}/{result['detector']['pipeline']}",
        "n": str(result["images"]["num_images"]),
        "reference": str(result["reference"]["digest"])[:6],
    }
    others = {name: _text(axis_value(result, name)) for name in AXES if name != axis}
    return facts | others


def run_name(result: Result) -> str:
    """Return the name of the run that a result's model comes from, else the result's title."""
    models = models_of(result)
    path = Path(models[-1].get("path", "")) if models else Path()
    run = path.parent.parent.name if path.parent.name == "snapshots" else ""
    return run or str(result["title"])


def svg_plot(series: Series, x_title: str, y_title: str) -> str:
    """Return a line plot with linear axes as an SVG document."""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    to_x = _scale(min(xs), max(xs), MARGIN, WIDTH - MARGIN / 3)
    to_y = _scale(min(*ys, 0.0), max(ys), HEIGHT - MARGIN, MARGIN / 2)
    shapes = [_label(WIDTH / 2, HEIGHT - 12, x_title), _label(MARGIN, 18, y_title, "start")]
    ticks = (min(xs), (min(xs) + max(xs)) / 2, max(xs))
    shapes += [_label(to_x(x), HEIGHT - MARGIN + 18, _text(x)) for x in ticks]
    for y in (min(*ys, 0.0), max(ys) / 2, max(ys)):
        shapes += [_label(MARGIN - 8, to_y(y) + 4, _text(y), "end"), _grid_line(to_y(y))]
    for number, (line, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in points)
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        shapes += [
            f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="3" fill="{colour}"/>'
            for x, y in points
        ]
        shapes.append(_label(WIDTH - 24, 34 + 16 * number, line, "end", colour))
    body = "\n".join(shapes)
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n'
        f'<rect {size} fill="white"/>\n{body}\n</svg>\n'
    )


def _scale(low: float, high: float, start: float, stop: float) -> Any:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def _label(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#333") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}">{escape(text)}</text>'


def _grid_line(y: float) -> str:
    place = f'x1="{MARGIN}" x2="{WIDTH - MARGIN / 3:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
    return f'<line {place} stroke="#ddd"/>'


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _find(document: Any, key: str) -> Any:
    """Return the first value of a key anywhere in a JSON document."""
    if isinstance(document, dict):
        if key in document:
            return document[key]
        children = list(document.values())
    else:
        children = document if isinstance(document, list) else []
    return next((found for child in children if (found := _find(child, key)) is not None), None)
