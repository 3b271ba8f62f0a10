"""Claims: each evaluation runs exactly once, however many callers there are.

In the directory of a result `evaluation/<images>/<protocol>.json` there are, for each attempt n,

.<protocol>.<n>.claim   a caller of `reconcile` will submit it; created by one caller only
.<protocol>.<n>.job     the job that was submitted
.<protocol>.<n>.start   the job that runs it, or "" if the claim expired before; created once only

All are created by hard links, which is atomic on network file systems too. If a caller is killed
before its submission, its claim expires after a while; if its job starts anyway, it sees that its
claim expired and exits.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.jobs.records import write_json


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
        claims = self.result_dir.glob(f".{self.protocol}.*.claim")
        return max((int(claim.name.split(".")[-2]) for claim in claims), default=0)

    @property
    def failures(self) -> int:
        """How many attempts became a job; without a result or a live attempt, all have failed."""
        return sum(1 for n in range(1, self.attempts + 1) if self.job_of(n))

    def claim(self, attempt: int) -> bool:
        """Claim an attempt; returns whether it is this caller's."""
        return create(self._file(attempt, "claim"), {"time": time.time(), "pid": os.getpid()})

    def submitted(self, attempt: int, job_id: str) -> None:
        """Note the job that an attempt was submitted as."""
        write_json(self._file(attempt, "job"), {"job": job_id})

    def start(self, attempt: int, job_id: str) -> bool:
        """Start an attempt, in each task; returns whether this job is the one to run it."""
        mark = self._file(attempt, "start")
        create(mark, {"time": time.time(), "job": job_id})
        return bool(json.loads(mark.read_text())["job"] == job_id)

    def job_of(self, attempt: int) -> str:
        """Return the job that runs an attempt, or was submitted for it; "" if none is known."""
        for kind in ("start", "job"):
            noted = self._read(attempt, kind)
            if noted and noted["job"]:
                return str(noted["job"])
        return ""

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
        """
        started = self._read(attempt, "start")
        if started is not None:
            running = started["job"]
            return bool(running) and (running in queue or running in ask())
        job_id, claimed = self.job_of(attempt), self._read(attempt, "claim") or {"time": 0.0}
        if job_id in queue or (not job_id and time.time() - claimed["time"] < patience):
            return True
        if job_id and job_id in ask():
            return True
        expired = create(self._file(attempt, "start"), {"time": time.time(), "job": ""})
        return not expired

    def ended(self, attempt: int) -> float:
        """Return when a dead attempt started or expired, in Unix time."""
        started = self._read(attempt, "start")
        return float(started["time"]) if started else 0.0

    def finish(self) -> None:
        """Commit the result."""
        try:
            os.link(self.unfinished, self.result)
        except FileExistsError:
            return
        self.unfinished.unlink()

    def _read(self, attempt: int, kind: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(self._file(attempt, kind).read_text())
        except FileNotFoundError:
            return None
        return content

    def _file(self, attempt: int, kind: str) -> Path:
        return self.result_dir / f".{self.protocol}.{attempt}.{kind}"


def create(path: Path, content: dict[str, Any]) -> bool:
    """Create a file with its content, unless it exists; returns whether it was created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(content))
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True
