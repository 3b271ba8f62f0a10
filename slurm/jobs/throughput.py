"""What runs have measured of themselves: the speed to judge a time limit by, productive time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.jobs.records import JobFolder, read_lines
from slurm.resources import Resources
from slurm.site import Site

RATE = "speed/images_per_second"


@dataclass(frozen=True)
class Speed:
    """A speed in images per second, and how it is known."""

    images_per_second: float
    source: str

    def __post_init__(self) -> None:
        if not self.images_per_second > 0:
            raise ValueError(f"images per second={self.images_per_second} must be positive")


def known_speed(run_dir: Path, recipe: str, ranks: int) -> Speed | None:
    """Return the speed that a run last had, or else one of its recipe beside it; None without any.

    One that was measured on another number of ranks is taken to grow with it.
    """
    beside = sorted(path.parent for path in run_dir.parent.glob("*/metrics.jsonl"))
    for folder in (run_dir, *beside):
        rates = [line[RATE] for line in read_lines(folder / "metrics.jsonl") if line.get(RATE)]
        if rates and _recipe_of(folder) == recipe:
            records = [r for r in JobFolder(folder).records() if r.kind == "train"]
            measured_on = records[-1].resources.world_size if records else ranks
            return Speed(rates[-1] * ranks / measured_on, f"measured by {folder.name}")
    return None


def _recipe_of(run_dir: Path) -> str:
    try:
        return str(json.loads((run_dir / "config.json").read_text())["recipe"])
    except (OSError, ValueError, KeyError):
        return ""


def check_time(
    resources: Resources, site: Site, checkpoint_images: int, speed: Speed | None
) -> float:
    """Check that a start of the job gets at least one checkpoint further.

    Args:
        resources: The request; the shortest time limit that it would take counts.
        site: The site profile.
        checkpoint_images: Interval of checkpoints in images.
        speed: Measured or expected; None if nothing is known.

    Returns:
        The seconds that a start has for it.

    Raises:
        ValueError: The time limit is too short.
    """
    limit = resources.min_minutes or resources.minutes
    option = "--time-min" if resources.min_minutes else "--time"
    seconds = limit * 60 - site.signal_seconds
    if seconds <= 0:
        raise ValueError(
            f"{option}={limit} minutes: the site's signal_seconds={site.signal_seconds}"
            " before the limit leave no time to train"
        )
    if speed and checkpoint_images / speed.images_per_second > seconds:
        needed = checkpoint_images / speed.images_per_second + site.signal_seconds
        raise ValueError(
            f"{option}={limit} minutes is below one checkpoint interval:"
            f" {checkpoint_images:,} images at {speed.images_per_second:.4g} images/s"
            f" ({speed.source}) and the margin before the limit take {needed / 60:.0f} minutes;"
            " ask for more time, or lower checkpoint_images"
        )
    return seconds


def productive_seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the time that the steps of a run took that count: those in its metrics.

    Steps that were lost and done again are in the metrics once, so their first time is no progress.
    """
    seconds, before = 0.0, 0
    for line in lines:
        if line.get(RATE):
            seconds += (line["images_seen"] - before) / line[RATE]
        before = line["images_seen"]
    return seconds
