"""Who evaluates a snapshot: exactly once, however many ask for it and whoever is killed.

Beside a result `evaluation/<images>/<protocol>.json` lie, for each attempt n,

.<protocol>.<n>.claim   a caller of `reconcile` wants to submit it; made by one caller only
.<protocol>.<n>.job     the job that it became
.<protocol>.<n>.start   the job that has begun it, or "" if it was given up before; made once only

All are made by hard links, which exist or not as a whole, on network file systems too. A caller
that is killed between its claim and its submission is replaced after a while; should its job come
after all, it finds that it was given up, and does nothing.
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
    def folder(self) -> Path:
        """Folder of the snapshot's results."""
        return self.run_dir / "evaluation" / f"{self.images:012d}"

    @property
    def result(self) -> Path:
        """The result; it exists when all of it is there."""
        return self.folder / f"{self.protocol}.json"

    @property
    def unfinished(self) -> Path:
        """The result as long as metrics are missing."""
        return self.folder / f"{self.protocol}.working.json"

    @property
    def attempts(self) -> int:
        """How often the work was claimed."""
        claims = self.folder.glob(f".{self.protocol}.*.claim")
        return max((int(claim.name.split(".")[-2]) for claim in claims), default=0)

    @property
    def failures(self) -> int:
        """How many attempts became a job; of a work without result or live attempt, all failed."""
        return sum(1 for n in range(1, self.attempts + 1) if self.job_of(n))

    def claim(self, attempt: int) -> bool:
        """Claim an attempt; returns whether it is this caller's."""
        return create(self._file(attempt, "claim"), {"time": time.time(), "pid": os.getpid()})

    def submitted(self, attempt: int, job_id: str) -> None:
        """Note the job that an attempt became."""
        write_json(self._file(attempt, "job"), {"job": job_id})

    def start(self, attempt: int, job_id: str) -> bool:
        """Begin an attempt, in each of its tasks; returns whether it is this job's to do."""
        mark = self._file(attempt, "start")
        create(mark, {"time": time.time(), "job": job_id})
        return bool(json.loads(mark.read_text())["job"] == job_id)

    def job_of(self, attempt: int) -> str:
        """Return the job that began an attempt, or was submitted for it; "" if none is known."""
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
        """Whether an attempt may still come to an end; gives it up if it cannot.

        Args:
            attempt: Its number.
            queue: Ids of the jobs in Slurm's queue, asked *before* the result was looked for.
            patience: Seconds that a claim without a job stands.
            ask: Asks for the queue anew: one that was asked for before a job was submitted does
                not know it. A job that is in neither has ended, perhaps with a result just now.
        """
        started = self._read(attempt, "start")
        if started is not None:
            begun = started["job"]
            return bool(begun) and (begun in queue or begun in ask())
        job_id, claimed = self.job_of(attempt), self._read(attempt, "claim") or {"time": 0.0}
        if job_id in queue or (not job_id and time.time() - claimed["time"] < patience):
            return True
        if job_id and job_id in ask():
            return True
        given_up = create(self._file(attempt, "start"), {"time": time.time(), "job": ""})
        return not given_up

    def ended(self, attempt: int) -> float:
        """Return when a dead attempt was begun or given up, in Unix time."""
        started = self._read(attempt, "start")
        return float(started["time"]) if started else 0.0

    def finish(self) -> None:
        """Make the result count."""
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
        return self.folder / f".{self.protocol}.{attempt}.{kind}"


def create(path: Path, content: dict[str, Any]) -> bool:
    """Make a file with its content, unless it exists; returns whether it was made."""
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
