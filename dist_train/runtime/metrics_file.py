"""`metrics.jsonl` of a run: one line per logging interval. All that read it do so by this."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.safe_files.json_lines import read_lines, write_lines

METRICS = "metrics.jsonl"
LARGEST = 1 << 62
"""Bound of whole numbers; those of a run are far below it."""


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run, [] if there are none yet; damaged ones are left out.

    Each has the integers `images_seen` and `step`; all other values are numbers or None.

    Raises:
        OSError: The file cannot be read.
    """
    return read_lines(run_dir / METRICS, _is_interval)


def cut_metrics(run_dir: Path, images_seen: int) -> None:
    """Drop the lines that a process wrote after the checkpoint at `images_seen`."""
    if (run_dir / METRICS).exists():
        lines = read_metrics(run_dir)
        kept = [line for line in lines if line["images_seen"] <= images_seen]
        write_lines(run_dir / METRICS, kept)


def _is_interval(line: Mapping[str, Any]) -> bool:
    clock = (line.get("images_seen"), line.get("step"))
    counts = all(isinstance(value, int) and value >= 0 for value in clock)
    return counts and all(value is None or _is_number(value) for value in line.values())


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and -LARGEST < value < LARGEST
    return isinstance(value, float)
