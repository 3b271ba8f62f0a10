"""Claims: each evaluation runs exactly once, however many callers there are.

In the directory of a result `evaluation/<images>/<protocol>.json` there are, for each attempt n,

.<protocol>.<n>.claim   a caller of `reconcile` will submit it; created by one caller only
.<protocol>.<n>.job     the job that was submitted
.<protocol>.<n>.start   the job that runs it, or "" if the claim expired before; created once only

All are created by hard links, which is atomic on network file systems too. If a caller is killed
before its submission, its claim expires after a while; if its job starts anyway, it sees that its
claim expired and exits. A file that cannot be read, or is damaged, is not one that is missing: what
it says is unknown, so that nothing is done about its evaluation.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from models.safe_files.atomic import temporary_path
from models.safe_files.documents import Format, checksum
from models.safe_files.transient import retried
from slurm.jobs.records import JobDir, check_time
from slurm.jobs.requeue import was_interrupted

REMEDY = "remove it, once no job of this evaluation is in the queue"


@dataclass(frozen=True)
class Claim:
    """When an attempt was claimed, in Unix time."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    time: float

    def __post_init__(self) -> None:
        check_time(self.time)


@dataclass(frozen=True)
class Submitted:
    """The job that an attempt was submitted as."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    job: str


@dataclass(frozen=True)
class Start:
    """When an attempt started, in Unix time, and the job that runs it; "" if it expired."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    time: float
    job: str

    def __post_init__(self) -> None:
        check_time(self.time)


CLAIMS = Format(schema=Claim, remedy=REMEDY, indent=None)
SUBMITTED = Format(schema=Submitted, remedy=REMEDY, indent=None)
STARTS = Format(schema=Start, remedy=REMEDY, indent=None)
T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """One protocol of one snapshot."""

    run_dir: Path
    images: int
    protocol: str

    @property
    def result_dir(self) -> Path:
        """Directory of the snapshot's results."""
        return self.run_dir / "evaluation" / f"{self.images:012d}"

    @property
    def result(self) -> Path:
        """The result; it exists once it is complete."""
        return self.result_dir / f"{self.protocol}.json"

    @property
    def unfinished(self) -> Path:
        """The result while metrics are missing."""
        return self.result_dir / f"{self.protocol}.working.json"

    @property
    def attempts(self) -> int:
        """How often it was claimed."""
        name = re.compile(rf"\.{re.escape(self.protocol)}\.([1-9][0-9]{{0,8}})\.claim")
        try:
            names = retried(lambda: os.listdir(self.result_dir), f"listing {self.result_dir}")
        except FileNotFoundError:
            return 0
        claims = map(name.fullmatch, names)
        return max((int(claim[1]) for claim in claims if claim), default=0)

    @property
    def failures(self) -> int:
        """How many attempts became a job; without a result or a live attempt, all have failed.

        Those that Slurm preempted for good, or that could not be requeued, do not count.
        """
        job_ids = filter(None, map(self.job_of, range(1, self.attempts + 1)))
        jobs = JobDir(self.run_dir)
        return sum(1 for job_id in job_ids if not was_interrupted(jobs, job_id))

    def claim(self, attempt: int) -> bool:
        """Claim an attempt; returns whether it is this caller's."""
        facts = {"time": time.time(), "pid": os.getpid()}
        return create(self._file(attempt, "claim"), facts | {"checksum": checksum(facts)})

    def submitted(self, attempt: int, job_id: str) -> None:
        """Note the job that an attempt was submitted as."""
        SUBMITTED.write(self._file(attempt, "job"), {"job": job_id})

    def start(self, attempt: int, job_id: str) -> bool:
        """Start an attempt, in each task; returns whether this job is the one to run it."""
        self._mark_start(attempt, job_id)
        return STARTS.read(self._file(attempt, "start")).job == job_id

    def job_of(self, attempt: int) -> str:
        """Return the job that runs an attempt, or was submitted for it; "" if none is known."""
        started = self._read(attempt, "start", STARTS)
        if started is not None and started.job:
            return started.job
        submitted = self._read(attempt, "job", SUBMITTED)
        return submitted.job if submitted is not None else ""

    def alive(
        self,
        attempt: int,
        queue: Collection[str],
        patience: float,
        ask: Callable[[], Collection[str]] = tuple,
    ) -> bool:
        """Whether an attempt may still produce a result; if not, its claim expires for good.

        Args:
            attempt: Its number.
            queue: Ids of the jobs in Slurm's queue, asked *before* the result was looked for.
            patience: Seconds after which a claim without a job expires.
            ask: Asks for the queue again: one from before a job was submitted does not list it. A
                job in neither has ended, perhaps with a result just now.

        Raises:
            DocumentError: A file of the attempt cannot be read, or is damaged: it stays.
        """
        started = self._read(attempt, "start", STARTS)
        if started is not None:
            return bool(started.job) and (started.job in queue or started.job in ask())
        job_id, claimed = self.job_of(attempt), self._read(attempt, "claim", CLAIMS)
        since = claimed.time if claimed is not None else 0.0
        if job_id in queue or (not job_id and time.time() - since < patience):
            return True
        if job_id and job_id in ask():
            return True
        return not self._mark_start(attempt, "")

    def ended(self, attempt: int) -> float:
        """Return when a dead attempt started or expired, in Unix time."""
        started = self._read(attempt, "start", STARTS)
        return started.time if started is not None else 0.0

    def finish(self) -> None:
        """Commit the result, which holds those of a protocol's ranges of seeds, if it has several.

        Raises:
            FileNotFoundError: It is not there.
        """
        try:
            os.link(self.unfinished, self.result)
        except FileExistsError:
            return
        for path in (self.unfinished, *self._ranges()):
            path.unlink(missing_ok=True)

    def _ranges(self) -> list[Path]:
        """Return the results of the ranges of seeds, one beside the other."""
        name = re.compile(rf"{re.escape(self.unfinished.stem)}-[0-9]{{1,9}}\.json")
        return [path for path in self.result_dir.iterdir() if name.fullmatch(path.name)]

    def _mark_start(self, attempt: int, job_id: str) -> bool:
        facts = {"time": time.time(), "job": job_id}
        return create(self._file(attempt, "start"), facts | {"checksum": checksum(facts)})

    def _read(self, attempt: int, kind: str, documents: Format[T]) -> T | None:
        try:
            return documents.read(self._file(attempt, kind))
        except FileNotFoundError:
            return None

    def _file(self, attempt: int, kind: str) -> Path:
        return self.result_dir / f".{self.protocol}.{attempt}.{kind}"


def create(path: Path, content: Mapping[str, Any]) -> bool:
    """Create a file with its content, unless it exists; returns whether it was created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    with open(temporary, "x") as file:
        file.write(json.dumps(content))
        file.flush()
        os.fsync(file.fileno())
    try:
        return retried(lambda: _linked(temporary, path), f"creating {path}")
    finally:
        temporary.unlink()


def _linked(temporary: Path, path: Path) -> bool:
    """Link a file under its final name; returns whether that is ours.

    A server that answers late may say that the name exists because it has just linked it.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        return temporary.samefile(path)
    return True
