"""Results of scheduled evaluation, and what follows from them.

They go to the run's loggers; the best snapshot is marked; training stops early; old snapshots are
removed.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from pathlib import Path
from typing import Any

from dist_train.runtime.run_files import read_settings
from slurm.continuous_eval.leases import Work
from slurm.continuous_eval.schedule import EvaluationSchedule, snapshots
from slurm.jobs.jobs import STOP
from slurm.jobs.records import JobDir, write_json
from slurm.slurm_cli import queued, run_slurm


def values(run_dir: Path, key: str) -> dict[int, float]:
    """Return {images seen: value} of all results, for a key like `protocol:metric.value`."""
    protocol, _, path = key.partition(":")
    return {
        images: row[f"{protocol}/{path}"]
        for (images, name), row in all_values(run_dir).items()
        if name == protocol and f"{protocol}/{path}" in row
    }


def all_values(run_dir: Path) -> dict[tuple[int, str], dict[str, float]]:
    """Return {(images seen, protocol): {`protocol/metric.value`: number}}, in order."""
    found = {}
    for path in sorted(run_dir.glob("evaluation/[0-9]*/*.json")):
        protocol = path.name.removesuffix(".json")
        if "." in protocol:  # unfinished, or a claim
            continue
        result: dict[str, Any] = json.loads(path.read_text())
        found[int(path.parent.name), protocol] = {
            f"{protocol}/{metric}.{name}": float(value)
            for metric, entry in result["metrics"].items()
            for name, value in entry["values"].items()
        }
    return found


def log_results(run_dir: Path) -> int:
    """Send new results to the run's loggers, such as wandb; returns how many there were.

    One writer at a time sends them to a record of their own, `<run>-evaluation` (training writes
    to the run's own), by images seen. No result is sent twice.
    """
    config = read_settings(run_dir)
    logging = config.get("logging", config)  # runs of older versions have these at the top
    if not (logging.get("wandb_project") or logging.get("tensorboard")):
        return 0
    evaluation = run_dir / "evaluation"
    with open(evaluation / ".mirror.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0  # the other writer sends them, or the next call
        return _log_new_results(run_dir, evaluation)


def _log_new_results(run_dir: Path, evaluation: Path) -> int:
    noted = evaluation / ".mirrored.json"
    done = {tuple(key) for key in json.loads(noted.read_text())} if noted.exists() else set()
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
    write_json(noted, sorted([*done, *new]))
    return len(new)


def mark_best(run_dir: Path, schedule: EvaluationSchedule) -> int | None:
    """Note the best snapshot in `evaluation/best.json`; returns its images seen."""
    found = values(run_dir, schedule.best) if schedule.best else {}
    if not found:
        return None
    best = (max if schedule.highest else min)(found, key=lambda images: (found[images], images))
    write_json(
        run_dir / "evaluation" / "best.json",
        {"images_seen": best, "key": schedule.best, "value": found[best], "of": len(found)},
    )
    return best


def stop_early(run_dir: Path, schedule: EvaluationSchedule, best: int | None) -> None:
    """Stop training for good if its last evaluated snapshots were not better."""
    stop = JobDir(run_dir).slurm_dir / STOP
    if not schedule.patience or best is None or stop.exists():
        return
    later = [images for images in values(run_dir, schedule.best) if images > best]
    if len(later) < schedule.patience:
        return
    why = f"{len(later)} snapshots after the one at {best:,} images were not better"
    write_json(stop, {"why": why, "time": time.time()})
    records = JobDir(run_dir).records()
    ids = [r.job_id for r in records if r.kind == "train" and r.cluster == "slurm"]
    for job_id, job in (queued(ids) if ids else {}).items():
        if job.state == "RUNNING":  # saves, sees the file, and does not requeue itself
            run_slurm(["scancel", "--signal=USR2", job_id])
        else:
            run_slurm(["scancel", job_id])


def prune(run_dir: Path, schedule: EvaluationSchedule, total: int, best: int | None) -> None:
    """Remove old snapshots that nothing needs; those with missing results are kept."""
    if not schedule.keep_snapshots:
        return
    for images in snapshots(run_dir)[: -schedule.keep_snapshots]:
        wanted = [p for p in schedule.protocols if p.wants(images, total)]
        milestone = any(p.every_images for p in wanted)
        missing = any(not Work(run_dir, images, p.name).result.exists() for p in wanted)
        if not (milestone or missing or images == best):
            shutil.rmtree(run_dir / "snapshots" / f"{images:012d}")
