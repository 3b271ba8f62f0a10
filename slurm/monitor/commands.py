"""`relaywave slurm status | logs | history | cancel`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.runtime.metrics_file import read_metrics
from models.command_line import check_least
from slurm.jobs import local
from slurm.jobs.exit_reason import accounting_of, exit_code, exit_states, format_exit
from slurm.jobs.records import JobDir, JobRecord
from slurm.jobs.throughput import productive_seconds
from slurm.log_lines import parse_since, time_of
from slurm.monitor.status import (
    exited_states,
    find_job_dirs,
    format_status,
    is_alive,
    queue_or_empty,
    run_status,
)
from slurm.monitor.table import TABLE_FORMS, format_runs
from slurm.monitor.watch import duration, watch
from slurm.slurm_cli import queued, run_slurm, seconds_of

WATCH_SECONDS = 10.0
POLL_SECONDS, STATE_SECONDS = 0.5, 5.0
"""How often `logs --follow` looks for new lines, and whether the job is still there."""
SACCT = ("State", "ElapsedRaw", "NNodes", "AllocTRES", "Start", "End", "ExitCode")
"""Fields of accounting that `history` shows, beside those that say which job it is."""


def add_status(parser: argparse.ArgumentParser) -> None:
    """Add the options of `status`."""
    _add_paths(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON for scripts")
    shown.add_argument(
        "--table",
        nargs="?",
        const="text",
        choices=TABLE_FORMS,
        help="print a row per run, such as those of a sweep: settings in which they differ, state,"
        f" loss, newest results; as {', '.join(TABLE_FORMS)} (default: text)",
    )
    shown.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"show a table until Ctrl-C, anew every SECONDS (default: {WATCH_SECONDS:.0f})",
    )
    parser.set_defaults(command=status_command)


def status_command(args: argparse.Namespace) -> None:
    """Print where runs and their jobs stand, once or until Ctrl-C."""
    check_least(args, watch=1)
    if args.watch is None:
        show_status(args.paths, as_json=args.json, table=args.table)
    else:
        watch(args.paths, args.watch)


def show_status(paths: Iterable[Path], *, as_json: bool, table: str | None = None) -> None:
    """Print where runs and their jobs stand; `table` is the form of a table of runs."""
    roots = find_job_dirs(paths)  # first: a mistyped path is all that is said
    queue = queue_or_empty()
    exited = exited_states(roots, queue)
    found = [run_status(root, queue, exited) for root in roots]
    if table:
        print(format_runs(found, table))
        return
    print(json.dumps(found, indent=1) if as_json else "\n".join(map(format_status, found)))


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Add the options of `logs`."""
    parser.add_argument(
        "path", type=Path, metavar="DIR", help="run directory, or another with jobs"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--job", help="id of the job (default: the newest)")
    which.add_argument("--all", action="store_true", help="all jobs, the oldest first")
    parser.add_argument(
        "--rank", type=int, action="append", dest="ranks", help="only of this rank; may be repeated"
    )
    parser.add_argument(
        "--since", type=_since, metavar="TIME", help="only lines since 10m, 2h or 3d ago, or a"
        " time like 2026-01-31T18:00",
    )  # fmt: skip
    parser.add_argument("--tail", type=int, metavar="N", help="only the last N lines of a job")
    parser.add_argument("-f", "--follow", action="store_true", help="continue until the job ends")
    parser.set_defaults(command=logs_command)


def _since(text: str) -> float:
    try:
        return parse_since(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def logs_command(args: argparse.Namespace) -> None:
    """Print the logs of a job, or of all jobs of a directory."""
    check_least(args, tail=1)
    root = args.path.absolute()
    shown = Shown(frozenset(args.ranks or ()), args.since, args.tail, follow=args.follow)
    if not args.all:
        show_logs(root, args.job, shown)
        return
    if args.follow:
        raise ValueError("--follow is of one job; leave --all out")
    for record in JobDir(root).records():
        for job_id in record.task_ids:
            print(f"== {record.name}, job {job_id}")
            show_logs(root, job_id, shown)


@dataclass(frozen=True)
class Shown:
    """Which lines of logs are printed.

    Attributes:
        ranks: Only those of these ranks; of all if there are none.
        since: Only those printed since this time in Unix seconds; None is all.
        tail: Only so many last lines; None is all.
        follow: Whether to go on until the job has ended.
    """

    ranks: frozenset[int] = frozenset()
    since: float | None = None
    tail: int | None = None
    follow: bool = False


def show_logs(root: Path, job_id: str | None, shown: Shown) -> None:
    """Print the logs of a job, by default the newest of a directory, and how it ended.

    Raises:
        ValueError: There is no such job; names those that there are.
    """
    records = JobDir(root).records()
    known = [(record, task_id) for record in records for task_id in record.task_ids]
    found = [(record, task_id) for record, task_id in known if job_id in (None, task_id)]
    if not found:
        names = ", ".join(task_id for _, task_id in known)
        raise ValueError(f"{root} has no such job; known are {names or 'none'}")
    print_logs(*found[-1], shown)
    _print_exit(root, *found[-1])


def print_logs(record: JobRecord, job_id: str, shown: Shown) -> None:
    """Print a job's logs; with `follow`, until it has left the queue."""
    logs, follow = TaskLogs(record, job_id, shown.ranks, shown.since), shown.follow
    lines = logs.new_lines(flush=not follow)
    _print(lines if shown.tail is None else deque(lines, maxlen=shown.tail))
    checked = time.monotonic()
    while follow:
        time.sleep(POLL_SECONDS)
        _print(logs.new_lines())
        if time.monotonic() - checked > STATE_SECONDS:
            checked = time.monotonic()
            follow = is_alive(record, job_id, queue_or_empty())
    _print(logs.new_lines(flush=True))


class TaskLogs:
    """The log files of a job, each read from where the last call ended.

    Args:
        record: The job.
        job_id: Its id, or that of one task of an array.
        ranks: Only those of these ranks; of all if there are none.
        since: Only lines printed since this time in Unix seconds; lines of older code have none.
    """

    def __init__(
        self, record: JobRecord, job_id: str, ranks: frozenset[int] = frozenset(),
        since: float | None = None,
    ) -> None:  # fmt: skip
        self._ranks, self._since = ranks, since or 0.0
        self._log_dir, self._job_id = Path(record.logs), job_id
        self._read: dict[Path, int] = {}
        self._partial: dict[Path, str] = {}
        self._times: dict[Path, float] = {}

    def new_lines(self, *, flush: bool = False) -> Iterator[str]:
        """Yield the complete lines written since the last call, in order of time, by rank.

        Args:
            flush: Yield a partial last one, too.
        """
        found: list[tuple[float, str]] = []
        for path in sorted(self._log_dir.glob(f"{self._job_id}_*_log.*"), key=self._rank):
            rank = self._rank(path)
            if rank < 0 or path.suffix not in (".out", ".err"):
                continue
            if not self._ranks or rank in self._ranks:
                mark = "!" if path.suffix == ".err" else " "
                found += [(at, f"[{rank}]{mark} {line}") for at, line in self._timed(path, flush)]
        # the sort is stable: lines of a file stay in its order
        yield from (line for at, line in sorted(found, key=lambda pair: pair[0])
                    if at >= self._since)  # fmt: skip

    def _rank(self, path: Path) -> int:
        rank = path.name.removeprefix(f"{self._job_id}_").partition("_")[0]
        return int(rank) if rank.isdecimal() else -1

    def _timed(self, path: Path, flush: bool) -> Iterator[tuple[float, str]]:
        """Yield the new lines of a file, each with its time: its own, or that of the last one."""
        with open(path, "rb") as file:
            file.seek(self._read.get(path, 0))
            text = self._partial.pop(path, "") + file.read().decode(errors="replace")
            self._read[path] = file.tell()
        *lines, rest = text.split("\n")
        if rest and flush:
            lines.append(rest)
        elif rest:
            self._partial[path] = rest
        for line in lines:
            self._times[path] = time_of(line) or self._times.get(path, 0.0)
            yield self._times[path], line


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
    sys.stdout.flush()


def _print_exit(root: Path, record: JobRecord, job_id: str) -> None:
    """Print a last line about a job that failed."""
    status = run_status(root, queue_or_empty(), exit_states([record]))
    job = next(job for job in status["jobs"] if job["job_id"] == job_id)
    if job["why"] or job["exit_code"]:
        print(f"job {job_id} {format_exit(job['state'], job['exit_code'], job['why'])}")


def add_history(parser: argparse.ArgumentParser) -> None:
    """Add the options of `history`."""
    _add_paths(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.set_defaults(command=lambda args: show_history(args.paths, as_json=args.json))


def show_history(paths: Iterable[Path], *, as_json: bool) -> None:
    """Print what runs have cost."""
    found = [run_history(root) for root in find_job_dirs(paths)]
    print(json.dumps(found, indent=1) if as_json else "\n".join(map(format_history, found)))


def run_history(root: Path) -> dict[str, Any]:
    """Return what the jobs of a directory have cost, by sacct, and how much of it was progress."""
    records = [r for r in JobDir(root).records() if r.cluster == "slurm"]
    own = accounting_of(records, SACCT)
    runs = [row | {"kind": record.kind} for row, record in own]
    training = sum(float(row["ElapsedRaw"]) for row in runs if row["kind"] == "train")
    productive = productive_seconds(read_metrics(root))
    goodput = min(productive / training, 1.0) if training else None
    trained = _gpu_hours((row, record) for row, record in own if record.kind == "train")
    return {
        "folder": str(root),
        "runs": runs,
        "gpu_hours": _gpu_hours(own),
        "node_hours": sum(int(row["NNodes"]) * float(row["ElapsedRaw"]) for row in runs) / 3600,
        "requeues": len(runs) - len({row["JobID"] for row in runs}),
        "requeued_seconds": _seconds_between_starts(runs),
        "lost_gpu_hours": trained * (1 - goodput) if goodput is not None else 0.0,
        "training_seconds": training,
        "productive_seconds": productive,
        "goodput": goodput,
    }


def _seconds_between_starts(rows: Sequence[Mapping[str, str]]) -> float:
    """Return how long jobs waited from the end of one start to the next one, by accounting."""
    waited, ended = 0.0, dict[str, float]()
    for row in sorted(rows, key=lambda row: row["Start"]):
        start, end = seconds_of(row["Start"]), seconds_of(row["End"])
        waited += max(start - ended.get(row["JobID"], start), 0.0) if start else 0.0
        ended[row["JobID"]] = end or start
    return waited


def _gpu_hours(starts: Iterable[tuple[Mapping[str, str], JobRecord]]) -> float:
    return sum(_gpus(*start) * float(start[0]["ElapsedRaw"]) for start in starts) / 3600


def _gpus(row: Mapping[str, str], record: JobRecord) -> int:
    """Return the GPUs of a start by accounting; what was requested where that does not count them.

    Accounting counts them only if the site has `AccountingStorageTRES=gres/gpu`.
    """
    for entry in row["AllocTRES"].split(","):
        name, _, count = entry.partition("=")
        if name == "gres/gpu":
            return int(count)
    return record.resources.gpus_per_node * int(row["NNodes"])


def format_history(history: Mapping[str, Any]) -> str:
    """Return the history of a directory as a table and a line of totals."""
    lines = [Path(history["folder"]).name]
    lines += [
        f"  {row['kind']:12} {row['JobID']:12} {_exit(row):24}"
        f" {row['Start']:20} {int(row['ElapsedRaw']):8,} s  {row['NNodes']} nodes"
        for row in history["runs"]
    ]
    goodput = history["goodput"]
    text = f"  {history['gpu_hours']:.2f} GPU-hours, {history['node_hours']:.2f} node-hours"
    lines.append(text + (f", goodput {100 * goodput:.0f}%" if goodput is not None else ""))
    if history["requeues"]:
        waited = duration(history["requeued_seconds"])
        lines.append(
            f"  {history['requeues']} requeues: {waited} between starts;"
            f" {history['lost_gpu_hours']:.2f} GPU-hours of starting, stopping and lost steps"
        )
    return "\n".join(lines)


def _exit(row: Mapping[str, str]) -> str:
    return format_exit(row["State"].split()[0], exit_code(row["ExitCode"]), "")


def add_cancel(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cancel`."""
    _add_paths(parser)
    parser.set_defaults(command=lambda args: cancel_jobs(args.paths))


def cancel_jobs(paths: Iterable[Path]) -> None:
    """Cancel the jobs of directories; training saves its state first."""
    for root in find_job_dirs(paths):
        cancelled = [record.job_id for record in JobDir(root).records() if cancel(root, record)]
        print(f"{root.name}: cancelled {', '.join(cancelled) or 'nothing'}")


def cancel(root: Path, record: JobRecord) -> bool:
    """Cancel a job of a directory; returns whether it was still there."""
    if record.cluster == "slurm":
        if not record.queued(queued([record.job_id])):
            return False
        run_slurm(["scancel", record.job_id])
        return True
    return record.cluster == "local" and local.stop(JobDir(root), record.job_id)


def _add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="DIR", help="run directories, or parents of some"
    )
