"""Records of jobs: `slurm/` in the directory that they work for, and nowhere else.

Jobs may run older code than the commands that read this, and the other way round: keys stay as
they are. Older code rejects a record with new ones: its checksum is in the log of the job instead.

<root>/slurm/code/<digest>/          the code that the jobs run
<root>/slurm/jobs/<id>.json          what was submitted
<root>/slurm/jobs/<id>.attempts.jsonl  its checksum; every start and end of a training job, and why
<root>/slurm/jobs/<id>_<task>_log.out, .err   what tasks print (submitit's names)
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from models.config_io import ConfigError, from_json, to_json
from models.safe_files.atomic import atomic_file
from models.safe_files.documents import DocumentError, Format, checksum, read_object
from models.safe_files.json_lines import read_lines, stamped
from models.safe_files.transient import retried
from slurm.resources import Policy, Resources
from slurm.slurm_cli import QueuedJob


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A submitted job.

    Attributes:
        job_id: Slurm's id; of an array, that of all its tasks; of a local job, its process.
        kind: Command that submitted it: `train`, `eval`, ...
        name: Job name.
        cluster: The executor: `slurm`, `local` or `debug`.
        submitted: Unix time.
        cwd: Directory that it was submitted from.
        code: Directory of its code.
        resources: What it requested.
        logs: Directory of what its tasks print.
        tasks: Title of each array task; one entry if it is no array.
        policy: How often it is run again; for training only.
    """

    IGNORES_UNKNOWN: ClassVar[bool] = True

    job_id: str
    kind: str
    name: str
    cluster: Literal["slurm", "local", "debug"]
    submitted: float
    cwd: str
    code: str
    resources: Resources
    logs: str
    tasks: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)

    @property
    def task_ids(self) -> list[str]:
        """Ids of the array's tasks (`12_0`, ...), or the job's own."""
        if len(self.tasks) < 2:
            return [self.job_id]
        return [f"{self.job_id}_{number}" for number in range(len(self.tasks))]

    def queued(self, queue: Mapping[str, QueuedJob]) -> dict[str, QueuedJob]:
        """Return which of its jobs are in Slurm's queue."""
        found = {job_id: queue[job_id] for job_id in self.task_ids if job_id in queue}
        return {i: job for i, job in found.items() if self.is_of(job.name, job.submitted)}

    def is_of(self, name: str, submitted: float) -> bool:
        """Whether a job that has one of its ids is this one.

        Ids come again after slurmctld has lost its state. A requeue is another submission by Slurm,
        later, and users may rename jobs: one of another name and time, or of before, is another.

        Args:
            name: The name of the job.
            submitted: Unix time; 0 if it is not known.
        """
        later = submitted - self.submitted if submitted else 0.0
        return later > -WRONG_CLOCK and (abs(later) < SAME_SUBMISSION or name == self.name)


@dataclass(frozen=True)
class JobDir:
    """The jobs of a directory, such as a run directory."""

    root: Path

    @property
    def slurm_dir(self) -> Path:
        """Directory of all that belongs to jobs."""
        return self.root / "slurm"

    @property
    def records_dir(self) -> Path:
        """Directory of records and logs."""
        return self.slurm_dir / "jobs"

    def write(self, record: JobRecord) -> None:
        """Write a record, atomically."""
        self.records_dir.mkdir(parents=True, exist_ok=True)
        document = to_json(record)
        self.note(record.job_id, SUBMITTED, checksum=checksum(document))
        with atomic_file(self.records_dir / f"{record.job_id}.json") as file:
            file.write(json.dumps(document, indent=1).encode() + b"\n")

    def records(self) -> list[JobRecord]:
        """Return the records of all jobs, oldest first; skips damaged ones, and says so."""
        found = []
        for path in self._record_paths():
            try:
                found.append(self._read(path))
            except FileNotFoundError:
                continue
            except ValueError as error:
                say_once(f"{error}; the record is skipped")
        return sorted(found, key=lambda record: (record.submitted, record.job_id))

    def own(self, queue: Mapping[str, QueuedJob]) -> dict[str, QueuedJob]:
        """Return the queue without jobs that only have the id of one of these."""
        mine = {i: record for record in self.records() for i in record.task_ids}
        return {job_id: job for job_id, job in queue.items()
                if job_id not in mine or mine[job_id].is_of(job.name, job.submitted)}  # fmt: skip

    def damaged(self) -> list[str]:
        """Return the ids of jobs whose records cannot be read: their files have these names."""
        readable = {record.job_id for record in self.records()}
        return sorted({path.stem for path in self._record_paths()} - readable)

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """Return what a training job has noted about its starts and ends, oldest first."""
        return [line for line in self._noted(job_id) if line["event"] != SUBMITTED]

    def note(self, job_id: str, event: str, **facts: Any) -> None:
        """Add to what a job has noted: one line in one write, so that ranks do not mix theirs."""
        self.records_dir.mkdir(parents=True, exist_ok=True)
        line = stamped(event, **facts)
        path = self._log(job_id)
        with retried(lambda: open(path, "ab", buffering=0), f"opening {path}") as file:
            file.write(line.encode())

    def _read(self, path: Path) -> JobRecord:
        """Read a record. Raises ValueError, which names the file, if it is damaged."""
        document = read_object(path)
        noted = {line.get("checksum") for line in self._noted(path.stem, SUBMITTED)}
        if noted and checksum(document) not in noted:
            raise DocumentError(f"{path} was changed after it was written (by its checksum)")
        try:
            record: JobRecord = from_json(JobRecord, document, path.name)
        except (ConfigError, RecursionError) as error:
            raise DocumentError(f"{path} does not parse: {error}") from None
        if record.job_id != path.stem:
            raise DocumentError(f"{path} is the record of another job, {record.job_id[:80]!r}")
        return record

    def _record_paths(self) -> Iterator[Path]:
        return (path for path in self.records_dir.glob("*.json") if not path.name.startswith("."))

    def _noted(self, job_id: str, event: str = "") -> list[dict[str, Any]]:
        lines = read_lines(self._log(job_id), _is_note)
        return [line for line in lines if event in ("", line["event"])]

    def _log(self, job_id: str) -> Path:
        return self.records_dir / f"{job_id}.attempts.jsonl"


SAME_SUBMISSION = 120.0
"""Seconds by which the clocks of Slurm and of the machine that submits may differ."""
WRONG_CLOCK = 3600.0
"""Seconds by which the clocks of a badly kept site may differ, for jobs of the same name."""
SUBMITTED = "submitted"
"""Event that a record was written, with its checksum; not one of the job itself."""
MAX_TIME = 1e11
NEEDED = {"start": {"images_seen"}, "exit": {"rank", "code"}, "crash": {"requeue"}}
"""What a job's decisions depend on, by event."""


@dataclass(frozen=True)
class _Note:
    """A line of a job's log: the types of what any event may have."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    event: str
    time: float
    rank: int = 0
    ranks: int = 0
    restart: int = 0
    code: int = 0
    images_seen: int = 0
    requeue: bool = False
    cause: str = ""
    saved: int = 0
    state: str = ""
    why: str = ""
    said: str = ""
    checksum: str = ""
    host: str = ""
    gpu_hours: float = 0.0
    hosts: tuple[str, ...] = ()


def _is_note(line: Mapping[str, Any]) -> bool:
    try:
        note: _Note = from_json(_Note, dict(line))
    except ConfigError:
        return False
    return line.keys() >= NEEDED.get(note.event, set())


@dataclass(frozen=True)
class Stop:
    """Why a run must not be resumed, and since when (Unix time)."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    why: str
    time: float = 0.0

    def __post_init__(self) -> None:
        check_time(self.time)


def check_time(seconds: float) -> None:
    """Raise ValueError unless a number is a time in Unix seconds."""
    if not 0 <= seconds < MAX_TIME:
        raise ValueError(f"time={seconds} is no time")


STOPS = Format(schema=Stop, remedy="remove it to let the run be resumed")


def images_saved(run_dir: Path) -> int:
    """Return the images seen of the newest committed checkpoint, 0 without any.

    This module does not import torch: batch scripts and `status` use it too.
    """
    markers = run_dir.glob("checkpoints/[0-9]*/checkpoint.json")
    return max((int(marker.parent.name) for marker in markers), default=0)


@functools.lru_cache(maxsize=1000)
def say_once(text: str) -> None:
    """Print a warning, the first time that it is due in this process."""
    print(f"slurm: warning: {text}", file=sys.stderr, flush=True)
