"""Results over training: metrics over images seen, NFE and eta, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.results.formats import Block, render
from evaluation.results.result_file import Result
from evaluation.results.table import closing, models_of, short_names, to_csv

AXES = ("images seen", "NFE", "eta")


def axis_value(result: Result, axis: str) -> float | None:
    """Return a result's position on an axis, None if it has none."""
    models = models_of(result)
    if axis == "NFE":
        return None if result["nfe"] is None else float(result["nfe"])
    if not models:
        return None
    if axis == "images seen":
        return float(models[-1]["images_seen"])
    eta = _find(models[-1]["objective"], "eta")
    return None if eta is None else float(eta)


def format_comparison(results: Sequence[Result], form: str = "text") -> str:
    """Return one row per result and value, ordered by images seen.

    Args:
        results: The results.
        form: One of `formats.FORMS`.
    """
    ordered = sorted(results, key=lambda r: axis_value(r, "images seen") or 0.0)
    if form == "csv":
        return to_csv(ordered)
    names = list(dict.fromkeys(name for result in results for name in values_of(result)))
    header = ["model", *AXES, "n", *short_names(names, results)]
    rows = [
        [
            str(result["title"]),
            *(_text(axis_value(result, axis)) for axis in AXES),
            str(result["images"]["num_images"]),
            *(_text(values_of(result).get(name)) for name in names),
        ]
        for result in ordered
    ]
    return render([Block([header, *rows]), closing(results)], form)


def values_of(result: Result) -> dict[str, float]:
    """Return all values of a result by `metric` or `metric.value`."""
    flat = {}
    for name, metric in result["metrics"].items():
        for key, value in metric["values"].items():
            flat[name if len(metric["values"]) == 1 else f"{name}.{key}"] = float(value)
    return flat


def facts_of(result: Result, axis: str) -> dict[str, str]:
    """Return what lines of a plot over an axis may differ in."""
    facts = {
        "run": run_name(result),
        "detector": f"{result['detector']['name']}/{result['detector']['pipeline']}",
        "n": str(result["images"]["num_images"]),
        "reference": str(result["reference"]["digest"])[:6],
        "ranges of seeds": str(len(result.get("repeats", ())) or 1),
    }
    others = {name: _text(axis_value(result, name)) for name in AXES if name != axis}
    return facts | others


def run_name(result: Result) -> str:
    """Return the name of the run that a result's model comes from, else the result's title."""
    models = models_of(result)
    path = Path(models[-1].get("path", "")) if models else Path()
    run = path.parent.parent.name if path.parent.name == "snapshots" else ""
    return run or str(result["title"])


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
