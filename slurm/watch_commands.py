"""`python -m slurm status | logs | history | cancel`."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path

from slurm import logs
from slurm.endings import ended_states, in_words
from slurm.folder import JobFolder, JobRecord
from slurm.history import format_history, run_history
from slurm.queue import queued, run_slurm
from slurm.watching import (
    find_folders,
    format_status,
    queue_or_nothing,
    run_status,
    states_of_ended,
)


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
    logs.show(*choices[-1], follow=args.follow)
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
