"""Figures of experiments: our values and, as stars and dashed lines, the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evaluation.results.plots import PUBLISHED_COLOUR, spans_decades
from slurm.paper.experiments import Experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {
    "sweep": ("eta", "eta"),
    "training": ("images seen", "images seen"),
    "budget": ("budget", "evaluations of stage 2"),
}
"""By the kind of an experiment, what its points are told apart by, and the name of that axis."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of an experiment's table.

    Attributes:
        method: Whose row it is.
        at: What tells it from the method's other rows: `eta`, `budget`, `images seen`.
        published: Published values by column.
        ours: Our values by column.
        source: Where the published values stand, and what they were read in.
        deviations: In what ours differ from the circumstances of the published.
    """

    method: str
    at: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    ours: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    deviations: tuple[str, ...] = ()


def draw(
    experiment: Experiment,
    title: str,
    lines: Sequence[Line],
    titles: Mapping[str, tuple[str, str]],
) -> Figure:
    """Return the figure of an experiment's first column.

    Args:
        experiment: The experiment.
        title: Its title.
        lines: The rows of its table.
        titles: By column, what the published value is called, and ours.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("figures need matplotlib: pip install 'relaywave[plots]'") from None
    column = experiment.columns[0]
    figure = Figure(figsize=(6.8, 4.4), layout="constrained")
    axes = figure.add_subplot()
    if experiment.kind in AXES:
        _draw_lines(axes, lines, column, *AXES[experiment.kind])
        axes.set_ylabel(_named(titles[column]))
    else:
        _draw_rows(axes, lines, column)
        axes.set_xlabel(_named(titles[column]))
    axes.set_title(title, fontsize="small", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
    return figure


def _named(titles: tuple[str, str]) -> str:
    published, ours = titles
    return published if published == ours else f"published: {published}; ours: {ours}"


def _draw_lines(axes: Axes, lines: Sequence[Line], column: str, key: str, label: str) -> None:
    """Draw the values of each method over an axis."""
    methods = dict.fromkeys(line.method for line in lines if key in line.at)
    for number, method in enumerate(methods):
        of_method = [line for line in lines if line.method == method]
        own = sorted(of_method, key=lambda line: line.at[key])
        styles: list[tuple[list[Mapping[str, float]], str, dict[str, Any]]] = [
            ([line.ours for line in own], "ours", {"marker": "o"}),
            ([line.published for line in own], "published", {"marker": "*", "linestyle": "--"}),
        ]
        for values, whose, style in styles:
            places = [
                (line.at[key], found[column])
                for line, found in zip(own, values, strict=True)
                if column in found
            ]
            if places:
                xs, ys = zip(*places, strict=True)
                axes.plot(xs, ys, color=f"C{number}", label=f"{method}, {whose}", **style)
    axes.set_xlabel(label)
    found = [values[column] for line in lines for values in (line.ours, line.published)
             if column in values]  # fmt: skip
    if found and spans_decades(found):
        axes.set_yscale("log")
    axes.grid(visible=True, color="0.9", linewidth=0.6)


def _draw_rows(axes: Axes, lines: Sequence[Line], column: str) -> None:
    """Draw a row for each method: our value and the published one."""
    shown = [line for line in lines if column in line.ours or column in line.published]
    for values, whose, style in (
        ([line.published.get(column) for line in shown], "published",
         {"marker": "*", "color": PUBLISHED_COLOUR, "markersize": 10}),
        ([line.ours.get(column) for line in shown], "ours", {"marker": "o", "color": "C0"}),
    ):  # fmt: skip
        places = [(x, y) for y, x in enumerate(values) if x is not None]
        if places:
            xs, ys = zip(*places, strict=True)
            axes.plot(xs, ys, linestyle="none", label=whose, **style)
    found = [v for line in shown for v in (line.ours.get(column), line.published.get(column))]
    drawn = [value for value in found if value is not None]
    if drawn and spans_decades(drawn):
        axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [line.method for line in shown], fontsize="small")
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x", which="both", color="0.9", linewidth=0.6)
