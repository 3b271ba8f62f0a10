"""`python -m slurm status | logs | history | cancel`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slurm.jobs.exit_reason import ended_states, exit_code, in_words
from slurm.jobs.records import JobFolder, JobRecord, read_lines
from slurm.jobs.throughput import productive_seconds
from slurm.monitor import commands
from slurm.monitor.status import (
    find_folders,
    format_status,
    is_alive,
    queue_or_nothing,
    run_status,
    states_of_ended,
)
from slurm.slurm_cli import accounting, queued, run_slurm


def status_command(args: argparse.Namespace) -> None:
    """Show where runs and their jobs stand."""
    queue, folders = queue_or_nothing(), find_folders(args.folders)
    ended = states_of_ended(folders, queue)
    found = [run_status(folder, queue, ended) for folder in folders]
    print(json.dumps(found, indent=1) if args.json else "\n".join(map(format_status, found)))


def history_command(args: argparse.Namespace) -> None:
    """Show what runs have cost."""
    found = [run_history(folder) for folder in find_folders(args.folders)]
    print(json.dumps(found, indent=1) if args.json else "\n".join(map(format_history, found)))


def logs_command(args: argparse.Namespace) -> None:
    """Show what the newest job of a folder, or a given one, prints."""
    records = JobFolder(args.folder.absolute()).records()
    choices = [(record, job_id) for record in records for job_id in record.task_ids]
    if args.job is not None:
        choices = [choice for choice in choices if choice[1] == args.job]
    if not choices:
        known = ", ".join(job_id for record in records for job_id in record.task_ids)
        raise ValueError(f"{args.folder} has no such job; known are {known or 'none'}")
    commands.show(*choices[-1], follow=args.follow)
    _say_how_it_ended(args.folder.absolute(), *choices[-1])


def _say_how_it_ended(folder: Path, record: JobRecord, job_id: str) -> None:
    """Print a last line about a job that did not end well."""
    status = run_status(folder, queue_or_nothing(), ended_states([job_id]))
    job = next(job for job in status["jobs"] if job["job_id"] == job_id)
    if job["why"] or job["exit_code"]:
        print(f"job {job_id} {in_words(job['state'], job['exit_code'], job['why'])}")


def cancel_command(args: argparse.Namespace) -> None:
    """End the jobs of folders; training saves its state first."""
    for folder in find_folders(args.folders):
        ended = [record.job_id for record in JobFolder(folder).records() if cancel(record)]
        print(f"{folder.name}: {'cancelled ' + ', '.join(ended) if ended else 'nothing to cancel'}")


def cancel(record: JobRecord) -> bool:
    """End a job, if it is still there; returns whether it was."""
    if record.cluster == "slurm":
        if not queued([record.job_id]):
            return False
        run_slurm(["scancel", record.job_id])
        return True
    process = Path("/proc", record.job_id)
    if not process.exists() or b"submitit" not in (process / "cmdline").read_bytes():
        return False
    os.kill(int(record.job_id), signal.SIGTERM)  # submitit's controller passes it on to the ranks
    return True


def add_status(parser: argparse.ArgumentParser) -> None:
    """Add the options of `status`."""
    _add_folders(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.set_defaults(command=status_command)


def add_history(parser: argparse.ArgumentParser) -> None:
    """Add the options of `history`."""
    _add_folders(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.set_defaults(command=history_command)


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Add the options of `logs`."""
    parser.add_argument("folder", type=Path, help="run folder, or another folder of jobs")
    parser.add_argument("--job", help="id of the job (default: the newest)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    parser.set_defaults(command=logs_command)


def add_cancel(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cancel`."""
    _add_folders(parser)
    parser.set_defaults(command=cancel_command)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="run folders, or folders of them"
    )


SACCT = ("JobID", "State", "ElapsedRaw", "NNodes", "AllocTRES", "Start", "End", "ExitCode")


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


def _ended(row: Mapping[str, str]) -> str:
    return in_words(row["State"].split()[0], exit_code(row["ExitCode"]), "")


def format_history(history: Mapping[str, Any]) -> str:
    """Return a folder's history as a table and a line of totals."""
    lines = [Path(history["folder"]).name]
    lines += [
        f"  {row['kind']:12} {row['JobID']:12} {_ended(row):24}"
        f" {row['Start']:20} {int(row['ElapsedRaw']):8,} s  {row['NNodes']} nodes"
        for row in history["runs"]
    ]
    goodput = history["goodput"]
    text = f"  {history['gpu_hours']:.2f} GPU-hours, {history['node_hours']:.2f} node-hours"
    text += f", {history['requeues']} requeues"
    lines.append(text + (f", goodput {100 * goodput:.0f}%" if goodput is not None else ""))
    return "\n".join(lines)


POLL_SECONDS, STATE_SECONDS = 0.5, 5.0


class TaskLogs:
    """The log files of a job, read on from where the last look ended.

    Args:
        record: The job.
        job_id: Its id, or that of one task of an array.
    """

    def __init__(self, record: JobRecord, job_id: str) -> None:
        self._folder, self._job_id = Path(record.logs), job_id
        self._read: dict[Path, int] = {}
        self._torn: dict[Path, str] = {}

    def new_lines(self, *, flush: bool = False) -> Iterator[str]:
        """Yield the whole lines written since the last call; `flush` also a torn last one."""
        for path in sorted(self._folder.glob(f"{self._job_id}_*_log.*")):
            rank = path.name.removeprefix(f"{self._job_id}_").partition("_")[0]
            if not rank.isdigit() or path.suffix not in (".out", ".err"):
                continue
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                text = self._torn.pop(path, "") + file.read().decode(errors="replace")
                self._read[path] = file.tell()
            *lines, rest = text.split("\n")
            if rest:
                if flush:
                    lines.append(rest)
                else:
                    self._torn[path] = rest
            mark = "!" if path.suffix == ".err" else " "
            yield from (f"[{rank}]{mark} {line}" for line in lines)


def show(record: JobRecord, job_id: str, *, follow: bool) -> None:
    """Print a job's logs; with `follow`, until it has left the queue."""
    commands = TaskLogs(record, job_id)
    _print(commands.new_lines(flush=not follow))
    checked = time.monotonic()
    while follow:
        time.sleep(POLL_SECONDS)
        _print(commands.new_lines())
        if time.monotonic() - checked > STATE_SECONDS:
            checked = time.monotonic()
            follow = is_alive(record, job_id, queue_or_nothing())
    _print(commands.new_lines(flush=True))


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(line)
    sys.stdout.flush()
