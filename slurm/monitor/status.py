"""What runs and their jobs are doing, from run folders and Slurm's own commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slurm.continuous_eval.plan import read_plan
from slurm.continuous_eval.results import values
from slurm.jobs.exit_reason import ended_states, ended_well, in_words, log_of, why_ended
from slurm.jobs.jobs import STOP
from slurm.jobs.records import JobFolder, JobRecord, read_lines
from slurm.slurm_cli import (
    MAINTENANCE,
    QueuedJob,
    SlurmError,
    explain,
    have_slurm,
    queued,
    under_maintenance,
)

ENDED, GONE = "ENDED", "NOT QUEUED"
"""States of a job without Slurm, and of one that neither the queue nor accounting knows."""


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


def run_status(
    folder: Path,
    queue: Mapping[str, QueuedJob],
    ended: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Return where a folder stands, as JSON.

    Args:
        folder: A run folder, or another folder of jobs.
        queue: The jobs in the queue.
        ended: State and exit code of others, as `slurm.jobs.exit_reason.ended_states` gives them.
    """
    jobs = JobFolder(folder)
    status: dict[str, Any] = {"folder": str(folder), "jobs": []}
    if _is_run(folder):
        status |= _progress(folder)
    for record in jobs.records():
        status["jobs"] += [
            _job(jobs, record, job_id, queue, ended or {}) for job_id in record.task_ids
        ]
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


def states_of_ended(
    folders: Iterable[Path], queue: Mapping[str, QueuedJob]
) -> dict[str, tuple[str, str]]:
    """Return how the jobs of folders that are not in the queue ended, by Slurm's accounting."""
    records = [record for folder in folders for record in JobFolder(folder).records()]
    ids = {
        record.job_id
        for record in records
        if record.cluster == "slurm" and not set(record.task_ids) <= queue.keys()
    }
    return ended_states(ids)


def is_alive(record: JobRecord, job_id: str, queue: Mapping[str, QueuedJob]) -> bool:
    """Whether a job is in the queue, or a local one's process runs."""
    if record.cluster == "slurm":
        return job_id in queue
    process = Path("/proc", job_id)
    return process.exists() and b"submitit" in (process / "cmdline").read_bytes()


def _job(
    folder: JobFolder,
    record: JobRecord,
    job_id: str,
    queue: Mapping[str, QueuedJob],
    ended: Mapping[str, tuple[str, str]],
) -> dict[str, Any]:
    alive = is_alive(record, job_id, queue)
    gone = GONE if record.cluster == "slurm" else ENDED
    state, code = (
        ("RUNNING", "") if alive else ended.get(job_id, (gone, _noted_code(folder, job_id)))
    )
    wrong = not alive and not _ended_well(folder, record, job_id, state)
    waiting = queue.get(job_id)
    tells = waiting and (waiting.state == "PENDING" or waiting.reason == MAINTENANCE)
    reason = waiting.reason if waiting and tells else ""
    attempts = folder.attempts(job_id)
    ends = [a for a in attempts if a["event"] in ("signal", "crash", "exit") and a.get("why")]
    return {
        "job_id": job_id,
        "kind": record.kind,
        "name": record.name,
        "state": waiting.state if waiting else state,
        "in_queue": alive,
        "exit_code": code,
        "why": why_ended(folder, record, job_id) if wrong else "",
        "log": log_of(record, job_id),
        "reason": reason,
        "advice": explain(reason),
        "starts_at": waiting.start if waiting and waiting.state == "PENDING" else "",
        "nodes": waiting.nodes if waiting else "",
        "elapsed": waiting.elapsed if waiting else "",
        "starts": sum(1 for a in attempts if a["event"] == "start"),
        "crashes": sum(1 for a in attempts if a["event"] == "crash"),
        "last_end": _end_in_words(ends[-1]) if ends else "",
    }


def _end_in_words(end: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, (end["why"], end.get("said"))))


def _ended_well(folder: JobFolder, record: JobRecord, job_id: str, state: str) -> bool:
    """Whether a job that is gone needs no reason; without accounting, by what it noted."""
    if state not in (GONE, ENDED):
        return ended_well(state)
    noted = any(a["event"] == "exit" for a in folder.attempts(job_id))
    return not _noted_code(folder, job_id) if noted else record.cluster == "debug"


def _noted_code(folder: JobFolder, job_id: str) -> str:
    """Return the exit code that a training job's ranks noted last, "" of success or none."""
    codes = [a["code"] for a in folder.attempts(job_id) if a["event"] == "exit"]
    return str(codes[-1]) if codes and codes[-1] else ""


def queue_or_nothing() -> dict[str, QueuedJob]:
    """Return this user's queue; nothing, after a warning, where Slurm does not answer."""
    try:
        if not have_slurm():
            return {}
        queue = queued()
        for job_id in under_maintenance() & queue.keys():
            queue[job_id] = replace(queue[job_id], reason=MAINTENANCE)
        return queue
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
    newest = {job["name"]: job["job_id"].partition("_")[0] for job in jobs}
    return [
        job
        for job in jobs
        if job["in_queue"] or newest[job["name"]] == job["job_id"].partition("_")[0]
    ]


def _describe_job(job: Mapping[str, Any]) -> list[str]:
    text = f"  └ {job['kind']} {job['job_id']}  {in_words(job['state'], job['exit_code'], '')}"
    text += f" ({job['reason']})" if job["reason"] else ""
    text += f"  from {job['starts_at']}" if job["starts_at"] not in ("", "N/A") else ""
    text += f"  {job['elapsed']} on {job['nodes']}" if job["nodes"] else ""
    text += f"  {job['starts']} starts" if job["starts"] > 1 else ""
    text += f", {job['crashes']} crashes" if job["crashes"] else ""
    text += f"  [{job['last_end']}]" if job["last_end"] and not job["why"] else ""
    lines = [text, *([f"      {job['advice']}"] if job["advice"] else [])]
    if job["why"]:
        lines.append(f"      {job['why']}")
    if job["why"] or job["exit_code"]:
        lines.append(f"      log: {job['log']}")
    return lines


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
