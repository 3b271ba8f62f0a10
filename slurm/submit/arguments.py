"""Options that all submitting commands share, and what they resolve to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from slurm.jobs.records import JobRecord
from slurm.resources import Resources, check_job_name
from slurm.site import Site, read_site
from slurm.submit.launcher import Executor, Submission, batch_script, submit
from slurm.submit.preflight import check_idle, check_request, check_script, with_cores
from slurm.submit.sbatch_options import add_sbatch_options, changed, requested_by

YEAR = 365 * 24 * 60


@dataclass(frozen=True)
class Target:
    """Where a command submits to: the site, the executor, or nowhere with `--dry-run`."""

    site: Site
    executor: Executor
    dry_run: bool

    @property
    def asks_slurm(self) -> bool:
        """Whether Slurm is there to be asked about a request."""
        return self.executor == "slurm" and not self.dry_run

    def check(self, resources: Resources, *paths: Path) -> None:
        """Check a request before anything is written, where Slurm can be asked.

        Raises:
            ValueError: Slurm lacks what is asked for, or this machine does not bear the ranks.
        """
        if self.executor != "slurm":
            from dist_train.runtime.launch import check_ranks

            check_ranks(resources.tasks_per_node, "--tasks-per-node")
        if self.asks_slurm:
            check_request(resources, self.site, paths)

    def check_idle(self, run_dir: Path) -> None:
        """Check that no job of a run is in the queue (not in a dry run)."""
        if not self.dry_run:
            check_idle(run_dir)

    def check_script(self, submission: Submission) -> None:
        """Have Slurm itself validate the batch script, where it can be asked."""
        if self.asks_slurm:
            check_script(batch_script(submission))

    def launch(self, submission: Submission) -> JobRecord | None:
        """Submit, and print and return which job it became; a dry run prints the batch script."""
        if self.dry_run:
            print(batch_script(submission).rstrip())
            return None
        self.check_script(submission)
        record = submit(submission)
        array = f" ({len(record.tasks)} tasks)" if len(record.tasks) > 1 else ""
        print(f"{record.name}: job {record.job_id}{array}, logs in {record.logs}")
        return record


@dataclass(frozen=True)
class SubmitOptions:
    """The shared options of a command line.

    Attributes:
        target: Where to submit to.
        requested: What each job requests, by the names of `Resources`; without what was left open.
        name: Job name; "" lets the command choose one.
    """

    target: Target
    requested: Mapping[str, Any]
    name: str = ""

    def resources(self, **defaults: int) -> Resources:
        """Return the request of a job; `defaults` fill in what the command line leaves open.

        This machine has no time limit of its own.
        """
        unlimited = {} if self.target.executor == "slurm" else {"minutes": YEAR}
        return self.changed({**defaults, **unlimited})

    def changed(self, earlier: Mapping[str, Any]) -> Resources:
        """Return an earlier request (fields of `Resources`) with what the command line changes."""
        found = changed(earlier, self.requested)
        return with_cores(found, self.target.site) if self.target.asks_slurm else found

    def job_name(self, default: str) -> str:
        """Return the job name. Raises ValueError if it is not safe everywhere."""
        return check_job_name(self.name or default)


def submit_options(args: argparse.Namespace) -> SubmitOptions:
    """Return the shared options of a parsed command line."""
    requested = requested_by(args.requested or [])
    if (minutes := getattr(args, "shrink_minutes", None)) is not None:
        requested["shrink_minutes"] = minutes
    return SubmitOptions(
        target=Target(read_site(args.site), cast(Executor, args.cluster), args.dry_run),
        requested=requested,
        name=args.name or "",
    )


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    """Add the shared options: where to submit to, and what each job requests."""
    parser.add_argument("--site", type=Path, help="site profile (TOML)")
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        default="slurm",
        help="executor: Slurm, processes of this machine, or this process itself",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the batch script and do nothing"
    )
    group = parser.add_argument_group("what each job requests from Slurm")
    add_sbatch_options(group)
    group.add_argument("-J", "--job-name", "--name", dest="name", help="job name")
