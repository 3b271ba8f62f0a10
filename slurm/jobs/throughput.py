"""Measured throughput of runs: to check time limits, and for goodput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.runtime.metrics_file import METRICS, read_metrics
from dist_train.runtime.run_files import read_summary
from models.config_io import ConfigError
from slurm.jobs.records import JobDir
from slurm.resources import Resources
from slurm.site import Site

RATE = "speed/images_per_second"


@dataclass(frozen=True)
class Throughput:
    """A throughput in images per second, and where it is from."""

    images_per_second: float
    source: str

    def __post_init__(self) -> None:
        if not self.images_per_second > 0:
            raise ValueError(f"images per second={self.images_per_second} must be positive")


def known_throughput(run_dir: Path, recipe: str, ranks: int) -> Throughput | None:
    """Return the throughput of a run, or else of one of its recipe in the same parent directory.

    It is scaled in proportion to the number of ranks. None if nothing was measured.
    """
    siblings = sorted(path.parent for path in run_dir.parent.glob(f"*/{METRICS}"))
    for other in (run_dir, *siblings):
        rates = [line[RATE] for line in read_metrics(other) if line.get(RATE)]
        if rates and _recipe_of(other) == recipe:
            records = [r for r in JobDir(other).records() if r.kind == "train"]
            measured_on = records[-1].resources.world_size if records else ranks
            return Throughput(rates[-1] * ranks / measured_on, f"measured by {other.name}")
    return None


def _recipe_of(run_dir: Path) -> str:
    try:
        return read_summary(run_dir).recipe
    except (OSError, ConfigError):
        return ""


def check_time(
    resources: Resources, site: Site, every_images: int, throughput: Throughput | None
) -> float:
    """Check that a start of the job reaches at least its next checkpoint.

    Args:
        resources: The request; its shortest acceptable time limit counts.
        site: The site profile.
        every_images: Interval of checkpoints in images.
        throughput: Measured or expected; None if unknown.

    Returns:
        The seconds that a start has before it is stopped.

    Raises:
        ValueError: The time limit is too short.
    """
    limit = resources.min_minutes or resources.minutes
    option = "--time-min" if resources.min_minutes else "--time"
    margin = resources.margin(site)
    seconds = limit * 60 - margin
    if seconds <= 0:
        raise ValueError(
            f"{option}={limit} minutes: signal_seconds={margin} before the limit leave no time"
            " to train"
        )
    if throughput and every_images / throughput.images_per_second > seconds:
        needed = every_images / throughput.images_per_second + margin
        raise ValueError(
            f"{option}={limit} minutes is below one checkpoint interval:"
            f" {every_images:,} images at {throughput.images_per_second:.4g} images/s"
            f" ({throughput.source}) and the margin before the limit take"
            f" {needed / 60:.0f} minutes; ask for more time, or lower checkpoint.every_images"
        )
    return seconds


def productive_seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of the steps in a run's metrics.

    Steps that were lost and repeated are in the metrics once, so lost time does not count.
    """
    seconds, before = 0.0, 0
    for line in lines:
        if line.get(RATE):
            seconds += (line["images_seen"] - before) / line[RATE]
        before = line["images_seen"]
    return seconds
