"""Plots of results: each metric over images seen, NFE and eta, as PNG and SVG.

Lines are results that differ in nothing but the axis. Error bars are a result's 95 % bootstrap
interval, or the range over results at the same place (a protocol's disjoint ranges of seeds).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.results.compare import AXES, axis_value, facts_of
from evaluation.results.repeats import values_over_ranges
from evaluation.results.result_file import Result
from evaluation.results.table import DETAILS
from models.analysis.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

LOG_TICKS = (1, 2, 5)
LOG_RATIO = 10
"""Axes whose values span more than this factor are logarithmic."""
BOUNDED = {"precision", "recall", "coverage"}
"""Values in [0, 1], which stay on a linear axis."""
BARS = "bars: 95 % bootstrap interval, or range over seeds"
PUBLISHED_COLOUR = "0.35"


@dataclass(frozen=True)
class Point:
    """A value at a place of the axis, with the ends of its error bar (equal to y for none)."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Anchor:
    """A published value, and its place on the axis if it has one (e.g. its eta)."""

    label: str
    value: float
    x: float | None = None


Name = tuple[str, str]
"""Metric and value, e.g. pr and recall."""
Lines = dict[str, list[Point]]
"""Points in ascending order of x, by the name of their line."""


def write_plots(results: Sequence[Result], out_dir: Path) -> list[Path]:
    """Write a plot of each value over each axis on which results differ; returns the files.

    Raises:
        ValueError: matplotlib is not installed.
    """
    written = []
    names = dict.fromkeys(name for result in results for name in value_names(result))
    for axis in AXES:
        for name in names:
            lines = lines_of(results, axis, name)
            if len({point.x for points in lines.values() for point in points}) > 1:
                figure = draw(lines, axis, name, published_values(results, name, axis))
                written += save_figure(figure, out_dir / _file_stem(axis, name))
    return written


def lines_of(results: Sequence[Result], axis: str, name: Name) -> Lines:
    """Return the points of each line: results that agree in all but the axis.

    Lines are named by what they differ in.
    """
    metric, value = name
    placed = [
        (facts_of(result, axis), x, result["metrics"][metric])
        for result in results
        if (x := axis_value(result, axis)) is not None
        and value in result["metrics"].get(metric, {"values": {}})["values"]
    ]
    varying = [
        key for key in facts_of(results[0], axis) if len({facts[key] for facts, _, _ in placed}) > 1
    ]
    found: dict[str, dict[float, list[Any]]] = {}
    for facts, x, measured in placed:
        line = ", ".join(f"{key} {facts[key]}" for key in varying) or facts["run"]
        found.setdefault(line, {}).setdefault(x, []).append(measured)
    return {
        line: [_point(x, measured, value) for x, measured in sorted(places.items())]
        for line, places in found.items()
    }


def _point(x: float, measured: Sequence[dict[str, Any]], value: str) -> Point:
    """Return the point of the results at one place: their mean and range, or one's interval.

    A result over ranges of seeds stands for them: its best value, and their range.
    """
    values = [float(metric["values"][value]) for metric in measured]
    if len(values) > 1:
        return Point(x, sum(values) / len(values), min(values), max(values))
    is_first = next(iter(measured[0]["values"])) == value
    interval = measured[0].get("interval95") if is_first else None
    over = values_over_ranges(measured[0], value) or values
    low, high = interval or (min(over), max(over))
    return Point(x, values[0], float(low), float(high))


def published_values(results: Sequence[Result], name: Name, axis: str = "") -> list[Anchor]:
    """Return the published values of a metric that stand next to the results, each once."""
    found = []
    for protocol in (result["protocol"] for result in results if result["protocol"]):
        value = protocol["published"].get(".".join(name))
        if value is not None:
            label = ", ".join(filter(None, (protocol["name"], protocol.get("source"))))
            place = protocol.get("circumstances", {}).get(axis)
            is_place = isinstance(place, float | int)
            found.append(Anchor(label, float(value), float(place) if is_place else None))
    return list(dict.fromkeys(found))


def draw(lines: Lines, axis: str, name: Name, published: Sequence[Anchor] = ()) -> Figure:
    """Return a line plot with error bars, and published values as stars.

    A dashed line leads to those that have no place on the axis.

    Args:
        lines: The points.
        axis: What the horizontal axis is, one of AXES.
        name: Metric and value.
        published: Published values.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'relaywave[plots]'") from None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for line, points in lines.items():
        _draw_line(axes, line, points)
    for anchor in published:
        _draw_published(axes, anchor, max(p.x for ps in lines.values() for p in ps))
    points = [point for line in lines.values() for point in line]
    xs = [*(p.x for p in points), *(a.x for a in published if a.x is not None)]
    _label_axes(axes, axis, name, xs, points, [anchor.value for anchor in published])
    if len(lines) > 1 or published:
        axes.legend(frameon=False, fontsize="small")
    return figure


def _draw_line(axes: Axes, line: str, points: Sequence[Point]) -> None:
    xs, ys = [point.x for point in points], [point.y for point in points]
    below = [max(point.y - point.low, 0.0) for point in points]
    above = [max(point.high - point.y, 0.0) for point in points]
    bars = [below, above] if any(below + above) else None
    axes.errorbar(xs, ys, bars, label=line, marker="o", markersize=4, linewidth=1.4, capsize=3)


def _draw_published(axes: Axes, anchor: Anchor, end: float) -> None:
    if anchor.x is None:
        axes.axhline(anchor.value, color=PUBLISHED_COLOUR, linestyle="--", linewidth=1, zorder=1)
    axes.plot(
        [end if anchor.x is None else anchor.x], [anchor.value], marker="*", markersize=11,
        color=PUBLISHED_COLOUR, linestyle="none",
        label=f"published ({anchor.label}): {anchor.value:g}",
    )  # fmt: skip


def _label_axes(
    axes: Axes,
    axis: str,
    name: Name,
    xs: Sequence[float],
    points: Sequence[Point],
    published: Iterable[float],
) -> None:
    from matplotlib.ticker import EngFormatter, StrMethodFormatter

    metric, value = name
    plain = StrMethodFormatter("{x:g}")
    axes.set_xlabel(axis)
    axes.set_ylabel(metric if value in ("distance", "score") else f"{metric}: {value}")
    x_format = EngFormatter(sep="") if axis == "images seen" else plain
    if spans_decades(xs):
        axes.set_xscale("log")
        _set_log_ticks(axes.xaxis)
    axes.xaxis.set_major_formatter(x_format)
    ends = [y for point in points for y in (point.low, point.y, point.high)]
    if value not in BOUNDED and spans_decades([*ends, *published]):
        axes.set_yscale("log")
        _set_log_ticks(axes.yaxis)
    axes.yaxis.set_major_formatter(plain)
    if any(point.low < point.high for point in points):
        axes.set_title(BARS, fontsize="small", color=PUBLISHED_COLOUR, loc="left")
    axes.grid(visible=True, which="both", color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def spans_decades(values: Iterable[float]) -> bool:
    """Tell whether values are better seen on a logarithmic axis."""
    values = list(values)
    return min(values) > 0 and max(values) / min(values) > LOG_RATIO


def _set_log_ticks(axis: Axis) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=LOG_TICKS))
    axis.set_minor_formatter(NullFormatter())


def _file_stem(axis: str, name: Name) -> str:
    metric, value = name
    text = metric if value in ("distance", "score") else f"{metric}.{value}"
    return f"{text}_by_{axis.replace(' ', '_').lower()}"


def value_names(result: Result) -> list[Name]:
    """Return (metric, value) of all values but the details."""
    return [
        (name, value)
        for name, metric in result["metrics"].items()
        for value in metric["values"]
        if not DETAILS.fullmatch(value)
    ]
