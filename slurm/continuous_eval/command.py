"""`python -m slurm reconcile`: the command around `slurm.continuous_eval.reconcile`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from models.config_io import ConfigError, read_config
from slurm.continuous_eval.plan import EvaluationPlan, total_images, write_plan
from slurm.continuous_eval.reconcile import (
    ReconcileJob,
    Report,
    bring_about,
    due,
    needed_plan,
    submission_of,
)
from slurm.jobs.interpreter import code_variables, slurm_command
from slurm.resources import check_job_name
from slurm.site import Site
from slurm.slurm_cli import SlurmError, have_slurm, queued
from slurm.submit.arguments import Target, add_resources, resources_of, target_of
from slurm.submit.check_arguments import check_protocol


def reconcile_command(args: argparse.Namespace) -> None:
    """Submit what is missing of scheduled evaluation, once or every few minutes."""
    target = target_of(args)
    runs = tuple(run.absolute() for run in args.runs)
    for run_dir in runs:
        total_images(run_dir)
    if args.every is not None and args.every < 1:
        raise ValueError(f"--every={args.every} must be at least 1 minute")
    if args.print_scrontab:
        print(scrontab_line(runs, args.every or 30, target.site))
        return
    plan = read_checked(args.plan) if args.plan else None
    if plan is not None and not args.dry_run:
        for run_dir in runs:
            write_plan(run_dir, plan)
    if not (have_slurm() or args.dry_run):
        raise SlurmError("there is no Slurm on this machine: log in to the cluster")
    if args.every:
        _submit_series(args, runs, target)
        return
    for run_dir in runs:
        if args.dry_run:
            _show(run_dir, plan or needed_plan(run_dir), target)
            continue
        for told in bring_about(run_dir, target.site):
            print(f"{run_dir.name}: {told}")


def scrontab_line(runs: Sequence[Path], minutes: int, site: Site) -> str:
    """Return the line of a crontab that reconciles runs every few minutes.

    Raises:
        ValueError: A crontab cannot say it: it counts within an hour, or whole hours.
    """
    hours, rest = divmod(minutes, 60)
    if hours and (rest or hours > 23):
        raise ValueError(f"--every={minutes}: a crontab takes up to 59 minutes, or 1 to 23 hours")
    when = f"0 */{hours} * * *" if hours else f"*/{minutes} * * * *"
    variables = [f"{name}={value}" for name, value in code_variables().items()]
    options = ["--site", site.source] if site.source else []
    command = ["env", *variables, *slurm_command("reconcile", *map(str, runs), *options)]
    return f"{when} cd {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"


def read_checked(path: Path) -> EvaluationPlan:
    """Read a plan, and check that its protocols can be evaluated.

    Raises:
        ValueError: It does not parse, or a protocol's words would be refused.
    """
    plan = read_config(EvaluationPlan, path)
    for protocol in plan.protocols:
        try:
            check_protocol(protocol.words)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{path}, protocol {protocol.name}: {error}") from None
    return plan


def _submit_series(args: argparse.Namespace, runs: tuple[Path, ...], target: Target) -> None:
    """Submit the first of the jobs that reconcile and submit themselves again."""
    job = ReconcileJob(
        runs, args.every, target.site, resources_of(args, minutes=15),
        check_job_name(args.name or f"reconcile-{runs[0].name}"),
    )  # fmt: skip
    waiting = {} if args.dry_run else queued()
    if any(other.name == job.name for other in waiting.values()):
        raise SlurmError(f"a job {job.name} is in the queue already; cancel it first")
    target.check(job.resources, *runs)
    target.launch(job.submission())


def _show(run_dir: Path, plan: EvaluationPlan, target: Target) -> None:
    """Print the batch script of what would be submitted; claims and writes nothing."""
    jobs = due(run_dir, plan, Report())
    if jobs:
        target.launch(submission_of(jobs, run_dir, plan, target.site))


def add_reconcile(parser: argparse.ArgumentParser) -> None:
    """Add the options of `reconcile`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--plan", type=Path, help="evaluation plan (JSON) to give the runs")
    parser.add_argument(
        "--every", type=int, metavar="MINUTES", help="as a Slurm job that submits itself again"
    )
    parser.add_argument(
        "--print-scrontab", action="store_true", help="print the line for scrontab and stop"
    )
    add_resources(parser)
    parser.set_defaults(command=reconcile_command)
