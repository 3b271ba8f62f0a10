"""The status of runs and their jobs, from run directories and Slurm's own commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dist_train.runtime.metrics_file import read_metrics
from dist_train.runtime.run_files import is_run, read_summary
from models.config_io import ConfigError
from slurm.continuous_eval.results import BEST, values
from slurm.continuous_eval.schedule import read_schedule
from slurm.jobs import local
from slurm.jobs.budget import gpu_hours
from slurm.jobs.exit_reason import exit_reason, exit_states, format_exit, log_of, succeeded
from slurm.jobs.hosts import crashes_by_host, excluded_hosts
from slurm.jobs.jobs import STOP, TrainJob
from slurm.jobs.records import (
    STOPS,
    JobDir,
    JobRecord,
    say_once,
)
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
"""States of an ended local job, and of one that neither the queue nor accounting lists."""
SWEEP = "sweep"
"""Kind of the jobs of a sweep: an array in the parent of its runs, a task for each."""
UNKNOWN_QUEUE: dict[str, QueuedJob] = {}
"""The queue where Slurm is not there or does not answer; an empty one has no such jobs for sure."""


def find_job_dirs(paths: Iterable[Path]) -> list[Path]:
    """Return the directories at or below `paths` (two levels) that have runs or jobs.

    Raises:
        ValueError: A path has none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        candidates = [path, *sorted(path.glob("*/")), *sorted(path.glob("*/*/"))]
        here = [p for p in candidates if (p / "slurm" / "jobs").is_dir() or is_run(p)]
        if not here:
            raise ValueError(f"{path} has neither a run nor a job")
        found |= dict.fromkeys(root.absolute() for root in here)
    return list(found)


def run_status(
    root: Path,
    queue: Mapping[str, QueuedJob],
    exited: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Return the status of a directory, as JSON.

    Args:
        root: A run directory, or another directory with jobs.
        queue: The jobs in the queue.
        exited: State and exit code of others, as `slurm.jobs.exit_reason.exit_states` returns.
    """
    jobs = JobDir(root)
    status: dict[str, Any] = {"folder": str(root), "jobs": []}
    if is_run(root):
        try:
            status |= _progress(root)
        except ConfigError as error:  # the others are listed all the same
            status["problem"] = str(error)
    for record, job_id in jobs_of(root):
        status["jobs"].append(_job(jobs, record, job_id, queue, exited or {}))
    status["lost"] = queue is not UNKNOWN_QUEUE and _is_lost(status)
    trained = [record for record in jobs.records() if record.kind == "train"]
    if trained and trained[-1].policy.gpu_hours:
        alive = [job["job_id"] for job in status["jobs"] if job["in_queue"]]
        status["budget"] = {"gpu_hours": gpu_hours(jobs, "".join(alive[-1:])),
                            "of": trained[-1].policy.gpu_hours}  # fmt: skip
    stop = jobs.slurm_dir / STOP
    if stop.exists():
        status["stopped"] = _why_stopped(stop)
    return status


def jobs_of(root: Path) -> list[tuple[JobRecord, str]]:
    """Return the jobs of a directory with their ids; those of a sweep's run are its array's."""
    own = [(record, job_id) for record in JobDir(root).records() for job_id in record.task_ids]
    if not is_run(root):
        return own
    sweeps = [record for record in JobDir(root.parent).records() if record.kind == SWEEP]
    title = TrainJob(root).title
    tasks = [
        (record, job_id)
        for record in sweeps
        for job_id, task in zip(record.task_ids, record.tasks, strict=False)
        if task == title
    ]
    return sorted([*tasks, *own], key=lambda pair: pair[0].submitted)


def _is_lost(status: Mapping[str, Any]) -> bool:
    """Whether a run is unfinished and none of its jobs is alive; False for other directories."""
    unfinished = "recipe" in status and status["images_seen"] < status["total_images"]
    training = [job for job in status["jobs"] if job["kind"] == "train"]
    return unfinished and bool(training) and not any(job["in_queue"] for job in training)


def _why_stopped(stop: Path) -> str:
    try:
        return STOPS.read(stop).why
    except (OSError, ValueError) as error:
        return f"the reason is unknown ({error})"


def _progress(run_dir: Path) -> dict[str, Any]:
    """Return the progress of training and evaluation."""
    config = read_summary(run_dir)
    lines = read_metrics(run_dir)
    last = lines[-1] if lines else {}
    seen, total = last.get("images_seen", 0), config.total_images
    rate = last.get("speed/images_per_second")
    progress: dict[str, Any] = {
        "recipe": config.recipe,
        "images_seen": seen,
        "total_images": total,
        "step": last.get("step", 0),
        "images_per_second": rate,
        "mfu": last.get("speed/mfu"),
        "seconds_left": (total - seen) / rate if rate else None,
        "losses": {key: value for key, value in last.items() if key.endswith("/loss")},
    }
    try:
        schedule = read_schedule(run_dir)
    except ConfigError as error:
        return progress | {"problem": str(error)}
    if schedule is not None and schedule.best:
        found = values(run_dir, schedule.best)
        if found:
            newest, best = max(found), run_dir / "evaluation" / "best.json"
            progress["evaluated"] = {"key": schedule.best, "images_seen": newest,
                                     "value": found[newest]}  # fmt: skip
            progress["best"] = _read_best(best)
    return progress


def _read_best(path: Path) -> dict[str, Any] | None:
    try:
        return asdict(BEST.read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        say_once(str(error))
        return None


def exited_states(
    roots: Iterable[Path], queue: Mapping[str, QueuedJob]
) -> dict[str, tuple[str, str]]:
    """Return how jobs that are not in the queue ended, by Slurm's accounting."""
    records = {record.job_id: record for root in roots for record, _ in jobs_of(root)}
    return exit_states(
        record
        for record in records.values()
        if record.cluster == "slurm" and len(record.queued(queue)) < len(record.task_ids)
    )


def is_alive(record: JobRecord, job_id: str, queue: Mapping[str, QueuedJob]) -> bool:
    """Whether a job is in the queue, or a local one's process runs."""
    if record.cluster == "slurm":
        return job_id in record.queued(queue)
    return record.cluster == "local" and local.runs(job_id)


def _job(
    jobs: JobDir,
    record: JobRecord,
    job_id: str,
    queue: Mapping[str, QueuedJob],
    exited: Mapping[str, tuple[str, str]],
) -> dict[str, Any]:
    alive = is_alive(record, job_id, queue)
    gone = GONE if record.cluster == "slurm" else ENDED
    state, code = (
        ("RUNNING", "") if alive else exited.get(job_id, (gone, _noted_code(jobs, job_id)))
    )
    failed = not alive and not _succeeded(jobs, record, job_id, state)
    entry = record.queued(queue).get(job_id) if record.cluster == "slurm" else None
    has_reason = entry and (entry.state == "PENDING" or entry.reason == MAINTENANCE)
    reason = entry.reason if entry and has_reason else ""
    attempts = jobs.attempts(job_id)
    ends = [a for a in attempts if a["event"] in ("signal", "crash", "exit") and a.get("why")]
    return {
        "job_id": job_id,
        "kind": record.kind,
        "name": record.name,
        "state": entry.state if entry else state,
        "in_queue": alive,
        "exit_code": code,
        "why": exit_reason(jobs, record, job_id) if failed else "",
        "log": log_of(record, job_id),
        "reason": reason,
        "advice": explain(reason),
        "starts_at": entry.start if entry and entry.state == "PENDING" else "",
        "nodes": entry.nodes if entry else "",
        "elapsed": entry.elapsed if entry else "",
        "starts": sum(1 for a in attempts if a["event"] == "start"),
        "crashes": sum(1 for a in attempts if a["event"] == "crash"),
        "crashes_by_host": dict(crashes_by_host(attempts)),
        "excluded": excluded_hosts(attempts),
        "last_end": _format_end(ends[-1]) if ends else "",
    }


def _format_end(end: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, (end["why"], end.get("said"))))


def _succeeded(jobs: JobDir, record: JobRecord, job_id: str, state: str) -> bool:
    """Whether a job that left the queue succeeded; without accounting, by what it noted."""
    if state not in (GONE, ENDED):
        return succeeded(state)
    noted = any(a["event"] == "exit" for a in jobs.attempts(job_id))
    return not _noted_code(jobs, job_id) if noted else record.cluster == "debug"


def _noted_code(jobs: JobDir, job_id: str) -> str:
    """Return the exit code that a training job's ranks noted last, "" for success or none."""
    codes = [a["code"] for a in jobs.attempts(job_id) if a["event"] == "exit"]
    return str(codes[-1]) if codes and codes[-1] else ""


def queue_or_empty() -> dict[str, QueuedJob]:
    """Return this user's queue; empty, after a warning, if Slurm does not answer."""
    try:
        if not have_slurm():
            return UNKNOWN_QUEUE
        queue = queued()
        for job_id in under_maintenance() & queue.keys():
            queue[job_id] = replace(queue[job_id], reason=MAINTENANCE)
        return queue
    except SlurmError as error:
        print(f"slurm: {error}; the queue is unknown", file=sys.stderr)
        return UNKNOWN_QUEUE


def format_status(status: Mapping[str, Any]) -> str:
    """Return the status of a directory as a small tree."""
    lines = [Path(status["folder"]).name]
    if "problem" in status:
        lines.append(f"  {status['problem']}")
    if "recipe" in status:
        lines.append(f"  {_describe_progress(status)}")
    if status.get("evaluated"):
        newest, best = status["evaluated"], status["best"]
        text = f"  {newest['key']} {newest['value']:.4g} at {newest['images_seen']:,} images"
        if best:
            text += f"; best {best['value']:.4g} at {best['images_seen']:,}"
        lines.append(text)
    if status.get("lost"):
        lines.append(f"  unfinished, not queued: `relaywave slurm resume {status['folder']}`")
    if "budget" in status:
        spent, hours = status["budget"]["gpu_hours"], status["budget"]["of"]
        lines.append(f"  {spent:.2f} of {hours:g} GPU-hours")
    if "stopped" in status:
        lines.append(f"  stopped: {status['stopped']}")
    lines += [line for job in _shown(status["jobs"]) for line in _describe_job(job)]
    return "\n".join(lines)


def _shown(jobs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the jobs in the queue, and of all others the newest of each name."""
    newest = {job["name"]: job["job_id"].partition("_")[0] for job in jobs}
    return [
        job
        for job in jobs
        if job["in_queue"] or newest[job["name"]] == job["job_id"].partition("_")[0]
    ]


def _describe_job(job: Mapping[str, Any]) -> list[str]:
    text = f"  └ {job['kind']} {job['job_id']}  {format_exit(job['state'], job['exit_code'], '')}"
    text += f" ({job['reason']})" if job["reason"] else ""
    text += f"  from {job['starts_at']}" if job["starts_at"] not in ("", "N/A") else ""
    text += f"  {job['elapsed']} on {job['nodes']}" if job["nodes"] else ""
    text += f"  {job['starts']} starts" if job["starts"] > 1 else ""
    text += f", {job['crashes']} crashes" if job["crashes"] else ""
    text += f"  [{job['last_end']}]" if job["last_end"] and not job["why"] else ""
    lines = [text, *([f"      {job['advice']}"] if job["advice"] else [])]
    if job["crashes_by_host"] or job["excluded"]:
        lines.append(f"      {_describe_hosts(job)}")
    if job["why"]:
        lines.append(f"      {job['why']}")
    if job["why"] or job["exit_code"]:
        lines.append(f"      log: {job['log']}")
    return lines


def _describe_hosts(job: Mapping[str, Any]) -> str:
    """Say on which hosts a job crashed within a day, and which ones it does without now."""
    crashes, excluded = job["crashes_by_host"], job["excluded"]
    hosts = [f"{host} {count}x" for host, count in sorted(crashes.items())]
    text = f"crashed on {', '.join(hosts)}" if hosts else ""
    return "; ".join(filter(None, [text, f"excluded: {', '.join(excluded)}" if excluded else ""]))


def _describe_progress(status: Mapping[str, Any]) -> str:
    seen, total, rate = status["images_seen"], status["total_images"], status["images_per_second"]
    text = f"{status['recipe']}  {seen:,}/{total:,} images ({100 * seen / total:.0f}%)"
    text += f"  step {status['step']:,}"
    text += "".join(f"  {name} {value:.4g}" for name, value in status["losses"].items()
                    if value is not None)  # fmt: skip
    if rate:
        text += f"  {rate:,.0f} images/s"
        text += f"  MFU {status['mfu']:.0%}" if status["mfu"] is not None else ""
        if seen < total:
            text += f"  {status['seconds_left'] / 3600:.1f} h left"
    return text
