"""Records of jobs: `slurm/` in the directory that they work for, and nowhere else.

Jobs may run older code than the commands that read this, and the other way round: keys stay as
they are.

<root>/slurm/code/<digest>/          the code that the jobs run
<root>/slurm/jobs/<id>.json          what was submitted
<root>/slurm/jobs/<id>.attempts.jsonl  every start and end of a training job, and why
<root>/slurm/jobs/<id>_<task>_log.out, .err   what tasks print (submitit's names)
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.config_io import ConfigError, from_json, to_json
from models.safe_files.json_lines import read_lines
from slurm.resources import Policy, Resources


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

    job_id: str
    kind: str
    name: str
    cluster: str
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
        write_json(self.records_dir / f"{record.job_id}.json", to_json(record))

    def records(self) -> list[JobRecord]:
        """Return the records of all jobs, oldest first."""
        found: list[JobRecord] = []
        for path in self.records_dir.glob("*.json"):
            try:
                found.append(from_json(JobRecord, json.loads(path.read_text()), path.name))
            except json.JSONDecodeError as error:
                raise ConfigError(
                    f"{path} cannot be read as the record of a job: {error}"
                ) from None
        return sorted(found, key=lambda record: (record.submitted, record.job_id))

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """Return what a training job has noted about its starts and ends, oldest first."""
        return read_lines(self._attempts(job_id))

    def note(self, job_id: str, event: str, **facts: Any) -> None:
        """Add to what a job has noted: one line in one write, so that ranks do not mix theirs."""
        self.records_dir.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"event": event, "time": time.time(), **facts}) + "\n"
        with open(self._attempts(job_id), "ab", buffering=0) as file:
            file.write(line.encode())

    def _attempts(self, job_id: str) -> Path:
        return self.records_dir / f"{job_id}.attempts.jsonl"


def images_saved(run_dir: Path) -> int:
    """Return the images seen of the newest committed checkpoint, 0 without any.

    This module does not import torch: batch scripts and `status` use it too.
    """
    markers = run_dir.glob("checkpoints/[0-9]*/checkpoint.json")
    return max((int(marker.parent.name) for marker in markers), default=0)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that readers see the old file or all of the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)
