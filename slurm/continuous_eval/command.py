"""`relaywave slurm reconcile`: submit due evaluations, once or every few minutes."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.config_io import ConfigError, did_you_mean, read_config
from slurm.continuous_eval.reconcile import (
    ReconcileJob,
    Report,
    due,
    maintain,
    required_schedule,
    submission_of,
)
from slurm.continuous_eval.schedule import EvaluationSchedule, total_images, write_schedule
from slurm.jobs.interpreter import code_variables, slurm_command
from slurm.site import Site
from slurm.slurm_cli import SlurmError, have_slurm, queued
from slurm.submit.arguments import SubmitOptions, Target, add_submit_options, submit_options
from slurm.submit.check_arguments import check_protocol


@dataclass(frozen=True, kw_only=True)
class ReconcileRequest:
    """Runs whose due evaluations are to be submitted.

    Attributes:
        run_dirs: The run directories.
        schedule: The schedule to give them; None leaves theirs.
        every_minutes: Time between the jobs of a series; None reconciles once, in this process.
        submit: Where to, and what each job of a series requests.

    Raises:
        ValueError: The interval is not positive, or a run directory has no configuration.
    """

    run_dirs: tuple[Path, ...]
    schedule: EvaluationSchedule | None
    every_minutes: int | None
    submit: SubmitOptions

    def __post_init__(self) -> None:
        if self.every_minutes is not None and self.every_minutes < 1:
            raise ValueError(f"--every={self.every_minutes} must be at least 1 minute")
        for run_dir in self.run_dirs:
            total_images(run_dir)


def submit_due(request: ReconcileRequest) -> None:
    """Write the schedule, if there is a new one, and submit what is due, or a series that does."""
    target, schedule = request.submit.target, request.schedule
    if schedule is not None and not target.dry_run:
        for run_dir in request.run_dirs:
            write_schedule(run_dir, schedule)
    if not (have_slurm() or target.dry_run):
        raise SlurmError("there is no Slurm on this machine: log in to the cluster")
    if request.every_minutes:
        _submit_series(request, request.every_minutes)
        return
    for run_dir in request.run_dirs:
        if target.dry_run:
            _show(run_dir, schedule or required_schedule(run_dir), target)
            continue
        for message in maintain(run_dir, target.site):
            print(f"{run_dir.name}: {message}")


def _submit_series(request: ReconcileRequest, minutes: int) -> None:
    """Submit the first of the jobs that reconcile and submit themselves again."""
    target, runs = request.submit.target, request.run_dirs
    job = ReconcileJob(
        runs, minutes, target.site, request.submit.resources(minutes=15),
        request.submit.job_name(f"reconcile-{runs[0].name}"),
    )  # fmt: skip
    queue = {} if target.dry_run else queued()
    if any(other.name == job.name for other in queue.values()):
        raise SlurmError(f"a job {job.name} is in the queue already; cancel it first")
    target.check(job.resources, *runs)
    target.launch(job.submission())


def _show(run_dir: Path, schedule: EvaluationSchedule, target: Target) -> None:
    """Print the batch script of what would be submitted; claims and writes nothing."""
    jobs = due(run_dir, schedule, Report())
    if jobs:
        target.launch(submission_of(jobs, run_dir, schedule, target.site))


def scrontab_line(run_dirs: Sequence[Path], minutes: int, site: Site) -> str:
    """Return the line of a crontab that reconciles runs every few minutes.

    Raises:
        ValueError: A crontab cannot express it: it counts within an hour, or in whole hours.
    """
    hours, rest = divmod(minutes, 60)
    if hours and (rest or hours > 23):
        raise ValueError(f"--every={minutes}: a crontab takes up to 59 minutes, or 1 to 23 hours")
    when = f"0 */{hours} * * *" if hours else f"*/{minutes} * * * *"
    variables = [f"{name}={value}" for name, value in code_variables().items()]
    options = ["--site", site.source] if site.source else []
    command = ["env", *variables, *slurm_command("reconcile", *map(str, run_dirs), *options)]
    return f"{when} cd {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"


def read_checked(path: Path) -> EvaluationSchedule:
    """Read a schedule, and check that its protocols can be evaluated.

    Raises:
        ValueError: It does not parse, the arguments of a protocol are invalid, or its metrics do
            not give what decides the best snapshot.
    """
    schedule = read_config(EvaluationSchedule, path)
    for protocol in schedule.protocols:
        try:
            check_protocol(protocol.words)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{path}, protocol {protocol.name}: {error}") from None
    if schedule.best:
        _check_best(path, schedule)
    return schedule


def _check_best(path: Path, schedule: EvaluationSchedule) -> None:
    """Raise ConfigError unless the metrics of its protocol give the value that decides the best."""
    from evaluation.dry_run import value_names

    name, _, wanted = schedule.best.partition(":")
    metric, _, value = wanted.rpartition(".")
    words = next(p.words for p in schedule.protocols if p.name == name)
    metrics = value_names(words)
    if value and any(metric == known and not values for known, values in metrics):
        return  # which values it gives depends on the images
    known = [f"{name}:{known}.{value}" for known, values in metrics for value in values or ("...",)]
    known = list(dict.fromkeys(known))
    if schedule.best not in known or value == "...":
        raise ConfigError(
            f"{path}: best={schedule.best!r:.200} is none of the values of protocol {name}; use one"
            f" of {', '.join(known)}{did_you_mean(schedule.best, known)}"
        )


def reconcile_command(args: argparse.Namespace) -> None:
    """Submit due evaluations, or print the line of a crontab that does."""
    request = ReconcileRequest(
        run_dirs=tuple(run_dir.absolute() for run_dir in args.runs),
        schedule=read_checked(args.plan) if args.plan and not args.print_scrontab else None,
        every_minutes=args.every,
        submit=submit_options(args),
    )
    if args.print_scrontab:
        site = request.submit.target.site
        print(scrontab_line(request.run_dirs, request.every_minutes or 30, site))
        return
    submit_due(request)


def add_reconcile(parser: argparse.ArgumentParser) -> None:
    """Add the options of `reconcile`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--plan", type=Path, help="evaluation schedule (JSON) to give the runs")
    parser.add_argument(
        "--every", type=int, metavar="MINUTES", help="as a Slurm job that submits itself again"
    )
    parser.add_argument(
        "--print-scrontab", action="store_true", help="print the line for scrontab and exit"
    )
    add_submit_options(parser)
    parser.set_defaults(command=reconcile_command)
