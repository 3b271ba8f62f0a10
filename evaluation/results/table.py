"""The comparison table of results, and what its numbers may be compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from evaluation.circumstances import circumstances, measurement
from evaluation.metrics.registry import name_by
from evaluation.results.formats import Block, render, write_csv
from evaluation.results.repeats import values_over_ranges
from evaluation.results.result_file import Result

DETAILS = re.compile(r"std|slope|dimensions|worst_class|class_\d+")
"""Values that results hold and tables do not show as values."""
NO_MATTER = {"seeds"}
"""Circumstances in which results may differ and still be compared."""


FIRST_COLUMN = "model"
Places = Sequence[Mapping[str, str]]
"""For each result its values on the axes of a grid, by setting; [] without a grid."""


def format_table(results: Sequence[Result], form: str = "text", places: Places = ()) -> str:
    """Return the tables of results in one of `formats.FORMS`."""
    if form == "csv":
        return to_csv(results, places)
    return render(table_blocks(results, places), form)


def table_blocks(results: Sequence[Result], places: Places = ()) -> list[Block]:
    """Return a table with one row per result and a closing line about comparability.

    Published values stand in tables of their own, with all deviations from their circumstances.

    Args:
        results: The results.
        places: Their places in a grid, which has a column for each axis.
    """
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    axes = list(dict.fromkeys(chain(*places)))
    header = [FIRST_COLUMN, *axes, "images seen", "n", *short_names(names, results)]
    header += ["sampling s", "evaluation s"]
    rows = [
        [
            str(result["title"]),
            *(place.get(axis, "-") for axis in axes),
            _seen(result),
            str(result["images"]["num_images"]),
            *(_value(result, name) for name in names),
            *_times(result),
        ]
        for result, place in zip(results, places or repeat({}), strict=False)
    ]
    published = [block for result in results if (block := _published(result))]
    return [Block([header, *rows]), *published, closing(results)]


def to_csv(results: Sequence[Result], places: Places = ()) -> str:
    """Return a line per result: axes, values, published values, deviations, circumstances."""
    note = " ".join(closing(results).notes)
    rows = zip(results, places or repeat({}), strict=False)
    return write_csv([_csv_row(result, place) | {"comparable": note} for result, place in rows])


def _csv_row(result: Result, place: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {FIRST_COLUMN: result["title"], **place, "images seen": _seen(result)}
    row["nfe"] = result["nfe"]
    for name, metric in result["metrics"].items():
        row |= {f"{name}.{key}": value for key, value in metric["values"].items()}
        for key in metric["values"]:
            if over := values_over_ranges(metric, key):
                row[f"{name}.{key} mean"] = sum(over) / len(over)
        if "interval95" in metric:
            row[f"{name} low"], row[f"{name} high"] = metric["interval95"]
        row[f"images of {name}"] = metric.get("n_gen")
    if protocol := result["protocol"]:
        row |= {"protocol": protocol["name"], "source": protocol.get("source", "")}
        row |= {f"published {key}": value for key, value in protocol["published"].items()}
        row["deviations"] = "; ".join(protocol["deviations"])
    return row | circumstances(result)


def closing(results: Sequence[Result]) -> Block:
    """Return what the numbers may be compared with, what rests on fewer images, and warnings."""
    notes = [*_parts(results), *_over_ranges(results), *_unknown_sizes(results)]
    return Block([], [comparability(results), *notes])


def _over_ranges(results: Sequence[Result]) -> list[str]:
    """Say of which ranges of seeds values are the best."""
    ranges = [[repeat["seeds"] for repeat in result.get("repeats", ())] for result in results]
    return [
        f"{title}: each value is that of the best of the seeds {', '.join(seeds)}."
        for title, seeds in dict.fromkeys(
            (str(result["title"]), tuple(seeds))
            for result, seeds in zip(results, ranges, strict=True)
        )
        if seeds
    ]


def format_repeats(results: Sequence[Result]) -> str:
    """Return mean and minimum over disjoint ranges of seeds; "" where there is one range."""
    ranges: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        protocol = result["protocol"] or {"name": ""}
        ranges.setdefault((protocol["name"], label_of(result)), []).append(result)
    return "".join(_summed_up(group) for group in ranges.values() if group[1:])


def _summed_up(results: Sequence[Result]) -> str:
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
    """Say in one line what the numbers are comparable to and what not, and why."""
    facts = [measurement(r) | {"ranges of seeds": len(r.get("repeats", ())) or 1} for r in results]
    names = [name for name in dict.fromkeys(chain(*facts)) if name not in NO_MATTER]
    found = {name: [fact.get(name) for fact in facts] for name in names}
    different = [
        f"{name} ({', '.join(dict.fromkeys(map(str, known)))})"
        for name, values in found.items()
        if len({*(known := [v for v in values if v is not None])}) > 1
    ]
    if different:
        return f"NOT comparable with each other: these results differ in {', '.join(different)}."
    lacking = [name for name, values in found.items() if None in values]
    as_far = f", as far as recorded (not by all: {', '.join(lacking)})" if lacking else ""
    among = (
        f"Comparable with each other (same reference, detector and n{as_far}) and "
        if results[1:]
        else ""
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


def _parts(results: Sequence[Result]) -> list[str]:
    """Say which metrics use fewer images than were evaluated, a line for each number of them."""
    names: dict[tuple[int, int], dict[str, None]] = {}
    for result in results:
        total = int(result["images"]["num_images"])
        for name, metric in result["metrics"].items():
            used = metric.get("n_gen")
            if used is not None and used < total:
                names.setdefault((used, total), {})[name] = None
    return [
        f"Of {used} of the {total} images: {', '.join(short_names([*found], results))}."
        for (used, total), found in names.items()
    ]


def _unknown_sizes(results: Sequence[Result]) -> list[str]:
    """Warn of references that do not record how many images they are made of."""
    sources = {
        result["reference"].get("source") for result in results if not result["reference"]["n"]
    }
    return [
        f"Warning: {source} does not record how many images it was made of; distances depend on it."
        for source in sorted(map(str, sources))
    ]


def _published(result: Result) -> Block | None:
    """Return the published values next to ours, and in what ours deviate, if there are any."""
    protocol = result["protocol"]
    if not protocol:
        return None
    source = f" ({protocol['source']})" if protocol.get("source") else ""
    rows = [[f"{protocol['name']}{source}", "ours", "published"]]
    for key, value in protocol["published"].items():
        name, ours = counterpart(result, key)
        rows.append([name, "-" if ours is None else f"{ours:.4g}", f"{value:g}"])
    notes = [f"Deviation: {text}." for text in protocol["deviations"]]
    return Block(rows if rows[1:] else [], notes) if rows[1:] or notes else None


def counterpart(result: Result, key: str) -> tuple[str, float | None]:
    """Return our name and value of a published value."""
    metric, _, value = key.partition(".")
    if result["detector"].get("weights") == "unknown":
        metric = name_by(metric, label_of(result))
    ours = result["metrics"].get(metric, {"values": {}})["values"].get(value)
    return f"{metric}.{value}", ours


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
    if over := values_over_ranges(metric, next(iter(values))):
        texts[0] += f" (best of {len(over)}, mean {sum(over) / len(over):.4g})"
    return " / ".join(texts)


def _times(result: Result) -> list[str]:
    seconds = result["seconds"]
    metrics = sum(metric.get("seconds", 0.0) for metric in result["metrics"].values())
    sampling = seconds["sampling"]
    total = seconds["features"] + metrics
    return ["-" if sampling is None else f"{sampling:.1f}", f"{total:.1f}"]
