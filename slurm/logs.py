"""`python -m slurm logs RUN`: what all tasks of a job print, each line with its rank."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from slurm.folder import JobRecord
from slurm.watching import is_alive, queue_or_nothing

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
    logs = TaskLogs(record, job_id)
    _print(logs.new_lines(flush=not follow))
    checked = time.monotonic()
    while follow:
        time.sleep(POLL_SECONDS)
        _print(logs.new_lines())
        if time.monotonic() - checked > STATE_SECONDS:
            checked = time.monotonic()
            follow = is_alive(record, job_id, queue_or_nothing())
    _print(logs.new_lines(flush=True))


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(line)
    sys.stdout.flush()
