"""The comparison table of results, and what its numbers may be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]


def format_table(results: Sequence[Result]) -> str:
    """Return a table with one row per result and a closing line about comparability."""
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    header = ["model", "images seen", "n", *names, "sampling s", "evaluation s"]
    rows = [
        [_title(r), _seen(r), _count(r), *(_value(r, n) for n in names), *_times(r)]
        for r in results
    ]
    return _align([header, *rows]) + "\n\n" + comparability(results)


def comparability(results: Sequence[Result]) -> str:
    """Say in one line what the numbers are comparable to and what not."""
    facts = [_comparison_facts(result) for result in results]
    unlike = [what for what in facts[0] if any(fact[what] != facts[0][what] for fact in facts)]
    if unlike:
        return (
            f"NOT comparable with each other: these results have different {' and '.join(unlike)}."
        )
    return "Comparable with each other (one reference, detector and n) and " + scope(results[0])


def _comparison_facts(result: Result) -> dict[str, Any]:
    return {
        "references": result["reference"]["digest"],
        "detectors": result["detector"],
        "numbers of images": result["images"]["num_images"],
    }


def scope(result: Result) -> str:
    """Say what one result may be compared with beyond its own table."""
    detector, n = result["detector"], result["images"]["num_images"]
    if detector["name"] == "inception":
        return (
            f"with published numbers of the {detector['pipeline']} pipeline, this reference and"
            f" n = {n} only."
        )
    return (
        f"with other {detector['name']} distances of the same tap, reference and n = {n}; they are"
        " no FID: not comparable with any published FID."
    )


def _title(result: Result) -> str:
    return str(result["title"])


def _models(result: Result) -> list[dict[str, Any]]:
    source = result["samples"] or result["images"]
    models: list[dict[str, Any]] = source.get("models", [])
    return models


def _seen(result: Result) -> str:
    models = _models(result)
    if not models:
        return "-"
    seen = [int(model["images_seen"]) for model in models]
    return "untrained" if not any(seen) else "+".join(map(str, seen))


def _count(result: Result) -> str:
    return str(result["images"]["num_images"])


def _value(result: Result, name: str) -> str:
    metric = result["metrics"].get(name)
    if metric is None:
        return "-"
    return " / ".join(f"{value:.4g}" for value in metric["values"].values())


def _times(result: Result) -> list[str]:
    seconds = result["seconds"]
    metrics = sum(metric["seconds"] for metric in result["metrics"].values())
    generation = seconds["generation"]
    return [
        "-" if generation is None else f"{generation:.1f}",
        f"{seconds['features'] + metrics:.1f}",
    ]


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
