"""Options that all submitting commands share, and what they resolve to."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from slurm.jobs.records import JobRecord
from slurm.resources import Resources, parse_minutes
from slurm.site import Site, read_site
from slurm.submit.launcher import Cluster, Submission, batch_script, submit
from slurm.submit.preflight import check_idle, check_request, check_script

AS_SBATCH = ("partition", "account", "qos", "constraint", "reservation", "mem", "comment",
             "mail-type", "mail-user", "exclude", "nodelist", "dependency", "begin")  # fmt: skip
"""Options that are passed on as they are."""


@dataclass(frozen=True)
class Target:
    """Where and how a command submits: the site, the kind of cluster, or only shown."""

    site: Site
    cluster: Cluster
    dry_run: bool

    def check(self, resources: Resources, *paths: Path) -> None:
        """Check a request before anything is written (Slurm only; not when only shown)."""
        if self.cluster == "slurm" and not self.dry_run:
            check_request(resources, self.site, paths)

    def check_idle(self, run_dir: Path) -> None:
        """Check that no job of a run is in the queue (not when only shown)."""
        if not self.dry_run:
            check_idle(run_dir)

    def judge(self, submission: Submission) -> None:
        """Have Slurm itself say whether it would take the batch script."""
        if self.cluster == "slurm" and not self.dry_run:
            check_script(batch_script(submission))

    def launch(self, submission: Submission) -> JobRecord | None:
        """Submit, or print the batch script; says which job it became."""
        if self.dry_run:
            print(batch_script(submission).rstrip())
            return None
        self.judge(submission)
        record = submit(submission)
        array = f" ({len(record.tasks)} tasks)" if len(record.tasks) > 1 else ""
        print(f"{record.name}: job {record.job_id}{array}, logs in {record.logs}")
        return record


def target_of(args: argparse.Namespace) -> Target:
    """Return where the command line wants to submit to."""
    return Target(read_site(args.site), cast(Cluster, args.cluster), args.dry_run)


def given_resources(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line asks for, by the names of `Resources`."""
    return {
        field.name: getattr(args, field.name)
        for field in fields(Resources)
        if getattr(args, field.name, None) is not None
    }


def resources_of(args: argparse.Namespace, **defaults: int) -> Resources:
    """Return what the command line asks for; `defaults` fill in what it leaves open."""
    chosen = {**defaults, **given_resources(args)}
    chosen.setdefault("tasks_per_node", max(int(chosen.get("gpus_per_node", 0)), 1))
    return Resources(**chosen)


def add_target(parser: argparse._ActionsContainer) -> None:
    """Add the options of where and how to submit."""
    parser.add_argument("--site", type=Path, help="site profile (TOML)")
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        default="slurm",
        help="run under Slurm, as processes of this machine, or in this process",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the batch script and do nothing"
    )


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the options of a request; all are left open unless given."""
    add_target(parser)
    group = parser.add_argument_group("what each job asks of Slurm")
    for name, what in (
        ("nodes", "number of nodes"),
        ("gpus-per-node", "GPUs of each; also the ranks, unless --tasks-per-node is given"),
        ("tasks-per-node", "ranks on each"),
        ("cpus-per-task", "cores of each rank"),
        ("nice", "lowers the priority"),
    ):
        group.add_argument(f"--{name}", type=int, help=what)
    group.add_argument(
        "--time", dest="minutes", type=_minutes, help="time limit, as 90, 24:00:00 or 2-12:00:00"
    )
    group.add_argument(
        "--time-min", dest="min_minutes", type=_minutes,
        help="shortest time limit that will do, to start before a maintenance",
    )  # fmt: skip
    for name in AS_SBATCH:
        group.add_argument(f"--{name}", help=f"as sbatch's --{name}")
    group.add_argument("--exclusive", action="store_true", default=None, help="whole nodes")
    group.add_argument("--name", help="job name")


def _minutes(text: str) -> int:
    try:
        return parse_minutes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
