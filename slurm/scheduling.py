"""`python -m slurm reconcile`: the command around `slurm.reconcile`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from models.config_io import read_config
from slurm.evaluation_plan import EvaluationPlan, total_images, write_plan
from slurm.options import add_resources, resources_of, target_of
from slurm.queue import SlurmError, have_slurm, queued
from slurm.reconcile import ReconcileJob, bring_about
from slurm.resources import check_job_name


def reconcile_command(args: argparse.Namespace) -> None:
    """Submit what is missing of scheduled evaluation, once or every few minutes."""
    target = target_of(args)
    runs = tuple(run.absolute() for run in args.runs)
    for run_dir in runs:
        total_images(run_dir)
    if args.print_scrontab:
        words = [sys.executable, "-m", "slurm", "reconcile", *map(str, runs)]
        print(f"*/{args.every or 30} * * * * cd {shlex.quote(str(Path.cwd()))} && ", end="")
        print(shlex.join(words))
        return
    if args.plan is not None:
        plan = read_config(EvaluationPlan, args.plan)
        for run_dir in runs:
            write_plan(run_dir, plan)
    if not have_slurm():
        raise SlurmError("there is no Slurm on this machine: log in to the cluster")
    if args.every:
        job = ReconcileJob(
            runs, args.every, target.site, resources_of(args, minutes=15),
            check_job_name(args.name or f"reconcile-{runs[0].name}"),
        )  # fmt: skip
        if any(waiting.name == job.name for waiting in queued().values()):
            raise SlurmError(f"a job {job.name} is in the queue already; cancel it first")
        target.check(job.resources, *runs)
        target.launch(job.submission())
        return
    for run_dir in runs:
        for told in bring_about(run_dir, target.site):
            print(f"{run_dir.name}: {told}")


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
