"""`relaywave slurm status --watch`: a table of runs that follows them, by rich."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_train.runtime.metrics_file import read_metrics
from dist_train.runtime.run_files import read_settings
from models.config_io import ConfigError
from slurm.monitor.history import read_history
from slurm.monitor.status import exited_states, find_job_dirs, queue_or_empty, run_status

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "run",
    "job",
    "step",
    "images",
    "images/s",
    "MFU",
    "loss",
    "next checkpoint",
    "left",
    "goodput",
)


def watch(paths: Iterable[Path], every: float) -> None:
    """Show the table until Ctrl-C; where the output is no terminal, a table after another.

    Args:
        paths: Run directories, or parents of some.
        every: Seconds between two tables.

    Raises:
        ValueError: A path has neither a run nor a job.
    """
    from rich.console import Console
    from rich.live import Live

    given = list(paths)
    find_job_dirs(given)
    console = Console()
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            while True:
                table = table_of(given)
                live.update(table, refresh=True)
                if not console.is_terminal:
                    console.print(table)
                time.sleep(every)
    except KeyboardInterrupt:
        return


def table_of(paths: Iterable[Path]) -> Table:
    """Return the table of the runs at or below some paths, as they stand now."""
    from rich.table import Table

    roots = find_job_dirs(paths)
    queue = queue_or_empty()
    exited = exited_states(roots, queue)
    table = Table(*COLUMNS, caption=time.strftime("%H:%M:%S"), box=None, pad_edge=False)
    for root in roots:
        table.add_row(*row_of(root, run_status(root, queue, exited)))
    return table


def row_of(root: Path, status: Mapping[str, Any]) -> list[str]:
    """Return a run's row, by COLUMNS.

    Args:
        root: The run directory, or another one with jobs.
        status: As `run_status` returns it.
    """
    if "recipe" not in status:
        return [root.name, job_text(status), *[""] * (len(COLUMNS) - 2)]
    seen, total, rate = status["images_seen"], status["total_images"], status["images_per_second"]
    losses = [f"{value:.4g}" for value in status["losses"].values() if value is not None]
    finished = seen >= total
    return [
        root.name,
        job_text(status),
        f"{status['step']:,}",
        f"{seen:,}/{total:,} ({seen / total:.0%})",
        f"{rate:,.4g}" if rate else "",
        f"{status['mfu']:.0%}" if status["mfu"] is not None else "",
        " ".join(losses),
        "" if finished else next_checkpoint(root, seen, rate),
        "" if finished else duration(status["seconds_left"]),
        goodput(root, status),
    ]


def job_text(status: Mapping[str, Any]) -> str:
    """Return the state of the job that matters: one in the queue, else how the newest ended."""
    if not status["jobs"]:
        return ""
    alive = [job for job in status["jobs"] if job["in_queue"]]
    job = (alive or status["jobs"])[-1]
    if status["lost"] and not alive:
        return "unfinished, not queued"
    reason = f" ({job['reason']})" if job["reason"] else ""
    return f"{job['job_id']} {job['state'].lower()}{reason}"


def next_checkpoint(root: Path, seen: int, rate: float | None) -> str:
    """Return in how many images, and minutes, the next checkpoint is due; "" if it is unknown."""
    try:
        every = read_settings(root)["checkpoint"]["every_images"]
    except (ConfigError, OSError, KeyError, TypeError):
        return ""
    left = every - seen % every
    return f"{left:,} images" + (f", {duration(left / rate)}" if rate else "")


def goodput(root: Path, status: Mapping[str, Any]) -> str:
    """Return which part of the time of all starts was progress; "" if none is recorded."""
    running = any(job["in_queue"] and job["state"] == "RUNNING" for job in status["jobs"])
    found = read_history(root, read_metrics(root), time.time() if running else None)
    if found.goodput is None:
        return ""
    return f"{'≤ ' if found.is_bound else ''}{found.goodput:.0%}"


def duration(seconds: float | None) -> str:
    """Return seconds as people say them: `3 min`, `2.5 h`, `1.2 d`."""
    if seconds is None:
        return ""
    for size, name in ((86400, "d"), (3600, "h")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{max(seconds / 60, 1):.0f} min"
