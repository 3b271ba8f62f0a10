"""Results of scheduled evaluation, and what follows from them.

The best snapshot is marked; training stops early; old snapshots are removed.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dist_train.monitoring.evaluations import all_values
from models.config_io import did_you_mean
from models.safe_files.atomic import NotOurs, remove_directory
from models.safe_files.documents import Format
from slurm.continuous_eval.leases import Work
from slurm.continuous_eval.schedule import EvaluationSchedule, snapshots
from slurm.jobs.jobs import STOP
from slurm.jobs.records import STOPS, JobDir, say_once
from slurm.slurm_cli import queued, run_slurm

MAX_SEEN = 1 << 62


@dataclass(frozen=True)
class Best:
    """The best snapshot of a run: its images seen, by which value, among how many."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    images_seen: int
    key: str
    value: float
    of: int

    def __post_init__(self) -> None:
        if not (0 <= self.images_seen < MAX_SEEN and math.isfinite(self.value)):
            raise ValueError(f"images_seen={self.images_seen} or value={self.value} is impossible")


BEST = Format(schema=Best, remedy="remove it; it is written again")


def values(run_dir: Path, key: str) -> dict[int, float]:
    """Return {images seen: value} of all results, for a key like `protocol:metric.value`."""
    protocol, _, path = key.partition(":")
    return {
        images: row[f"{protocol}/{path}"]
        for (images, name), row in all_values(run_dir).items()
        if name == protocol and f"{protocol}/{path}" in row
    }


def mark_best(run_dir: Path, schedule: EvaluationSchedule) -> int | None:
    """Note the best snapshot that exists in `evaluation/best.json`; returns its images seen.

    Results outlive their snapshots. One that is gone cannot be the best: all others would be
    removed for its sake.
    """
    results = values(run_dir, schedule.best) if schedule.best else {}
    if not results:
        _say_what_there_is(run_dir, schedule.best)
        return None
    existing = set(snapshots(run_dir))
    found = {images: value for images, value in results.items() if images in existing}
    if not found:
        return None
    best = (max if schedule.highest else min)(found, key=lambda images: (found[images], images))
    fields = {"images_seen": best, "key": schedule.best, "value": found[best], "of": len(found)}
    BEST.write(run_dir / "evaluation" / "best.json", fields)
    return best


def _say_what_there_is(run_dir: Path, key: str) -> None:
    """Say so if no result has the value that the best snapshot is chosen by."""
    protocol = key.partition(":")[0]
    rows = [row for (_, name), row in all_values(run_dir).items() if name == protocol]
    if key and rows:
        known = [name.replace("/", ":", 1) for name in rows[-1]]
        say_once(
            f"best={key!r} is in none of the {len(rows)} results of {run_dir}, so that no snapshot"
            f" is removed, and training not stopped; they have {', '.join(known)}"
            f"{did_you_mean(key, known)}; correct it by"
            " `relaywave slurm reconcile --plan`"
        )


def stop_early(run_dir: Path, schedule: EvaluationSchedule, best: int | None) -> None:
    """Stop training for good if its last evaluated snapshots were not better."""
    stop = JobDir(run_dir).slurm_dir / STOP
    if not schedule.patience or best is None or stop.exists():
        return
    later = [images for images in values(run_dir, schedule.best) if images > best]
    if len(later) < schedule.patience:
        return
    why = f"{len(later)} snapshots after the one at {best:,} images were not better"
    STOPS.write(stop, {"why": why, "time": time.time()})
    records = [r for r in JobDir(run_dir).records() if r.kind == "train" and r.cluster == "slurm"]
    queue = queued(r.job_id for r in records) if records else {}
    for job_id, job in (pair for record in records for pair in record.queued(queue).items()):
        if job.state == "RUNNING":  # saves, sees the file, and does not requeue itself
            run_slurm(["scancel", "--signal=USR2", job_id])
        else:
            run_slurm(["scancel", job_id])


def prune(run_dir: Path, schedule: EvaluationSchedule, total: int, best: int | None) -> None:
    """Remove old snapshots that nothing needs; those with missing results are kept.

    None is removed while it is not known which is the best: it might be that one.
    """
    if not schedule.keep_snapshots or (schedule.best and best is None):
        return
    for images in snapshots(run_dir)[: -schedule.keep_snapshots]:
        wanted = [p for p in schedule.protocols if p.wants(images, total)]
        milestone = any(p.every_images for p in wanted)
        missing = any(not Work(run_dir, images, p.name).result.exists() for p in wanted)
        if not (milestone or missing or images == best):
            _remove_snapshot(run_dir / "snapshots" / f"{images:012d}")


SNAPSHOT_FILES = re.compile(r"weights\.safetensors|snapshot\.json")


def _remove_snapshot(path: Path) -> None:
    """Remove a snapshot, unless its directory holds more than that."""
    try:
        remove_directory(path, SNAPSHOT_FILES, "a snapshot")
    except (NotOurs, OSError) as error:
        say_once(f"{error}; the old snapshot is kept")
