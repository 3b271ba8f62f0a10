"""`python -m slurm sweep`: a grid of overrides, each point a run, as one array."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from models.config_io import ConfigError
from slurm.jobs.jobs import TrainJob
from slurm.resources import check_job_name
from slurm.submit.arguments import target_of
from slurm.submit.launcher import Submission
from slurm.submit.train_command import (
    add_training,
    advise,
    judge_run,
    policy_of,
    prepare,
    resolve,
    resources_for,
)


def sweep_command(args: argparse.Namespace) -> None:
    """Submit a run for each point of a grid of overrides, as one array."""
    target, out = target_of(args), args.out.absolute()
    runs = {
        out / name: resolve(args.recipe, [*args.overrides, *point])
        for name, point in grid_points(args.grid).items()
    }
    some = next(iter(runs.values()))
    resources = dataclasses.replace(resources_for(args, some), array_parallelism=args.parallel or 0)
    name = check_job_name(args.name or out.name)
    sets: dict[Path, None] = {}
    advice: dict[str, None] = {}
    for run_dir, config in runs.items():
        target.check_idle(run_dir)
        try:
            found, told = judge_run(config, run_dir, resources, target, args)
        except ValueError as error:
            raise ConfigError(f"{run_dir.name}: {error}") from None
        sets |= dict.fromkeys(found)
        advice[told] = None
    target.check(resources, out, *sets)
    jobs = [TrainJob(run_dir, policy_of(args)) for run_dir in runs]
    waiting = [job for job in jobs if not job.finished()]
    if not waiting:
        print(f"all {len(jobs)} runs of {out} are finished")
        return
    submission = Submission(
        kind="sweep", name=name, folder=out, jobs=waiting, resources=resources,
        site=target.site, cluster=target.cluster,
    )  # fmt: skip
    target.judge(submission)
    for run_dir, config in runs.items():
        prepare(config, run_dir, target, args.allow_changes)
    target.launch(submission)
    advise(next(iter(advice)))


def grid_points(grid: Sequence[str]) -> dict[str, list[str]]:
    """Return {run name: overrides} of all points of a grid.

    Args:
        grid: Axes like `seed=0,1,2`, or with a JSON list: `objective.unet.channel_mult=[[1],[2]]`.

    Raises:
        ConfigError: An axis is not of that form.
    """
    axes = [_parse_axis(text) for text in grid]
    points = {}
    for choice in itertools.product(*axes):
        words = (f"{key.rpartition('.')[2]}_{value}" for key, value in choice)
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words))
        points[name] = [f"{key}={value}" for key, value in choice]
    if len(points) < len(list(itertools.product(*axes))):
        raise ConfigError("two points of the grid have the same name; give distinct values")
    return points


def _parse_axis(text: str) -> list[tuple[str, str]]:
    key, separator, values = text.partition("=")
    if not separator or not key or not values:
        raise ConfigError(f"--grid {text!r} is not like key=value,value,...")
    try:
        listed = json.loads(values)
    except json.JSONDecodeError:
        listed = None
    if isinstance(listed, list):
        return [(key, json.dumps(value)) for value in listed]
    return [(key, value) for value in values.split(",")]


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sweep`."""
    parser.add_argument("recipe", help="name of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run folders")
    parser.add_argument(
        "--grid", action="append", required=True, metavar="key=a,b,...", help="an axis of the grid"
    )
    parser.add_argument("--parallel", type=int, help="runs at once")
    add_training(parser)
    parser.set_defaults(command=sweep_command)
