"""Charts: what plotly draws, as plain JSON, which is also the file behind each picture.

Colours are those of the light page; its script exchanges them for those of the dark one.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

LIGHT = (
    "#2563c9", "#b8480b", "#0d7a52", "#8b2fd0", "#b3265d", "#0b7285", "#806300", "#4b5563",
)  # fmt: skip
DARK = (
    "#7fb0ff", "#fb9d5f", "#55d3a3", "#cb98ff", "#ff8fb5", "#55cfe4", "#e6c84f", "#b1bccb",
)  # fmt: skip
"""Colours of runs, the same place in both: at least 4.5 to 1 against the page."""
STEPS_LIGHT = ("#5b21b6", "#3343c4", "#0369a1", "#0b7a6e", "#3f7d14", "#8a6400", "#b8480b")
STEPS_DARK = ("#c4b5fd", "#a5b4fc", "#7dd3fc", "#5eead4", "#a3e635", "#fde047", "#fdba74")
"""Colours of what has an order, such as noise levels."""
GREY = "#6b7280"
MOST_POINTS = 1000
"""Of a line; of more, every second, third, ... is drawn."""
NO_RUN = -1
MOST_IN_LEGEND = 6
DASHES = ("solid", "dash", "dot")


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What the legend says; any text.
        x: Places.
        y: Values; None leaves a gap.
        run: Number of its run on the page; NO_RUN if it is of none.
        colour: Of LIGHT or STEPS_LIGHT.
        low: Lower ends of the error bars; [] for none.
        high: Upper ends.
        notes: What is shown where the pointer is, besides the values; [] for nothing.
        mode: plotly's: lines, markers, or both.
        dash: plotly's: solid, dash or dot.
        symbol: plotly's marker, for all points or each.
        of_training: Whether x are the run's intervals, which can be shown over other clocks.
        in_legend: Whether the legend has it.
    """

    name: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    run: int = NO_RUN
    colour: str = LIGHT[0]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    notes: Sequence[str] = ()
    mode: str = "lines"
    dash: str = "solid"
    symbol: str | Sequence[str] = "circle"
    of_training: bool = False
    in_legend: bool = True


@dataclass(frozen=True)
class Bar:
    """Bars of one kind, stacked on those of others: a value for each label."""

    name: str
    labels: Sequence[str]
    values: Sequence[float]
    colour: str


@dataclass(frozen=True)
class Chart:
    """A picture of the page.

    Attributes:
        key: Name of its JSON file, unique on the page.
        title: What it shows.
        x_title: The horizontal axis, with its unit.
        y_title: The vertical axis, with its unit.
        series: What is drawn, the last on top.
        note: A sentence below the title.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis starts as logarithmic.
        run: Number of the run that it is about; NO_RUN if of several.
    """

    key: str
    title: str
    x_title: str
    y_title: str
    series: Sequence[Line | Bar]
    note: str = ""
    log_x: bool = False
    log_y: bool = False
    run: int = NO_RUN

    @property
    def of_training(self) -> bool:
        """Whether its lines can be shown over images, steps or hours."""
        return any(isinstance(part, Line) and part.of_training for part in self.series)

    @property
    def has_legend(self) -> bool:
        """Whether to show a legend; of many runs the page's choice of runs is one."""
        names = [p for p in self.series if isinstance(p, Bar) or p.in_legend]
        runs = {p.run for p in names if isinstance(p, Line)}
        return len(names) > 1 and len(runs) <= MOST_IN_LEGEND

    def figure(self) -> dict[str, Any]:
        """Return plotly's figure as JSON."""
        bars = any(isinstance(part, Bar) for part in self.series)
        x: dict[str, Any] = {"title": {"text": text(self.x_title)}} | _scale(self.log_x)
        y: dict[str, Any] = {"title": {"text": text(self.y_title)}}
        y |= {} if bars else _scale(self.log_y)
        y |= {"rangemode": "tozero"} if self._is_constant() else {}
        return {
            "data": [_bar(part) if isinstance(part, Bar) else _line(part) for part in self.series],
            "layout": {
                "title": {"text": text(self.title)},
                "xaxis": x,
                "yaxis": y,
                **({"barmode": "stack"} if bars else {}),
            },
        }

    def _is_constant(self) -> bool:
        """Whether all lines have one value, which plotly would draw between itself - 1 and + 1."""
        lines = [part for part in self.series if isinstance(part, Line)]
        return len({value for part in lines for value in part.y if value is not None}) == 1

    def described(self) -> str:
        """Return in words what the picture shows, for those who do not see it."""
        parts = []
        for part in self.series:
            values = part.values if isinstance(part, Bar) else part.y
            finite = [value for value in values if value is not None]
            if finite and isinstance(part, Line) and len(finite) > 1:
                parts.append(f"{part.name}: from {finite[0]:.4g} to {finite[-1]:.4g}")
            elif finite:
                parts.append(f"{part.name}: {', '.join(f'{value:.4g}' for value in finite)}")
        return f"{self.title}. {self.y_title} over {self.x_title}. {'; '.join(parts)}"


@dataclass
class Palette:
    """Colours by name, the next one for each new name."""

    taken: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        """Return the colour of a name."""
        return self.taken.setdefault(name, LIGHT[len(self.taken) % len(LIGHT)])


def with_unique_keys(groups: Sequence[Sequence[Chart]]) -> list[list[Chart]]:
    """Return charts with keys that are names of files and ids, each once, whatever metrics are."""
    taken: set[str] = set()
    return [[replace(chart, key=_free(chart.key, taken)) for chart in group] for group in groups]


def _free(key: str, taken: set[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", key)[:60]
    number = 1
    while (free := plain if number == 1 else f"{plain}-{number}") in taken:
        number += 1
    taken.add(free)
    return free


def steps(count: int) -> list[str]:
    """Return colours for so many values that have an order."""
    if count <= 1:
        return list(STEPS_LIGHT[1:2])
    last = len(STEPS_LIGHT) - 1
    return [STEPS_LIGHT[round(number * last / (count - 1))] for number in range(count)]


def colours(count: int) -> list[str]:
    """Return colours for so many things without an order; after the last the first again."""
    return [LIGHT[number % len(LIGHT)] for number in range(count)]


def dash(number: int) -> str:
    """Return the dashes of a run's lines, by which it differs from others of its colour."""
    return DASHES[number // len(LIGHT) % len(DASHES)]


def text(words: str) -> str:
    """Return a text as plotly takes it: it reads tags, which names must not have."""
    return html.escape(words, quote=False)


def thinned(count: int) -> slice:
    """Return which of so many points are drawn."""
    return slice(None, None, max(-(-count // MOST_POINTS), 1))


def _line(line: Line) -> dict[str, Any]:
    kept = thinned(len(line.x))
    y = [_finite(value) for value in line.y[kept]]
    symbol = line.symbol if isinstance(line.symbol, str) else list(line.symbol[kept])
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": text(line.name),
        "mode": line.mode if len(y) > 1 else "markers",
        "x": list(line.x[kept]),
        "y": y,
        "line": {"color": line.colour, "width": 1.8, "dash": line.dash},
        "marker": {"color": line.colour, "size": 7, "symbol": symbol},
        "meta": {"run": line.run, "training": line.of_training},
        "showlegend": line.in_legend,
    }
    if line.notes:
        trace |= {"text": [text(note) for note in line.notes[kept]]}
        trace |= {"hovertemplate": "%{x}, %{y}<br>%{text}"}
    if any(high > low for low, high in zip(line.low, line.high, strict=True)):
        bars = list(zip(line.y, line.low, line.high, strict=True))[kept]
        trace["error_y"] = {
            "type": "data", "symmetric": False, "color": line.colour, "thickness": 1.2, "width": 4,
            "array": [max(high - (value or 0.0), 0.0) for value, _, high in bars],
            "arrayminus": [max((value or 0.0) - low, 0.0) for value, low, _ in bars],
        }  # fmt: skip
    return trace


def _bar(bar: Bar) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": text(bar.name),
        "y": [text(label) for label in bar.labels],
        "x": list(bar.values),
        "marker": {"color": bar.colour},
        "meta": {"run": NO_RUN, "training": False},
        "hovertemplate": "%{x:.4g}",
    }


def _scale(is_log: bool) -> dict[str, Any]:
    return {"type": "log"} if is_log else {"type": "linear"}


def _finite(value: float | None) -> float | None:
    """Return a value with the digits that a picture can show, None if it is not finite."""
    return float(f"{value:.7g}") if value is not None and math.isfinite(value) else None
