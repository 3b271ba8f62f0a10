"""The evaluation schedule of a run, `evaluation/plan.json`: what is evaluated while it trains.

The names in the file, and its own, stay as they are: jobs may run older code, which rejects new
ones. Its checksum is beside it, in `plan.checksum`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from dist_train.runtime.run_files import read_summary
from models.command_line import EXIT_REJECTED
from models.safe_files.documents import (
    DocumentError,
    Format,
    checksum,
    read_object,
    replace_document,
)
from models.safe_files.typed_json import ConfigError, from_json, to_json
from slurm.continuous_eval.leases import Work
from slurm.continuous_eval.panels import log_results
from slurm.jobs.jobs import run_command, run_in_rank, the_same_again
from slurm.jobs.ranks import Task, this_task
from slurm.jobs.records import say_once
from slurm.resources import Resources, check_job_name

PLAN, CHECKSUMS = "plan.json", "plan.checksum"
LONGEST_NAME = 200
"""Characters of a protocol's name: names of its files are longer, and file systems allow 255."""


@dataclass(frozen=True, kw_only=True)
class ScheduledProtocol:
    """One way to evaluate snapshots.

    Attributes:
        name: Name of its results.
        words: Arguments of `relaywave eval run`, such as `--reference R.npz --seeds 0-9999`.
        before: Snapshots, or run directories (their newest), of earlier stages of a relay.
        every_images: Only snapshots at multiples of this, and the last one, are evaluated:
            milestones; 0 is all.
    """

    name: str
    words: tuple[str, ...]
    before: tuple[str, ...] = ()
    every_images: int = 0

    def __post_init__(self) -> None:
        check_job_name(self.name)
        if len(self.name) > LONGEST_NAME:
            raise ValueError(
                f"the protocol name {self.name[:40]}... has {len(self.name)} characters; it names"
                f" files: use at most {LONGEST_NAME}"
            )
        if "." in self.name:
            raise ValueError(f"the protocol name {self.name!r} must not have a dot")

    def wants(self, images: int, total_images: int) -> bool:
        """Whether the snapshot at `images` is evaluated so."""
        milestone = not self.every_images or images % self.every_images == 0
        return images > 0 and (milestone or images >= total_images)


@dataclass(frozen=True, kw_only=True)
class EvaluationSchedule:
    """The protocols by which the snapshots of a run are evaluated, and what follows from results.

    Attributes:
        protocols: Usually two tiers: a quick one for each snapshot, a full one for milestones.
        resources: What each job requests.
        best: The value that decides the best snapshot, as `protocol:metric.value`; "" for none.
        highest: Whether the best is the highest value instead of the lowest.
        patience: Stop training when this many newer evaluated snapshots are not better; 0 never.
        keep_snapshots: Keep this many newest snapshots, the best one, milestones, and all that
            still have to be evaluated; 0 keeps all.
        max_attempts: How often an evaluation is tried.
        backoff_seconds: Wait after a failure; doubles with each.
        claim_seconds: How long a caller may take from a claim to its submission.
    """

    JSON_NAME: ClassVar[str] = "EvaluationPlan"

    protocols: tuple[ScheduledProtocol, ...]
    resources: Resources = field(default_factory=Resources)
    best: str = ""
    highest: bool = False
    patience: int = 0
    keep_snapshots: int = 0
    max_attempts: int = 3
    backoff_seconds: float = 600.0
    claim_seconds: float = 600.0

    def __post_init__(self) -> None:
        names = [protocol.name for protocol in self.protocols]
        if not names:
            raise ValueError("protocols=[] names none; a schedule needs at least one")
        if len(set(names)) != len(names):
            raise ValueError(f"two protocols have the same name: {', '.join(names):.200}")
        if self.best and (":" not in self.best or self.best.split(":")[0] not in names):
            raise ValueError(f"best={self.best!r:.200} is not like {names[0]:.80}:metric.value")
        if self.patience and not self.best:
            raise ValueError("patience needs `best`, to tell which snapshot is better")


@dataclass(frozen=True, kw_only=True)
class PlanChecksums:
    """What plan.checksum holds: the checksum of plan.json; while it is being replaced, of both."""

    checksums: tuple[str, ...]


_CHECKSUMS = Format(
    schema=PlanChecksums,
    needs_checksum=True,
    remedy=f"if {PLAN} is as it should be, give it to the run again by `relaywave slurm reconcile`",
)


@dataclass(frozen=True)
class EvalJob:
    """Evaluate one snapshot by one protocol, unless the claim of this attempt expired.

    Attributes:
        work: What is evaluated.
        protocol: How.
        attempt: Number of the attempt.
    """

    work: Work
    protocol: ScheduledProtocol
    attempt: int

    @property
    def title(self) -> str:
        """What it does, for people."""
        return f"{self.protocol.name} of {self.work.run_dir.name} at {self.work.images:,} images"

    def finished(self) -> bool:
        """Whether the result exists."""
        return self.work.result.exists()

    def __call__(self) -> str:
        """Evaluate in this rank."""
        task = this_task()
        if self.finished() or not self._starts(task.job_id):
            return "left to another job"
        run_in_rank(self._evaluate)
        return "finished"

    def _evaluate(self, task: Task) -> None:
        snapshot = self.work.run_dir / "snapshots" / f"{self.work.images:012d}"
        arguments = ["run", *self.protocol.before, str(snapshot), *self.protocol.words]
        run_command("evaluation", [*arguments, "--replace", "--out", str(self.work.unfinished)])
        if task.rank == 0:
            self.work.finish()
            self._log()

    def _log(self) -> None:
        """Send the result to the run's loggers, unless training does that; it is there anyway."""
        try:
            log_results(self.work.run_dir)
        except (OSError, ValueError) as error:
            say_once(f"{error}; the result is not sent to the run's loggers")

    def _starts(self, job_id: str) -> bool:
        """Whether this job is the one to run the attempt; ends it if that cannot be known."""
        try:
            return self.work.start(self.attempt, job_id)
        except (DocumentError, OSError) as error:
            print(f"slurm: {error}", file=sys.stderr, flush=True)
            sys.exit(EXIT_REJECTED)

    def checkpoint(self) -> object:
        """Return what submitit starts again on this machine: the same."""
        return the_same_again(self)


def read_schedule(run_dir: Path) -> EvaluationSchedule | None:
    """Return the schedule of a run, None without one.

    Raises:
        ConfigError: It does not parse, or was changed after it was written; those of older
            versions have no checksum.
    """
    path = run_dir / "evaluation" / PLAN
    try:
        document = read_object(path)
        known = _known_checksums(path.with_name(CHECKSUMS))
    except FileNotFoundError:
        return None
    except DocumentError as error:
        raise ConfigError(str(error)) from None
    if known and checksum(document) not in known:
        raise ConfigError(
            f"{path} was changed after it was written (its checksum in {CHECKSUMS} does not match);"
            f" if you changed it, accept it by `relaywave slurm reconcile {run_dir} --plan {path}`"
        )
    return from_json(EvaluationSchedule, document, PLAN)


def _known_checksums(path: Path) -> tuple[str, ...]:
    try:
        return _CHECKSUMS.read(path).checksums
    except FileNotFoundError:
        return ()


def write_schedule(run_dir: Path, schedule: EvaluationSchedule) -> None:
    """Give a run a schedule."""
    path = run_dir / "evaluation" / PLAN
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_document(
        path,
        to_json(schedule),
        lambda checksums: _CHECKSUMS.write(path.with_name(CHECKSUMS), {"checksums": checksums}),
    )


def total_images(run_dir: Path) -> int:
    """Return the length of a run, from its configuration. Raises ConfigError if it has none."""
    return read_summary(run_dir).total_images


def snapshots(run_dir: Path) -> list[int]:
    """Return the images seen of a run's committed snapshots, in order."""
    return sorted(int(p.parent.name) for p in run_dir.glob("snapshots/[0-9]*/snapshot.json"))
