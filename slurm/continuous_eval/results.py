"""Results of scheduled evaluation, and what follows from them.

They go to the run's loggers; the best snapshot is marked; training stops early; old snapshots are
removed.
"""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dist_train.runtime.run_files import read_settings
from models.config_io import did_you_mean, from_json
from models.safe_files.atomic import NotOurs, atomic_file, remove_directory
from models.safe_files.documents import Format, parse_json
from models.safe_files.locks import try_lock
from models.safe_files.transient import retried
from slurm.continuous_eval.leases import Work
from slurm.continuous_eval.schedule import EvaluationSchedule, snapshots
from slurm.jobs.jobs import STOP
from slurm.jobs.records import STOPS, JobDir, say_once
from slurm.slurm_cli import queued, run_slurm

MAX_SEEN = 1 << 62


@dataclass(frozen=True)
class _Metric:
    """What is needed of a metric in a result."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    values: dict[str, float]


@dataclass(frozen=True)
class _Result:
    """What is needed of a result; evaluation checks the rest."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    metrics: dict[str, _Metric]


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


RESULTS = Format(schema=_Result, remedy="move it away to have it computed again")
BEST = Format(schema=Best, remedy="remove it; it is written again")


def values(run_dir: Path, key: str) -> dict[int, float]:
    """Return {images seen: value} of all results, for a key like `protocol:metric.value`."""
    protocol, _, path = key.partition(":")
    return {
        images: row[f"{protocol}/{path}"]
        for (images, name), row in all_values(run_dir).items()
        if name == protocol and f"{protocol}/{path}" in row
    }


def all_values(run_dir: Path) -> dict[tuple[int, str], dict[str, float]]:
    """Return {(images seen, protocol): {`protocol/metric.value`: number}}, in order.

    Damaged results, and values that are not finite, are skipped by name.
    """
    found = {}
    for path in sorted(run_dir.glob("evaluation/[0-9]*/*.json")):
        protocol = path.name.removesuffix(".json")
        if "." in protocol:  # unfinished, or a claim
            continue
        try:
            result = RESULTS.read(path)
        except (OSError, ValueError) as error:
            say_once(f"{error}; the result is skipped")
            continue
        row = {
            f"{protocol}/{metric}.{name}": value
            for metric, entry in result.metrics.items()
            for name, value in entry.values.items()
        }
        unusable = [name for name, value in row.items() if not math.isfinite(value)]
        if unusable:
            say_once(f"{path}: {', '.join(unusable)} is not finite and is skipped")
        usable = {name: value for name, value in row.items() if name not in unusable}
        found[int(path.parent.name), protocol] = usable
    return found


def log_results(run_dir: Path) -> int:
    """Send new results to the run's loggers, such as wandb; returns how many there were.

    One writer at a time sends them to a record of their own, `<run>-evaluation` (training writes
    to the run's own), by images seen. No result is sent twice.
    """
    config = read_settings(run_dir)
    logging = config.get("logging", config)  # runs of older versions have these at the top
    if not isinstance(logging, dict):
        return 0
    if not any(map(logging.get, ("wandb_project", "tensorboard", "loggers"))):
        return 0
    evaluation = run_dir / "evaluation"
    with open(evaluation / ".mirror.lock", "w") as lock:
        if not try_lock(lock):
            return 0  # the other writer sends them, or the next call
        return _log_new_results(run_dir, evaluation)


def _log_new_results(run_dir: Path, evaluation: Path) -> int:
    noted = evaluation / ".mirrored.json"
    done = _already_logged(noted)
    rows = all_values(run_dir)
    new = [key for key in rows if key not in done]
    if not new:
        return 0
    from dist_train.monitoring.loggers import start_loggers
    from dist_train.runtime.run_dir import read_run_config
    from models.config_io import to_json

    log_dir = evaluation / "mirror" / f"{run_dir.name}-evaluation"
    log_dir.mkdir(parents=True, exist_ok=True)
    config = read_run_config(run_dir)
    loggers = start_loggers(config.logging, to_json(config), log_dir)
    if not loggers:
        return 0
    for images, protocol in new:
        for logger in loggers:
            logger.write({"images_seen": images, **rows[images, protocol]})
    for logger in loggers:
        logger.close()
    with atomic_file(noted) as file:
        file.write(json.dumps(sorted([*done, *new]), indent=1).encode() + b"\n")
    return len(new)


def _already_logged(noted: Path) -> set[tuple[int, str]]:
    """Return which results were sent: a list of (images seen, protocol).

    Raises:
        ValueError: The file is damaged; without it results would be sent twice.
    """
    try:
        content = retried(noted.read_bytes, f"reading {noted}")
    except FileNotFoundError:
        return set()
    try:
        pairs: tuple[tuple[int, str], ...] = from_json(
            tuple[tuple[int, str], ...], parse_json(content), "it"
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{noted}, the list of results that were sent to the loggers, is damaged ({error});"
            " remove it to have all of them sent again"
        ) from None
    return set(pairs)


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
    records = JobDir(run_dir).records()
    ids = [r.job_id for r in records if r.kind == "train" and r.cluster == "slurm"]
    for job_id, job in (queued(ids) if ids else {}).items():
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
