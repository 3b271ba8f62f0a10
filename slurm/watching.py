"""What runs and their jobs are doing, from run folders and Slurm's own commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slurm.evaluation_plan import read_plan
from slurm.folder import JobFolder, JobRecord, read_lines
from slurm.jobs import STOP
from slurm.queue import QueuedJob, SlurmError, accounting, explain, have_slurm, queued
from slurm.results import values
from slurm.speed import productive_seconds

ENDED = "NOT QUEUED"
SACCT = ("JobID", "State", "ElapsedRaw", "NNodes", "AllocTRES", "Start", "End", "ExitCode")


def find_folders(paths: Iterable[Path]) -> list[Path]:
    """Return the folders at or below `paths` (two levels) that have runs or jobs.

    Raises:
        ValueError: A path has none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        places = [path, *sorted(path.glob("*/")), *sorted(path.glob("*/*/"))]
        here = [p for p in places if (p / "slurm" / "jobs").is_dir() or _is_run(p)]
        if not here:
            raise ValueError(f"{path} has neither a run nor a job")
        found |= dict.fromkeys(folder.absolute() for folder in here)
    return list(found)


def run_status(folder: Path, queue: Mapping[str, QueuedJob]) -> dict[str, Any]:
    """Return where a folder stands, as JSON."""
    jobs = JobFolder(folder)
    status: dict[str, Any] = {"folder": str(folder), "jobs": []}
    if _is_run(folder):
        status |= _progress(folder)
    for record in jobs.records():
        status["jobs"] += [_job(jobs, record, job_id, queue) for job_id in record.task_ids]
    stop = jobs.path / STOP
    if stop.exists():
        status["stopped"] = json.loads(stop.read_text())["why"]
    return status


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _progress(run_dir: Path) -> dict[str, Any]:
    """Return how far training and evaluation are."""
    config = json.loads((run_dir / "config.json").read_text())
    lines = read_lines(run_dir / "metrics.jsonl")
    last = lines[-1] if lines else {}
    seen, total = last.get("images_seen", 0), config["total_images"]
    rate = last.get("speed/images_per_second")
    progress: dict[str, Any] = {
        "recipe": config["recipe"],
        "images_seen": seen,
        "total_images": total,
        "step": last.get("step", 0),
        "images_per_second": rate,
        "seconds_left": (total - seen) / rate if rate else None,
        "losses": {key: value for key, value in last.items() if key.endswith("/loss")},
    }
    plan = read_plan(run_dir)
    if plan is not None and plan.best:
        found = values(run_dir, plan.best)
        if found:
            newest, best = max(found), run_dir / "evaluation" / "best.json"
            progress["evaluated"] = {"key": plan.best, "images_seen": newest,
                                     "value": found[newest]}  # fmt: skip
            progress["best"] = json.loads(best.read_text()) if best.exists() else None
    return progress


def _job(
    folder: JobFolder, record: JobRecord, job_id: str, queue: Mapping[str, QueuedJob]
) -> dict[str, Any]:
    waiting = queue.get(job_id)
    reason = waiting.reason if waiting and waiting.state == "PENDING" else ""
    attempts = folder.attempts(job_id)
    ends = [a for a in attempts if a["event"] in ("signal", "crash", "exit") and a.get("why")]
    return {
        "job_id": job_id,
        "kind": record.kind,
        "name": record.name,
        "state": waiting.state if waiting else ENDED,
        "reason": reason,
        "advice": explain(reason),
        "starts_at": waiting.start if waiting and reason else "",
        "nodes": waiting.nodes if waiting else "",
        "elapsed": waiting.elapsed if waiting else "",
        "starts": sum(1 for a in attempts if a["event"] == "start"),
        "crashes": sum(1 for a in attempts if a["event"] == "crash"),
        "last_end": ends[-1]["why"] if ends else "",
    }


def queue_or_nothing() -> dict[str, QueuedJob]:
    """Return this user's queue; nothing, after a warning, where Slurm does not answer."""
    try:
        return queued() if have_slurm() else {}
    except SlurmError as error:
        print(f"slurm: {error}; what is in the queue is not known", file=sys.stderr)
        return {}


def format_status(status: Mapping[str, Any]) -> str:
    """Return a folder's status as a small tree."""
    lines = [Path(status["folder"]).name]
    if "recipe" in status:
        lines.append(f"  {_describe_progress(status)}")
    if status.get("evaluated"):
        newest, best = status["evaluated"], status["best"]
        text = f"  {newest['key']} {newest['value']:.4g} at {newest['images_seen']:,} images"
        if best:
            text += f"; best {best['value']:.4g} at {best['images_seen']:,}"
        lines.append(text)
    if "stopped" in status:
        lines.append(f"  stopped: {status['stopped']}")
    lines += [line for job in _worth_showing(status["jobs"]) for line in _describe_job(job)]
    return "\n".join(lines)


def _worth_showing(jobs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the jobs in the queue, and of those that are not the newest of each name."""
    newest = {job["name"]: job["job_id"] for job in jobs}
    return [job for job in jobs if job["state"] != ENDED or newest[job["name"]] == job["job_id"]]


def _describe_job(job: Mapping[str, Any]) -> list[str]:
    text = f"  └ {job['kind']} {job['job_id']}  {job['state']}"
    text += f" ({job['reason']})" if job["reason"] else ""
    text += f"  from {job['starts_at']}" if job["starts_at"] not in ("", "N/A") else ""
    text += f"  {job['elapsed']} on {job['nodes']}" if job["nodes"] else ""
    text += f"  {job['starts']} starts" if job["starts"] > 1 else ""
    text += f", {job['crashes']} crashes" if job["crashes"] else ""
    text += f"  [{job['last_end']}]" if job["last_end"] else ""
    return [text, f"      {job['advice']}"] if job["advice"] else [text]


def _describe_progress(status: Mapping[str, Any]) -> str:
    seen, total, rate = status["images_seen"], status["total_images"], status["images_per_second"]
    text = f"{status['recipe']}  {seen:,}/{total:,} images ({100 * seen / total:.0f}%)"
    text += f"  step {status['step']:,}"
    text += "".join(f"  {name} {value:.4g}" for name, value in status["losses"].items()
                    if value is not None)  # fmt: skip
    if rate:
        text += f"  {rate:,.0f} images/s"
        if seen < total:
            text += f"  {status['seconds_left'] / 3600:.1f} h left"
    return text


def run_history(folder: Path) -> dict[str, Any]:
    """Return what a folder's jobs have cost, by sacct, and how much of it was progress."""
    records = [r for r in JobFolder(folder).records() if r.cluster == "slurm"]
    kinds = {job_id: record.kind for record in records for job_id in record.task_ids}
    rows = accounting((record.job_id for record in records), SACCT)
    runs = [row | {"kind": kinds[row["JobID"]]} for row in rows if row["JobID"] in kinds]
    training = sum(float(row["ElapsedRaw"]) for row in runs if row["kind"] == "train")
    productive = productive_seconds(read_lines(folder / "metrics.jsonl"))
    return {
        "folder": str(folder),
        "runs": runs,
        "gpu_hours": sum(_gpus(row) * float(row["ElapsedRaw"]) for row in runs) / 3600,
        "node_hours": sum(int(row["NNodes"]) * float(row["ElapsedRaw"]) for row in runs) / 3600,
        "requeues": len(runs) - len({row["JobID"] for row in runs}),
        "training_seconds": training,
        "productive_seconds": productive,
        "goodput": min(productive / training, 1.0) if training else None,
    }


def _gpus(row: Mapping[str, str]) -> int:
    for entry in row["AllocTRES"].split(","):
        name, _, count = entry.partition("=")
        if name == "gres/gpu":
            return int(count)
    return 0


def format_history(history: Mapping[str, Any]) -> str:
    """Return a folder's history as a table and a line of totals."""
    lines = [Path(history["folder"]).name]
    lines += [
        f"  {row['kind']:12} {row['JobID']:12} {row['State'].split()[0]:12}"
        f" {row['Start']:20} {int(row['ElapsedRaw']):8,} s  {row['NNodes']} nodes"
        for row in history["runs"]
    ]
    goodput = history["goodput"]
    text = f"  {history['gpu_hours']:.2f} GPU-hours, {history['node_hours']:.2f} node-hours"
    text += f", {history['requeues']} requeues"
    lines.append(text + (f", goodput {100 * goodput:.0f}%" if goodput is not None else ""))
    return "\n".join(lines)
