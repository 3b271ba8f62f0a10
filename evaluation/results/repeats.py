"""The result over a protocol's ranges of seeds: of each metric, that of the range where it is best.

It is a result of its own beside those of the ranges, and holds all their values: what waits for one
file, or shows one row, needs no other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dist_train.runtime.world import World
from evaluation.digest import short_hash
from evaluation.disk import file_lock, lock_path
from evaluation.results.result_file import Result, read_result, start_result, write_result

RANGES = "ranges of seeds"


def best_of(results: Sequence[Result], count: int, highest: Collection[str] = ()) -> Result:
    """Return the result over ranges of seeds.

    A metric is that of the range with the lowest first value, as EDM's papers report FID; all
    ranges' are in its `ranges`. Metrics that a range lacks are left out.

    Args:
        results: One of each range, in order; the first one alone gives the identity already.
        count: How many ranges there are.
        highest: Names of the metrics of which the highest value is the best.
    """
    first = results[0]
    made_of = first["made_of"] | {RANGES: count}
    names = [name for name in first["metrics"] if all(name in r["metrics"] for r in results)]
    return first | {
        "identity": short_hash(made_of),
        "made_of": made_of,
        "metrics": {name: _best(name, results, name in highest) for name in names},
        "seconds": _summed([result["seconds"] for result in results]),
        "repeats": [{"seeds": _seeds(r), "identity": r["identity"]} for r in results],
    }


def write_best(out: Path, best: Result, world: World, *, replace: bool = False) -> None:
    """Write the result over all ranges of seeds, unless it is there. Collective.

    Raises:
        ValueError: The file holds the result of another request, or is none.
    """
    with file_lock(lock_path(out), world):
        start_result(out, best, world, replace=replace)
        if world.rank == 0 and not _holds(out, best):
            write_result(out, best)
        world.barrier()


def _holds(out: Path, best: Result) -> bool:
    """Tell whether a file holds a result with its values; then it stays as it is."""
    found = read_result(out) if out.exists() else {}
    return all(found.get(name) == best[name] for name in ("identity", "metrics"))


def _best(name: str, results: Sequence[Result], is_highest: bool) -> dict[str, Any]:
    by_range = {_seeds(result): result["metrics"][name] for result in results}
    best = (max if is_highest else min)(by_range.values(), key=_first_value)
    seconds = sum(metric.get("seconds", 0.0) for metric in by_range.values())
    return {**best, "seconds": round(seconds, 3), "ranges": by_range}


def _first_value(metric: dict[str, Any]) -> float:
    return float(next(iter(metric["values"].values())))


def _seeds(result: Result) -> str:
    return str(result["images"]["seeds"])


def _summed(seconds: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    totals: dict[str, float | None] = {}
    for name in seconds[0]:
        known = [value for each in seconds if (value := each[name]) is not None]
        totals[name] = round(sum(known), 3) if known else None
    return totals


def values_over_ranges(metric: dict[str, Any], value: str) -> list[float]:
    """Return a value of a metric in each range of seeds; [] where there is one range."""
    return [float(entry["values"][value]) for entry in metric.get("ranges", {}).values()]
