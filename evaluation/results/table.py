"""The comparison table of results, and what its numbers may be compared with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from evaluation.results.result_file import Result

DETAILS = re.compile(r"std|slope|dimensions|worst_class|class_\d+")
"""Values that results hold and tables do not show as values."""


def format_table(results: Sequence[Result]) -> str:
    """Return a table with one row per result and a closing line about comparability."""
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    header = ["model", "images seen", "n", *short_names(names, results)]
    header += ["sampling s", "evaluation s"]
    rows = [
        [
            str(result["title"]),
            _seen(result),
            str(result["images"]["num_images"]),
            *(_value(result, name) for name in names),
            *_times(result),
        ]
        for result in results
    ]
    blocks = [align([header, *rows]), *(_published(result) for result in results)]
    return "\n\n".join([*filter(None, blocks), comparability(results) + _unknown_sizes(results)])


def format_repeats(results: Sequence[Result]) -> str:
    """Return mean and minimum over disjoint ranges of seeds; "" for one result."""
    if len(results) < 2:
        return ""
    lines = []
    for name, metric in results[0]["metrics"].items():
        for key in metric["values"]:
            values = [result["metrics"][name]["values"][key] for result in results]
            mean = sum(values) / len(values)
            lines.append(f"{name}.{key}: mean {mean:.4g}, minimum {min(values):.4g}")
    return "\n\n" + "\n".join([f"Over {len(results)} ranges of seeds:", *lines])


def short_names(names: Sequence[str], results: Sequence[Result]) -> list[str]:
    """Return `fd:block4` for `fd_effnet_lite0_block4` where all results share the detector."""
    detectors = {label_of(result) for result in results}
    mark = f"_{detectors.pop()}_" if len(detectors) == 1 else "\n"
    return [name.replace(mark, ":") for name in names]


def comparability(results: Sequence[Result]) -> str:
    """Say in one line what the numbers are comparable to and what not."""
    facts = [_comparison_facts(result) for result in results]
    different = [what for what in facts[0] if any(fact[what] != facts[0][what] for fact in facts)]
    if different:
        return (
            f"NOT comparable with each other: these results have different {', '.join(different)}."
        )
    among = (
        "Comparable with each other (same reference, detector and n) and " if results[1:] else ""
    )
    text = among + scope(results[0])
    return text[0].upper() + text[1:]


def scope(result: Result) -> str:
    """Say what one result may be compared with beyond its own table."""
    detector, n = result["detector"], result["images"]["num_images"]
    if label_of(result) == "inception":
        return (
            f"comparable with numbers of the preprocessing {detector['pipeline']}, this reference"
            f" and n = {n}; not with those of another preprocessing, reference or n."
        )
    return (
        f"comparable with other distances of {detector['name']} features ({detector['pipeline']}),"
        f" same tap, reference and n = {n}; these are not FIDs, comparable with no published FID."
    )


def label_of(result: Result) -> str:
    """Return the detector's name in names of metrics; old results have no other than its name."""
    detector = result["detector"]
    return str(detector.get("label", detector["name"]))


def models_of(result: Result) -> list[dict[str, Any]]:
    """Return the descriptions of the models that made the images; empty for other images."""
    source = result["samples"] or result["images"]
    models: list[dict[str, Any]] = source.get("models", [])
    return models


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as text columns, the first row as header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _unknown_sizes(results: Sequence[Result]) -> str:
    """Warn of references that do not record how many images they are made of."""
    sources = {
        result["reference"].get("source") for result in results if not result["reference"]["n"]
    }
    return "".join(
        f"\nWarning: {source} does not record how many images it was made of; distances"
        " depend on it."
        for source in sorted(map(str, sources))
    )


def _comparison_facts(result: Result) -> dict[str, Any]:
    return {
        "references": result["reference"]["digest"],
        "detectors or preprocessing": result["detector"],
        "numbers of images": result["images"]["num_images"],
    }


def _published(result: Result) -> str:
    """Return the protocol's published values next to ours."""
    protocol = result["protocol"]
    if not protocol or not protocol["published"]:
        return ""
    rows = [[f"{protocol['name']}", "ours", "published"]]
    for key, value in protocol["published"].items():
        metric, _, name = key.partition(".")
        ours = result["metrics"].get(metric, {"values": {}})["values"].get(name)
        rows.append([key, "-" if ours is None else f"{ours:.4g}", f"{value:g}"])
    deviations = "".join(f"\nDeviation: {text}." for text in protocol["deviations"])
    return align(rows) + deviations


def _seen(result: Result) -> str:
    seen = [int(model["images_seen"]) for model in models_of(result)]
    if not seen:
        return "-"
    return "+".join(map(str, seen)) if any(seen) else "untrained"


def _value(result: Result, name: str) -> str:
    """Return a metric's values, the first with its interval, without DETAILS."""
    metric = result["metrics"].get(name)
    if metric is None:
        return "-"
    values = {k: v for k, v in metric["values"].items() if not DETAILS.fullmatch(k)}
    texts = [f"{value:.4g}" for value in values.values()]
    if "std" in metric["values"]:
        texts[0] += f" ± {metric['values']['std']:.2g}"
    if "interval95" in metric:
        low, high = metric["interval95"]
        texts[0] += f" [{low:.4g}, {high:.4g}]"
    return " / ".join(texts)


def _times(result: Result) -> list[str]:
    seconds = result["seconds"]
    metrics = sum(metric.get("seconds", 0.0) for metric in result["metrics"].values())
    sampling = seconds["sampling"]
    total = seconds["features"] + metrics
    return ["-" if sampling is None else f"{sampling:.1f}", f"{total:.1f}"]
