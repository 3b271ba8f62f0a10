"""`python -m slurm train | resume`: runs as jobs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config_io import ConfigError, override, read_config
from slurm.jobs.jobs import STOP, TrainJob
from slurm.jobs.records import JobFolder
from slurm.jobs.requeue import add_policy
from slurm.resources import Policy, Resources, check_job_name
from slurm.submit.arguments import Target, add_resources, given_resources, resources_of, target_of
from slurm.submit.elastic import node_counts
from slurm.submit.launcher import Submission
from slurm.submit.preflight import check_run, check_speed

if TYPE_CHECKING:
    from dist_train.config import RunConfig


def train_command(args: argparse.Namespace) -> None:
    """Submit a run."""
    config = resolve(args.recipe, args.overrides)
    target, run_dir = target_of(args), args.run_dir.absolute()
    resources = resources_for(args, config)
    name = check_job_name(args.name or run_dir.name)
    if args.min_nodes is not None:
        fallback = node_counts(config, resources, args.min_nodes)
        resources = dataclasses.replace(resources, fallback_nodes=fallback)
    target.check_idle(run_dir)
    sets, advice = judge_run(config, run_dir, resources, target, args)
    target.check(resources, run_dir, *sets)
    submission = Submission(
        kind="train", name=name, folder=run_dir, jobs=[TrainJob(run_dir, policy_of(args))],
        resources=resources, site=target.site, cluster=target.cluster,
    )  # fmt: skip
    target.judge(submission)
    prepare(config, run_dir, target, args.allow_changes)
    target.launch(submission)
    advise(advice)


def resume_command(args: argparse.Namespace) -> None:
    """Submit runs again as they were submitted, with the same code unless told otherwise."""
    target, changes = target_of(args), given_resources(args)
    for run_dir in args.runs:
        resume(
            run_dir.absolute(), target, changes, update_code=args.update_code,
            data_later=_data_later(args),
        )  # fmt: skip


def resume(
    run_dir: Path,
    target: Target,
    changes: Mapping[str, Any],
    *,
    update_code: bool = False,
    data_later: bool = False,
) -> None:
    """Submit a run again.

    Args:
        run_dir: The run folder.
        target: Where to.
        changes: What is asked for otherwise than at its last submission.
        update_code: Whether the present code takes the place of the run's.
        data_later: Whether its sets are only where and when the job runs.

    Raises:
        ConfigError: It has never been submitted, or its ranks would refuse it.
        SlurmError: A job of it is still in the queue.
    """
    from dist_train.config import RunConfig

    records = [record for record in JobFolder(run_dir).records() if record.kind == "train"]
    if not records:
        raise ConfigError(f"{run_dir} was never submitted; use `python -m slurm train`")
    last = records[-1]
    free = dataclasses.replace(last.resources, dependency="", begin="")  # that was for its first
    resources = dataclasses.replace(free, **changes)
    config = read_config(RunConfig, run_dir / "config.json")
    target.check_idle(run_dir)
    sets = check_run(config, run_dir, resources, target.site, data_later=data_later)
    advice = check_speed(config, run_dir, resources, target.site, None)
    target.check(resources, run_dir, *sets)
    job = TrainJob(run_dir, last.policy)
    if job.trained():
        print(f"{run_dir.name}: is finished")
        return
    submission = Submission(
        kind="train", name=last.name, folder=run_dir, jobs=[job], resources=resources,
        site=target.site, cluster=target.cluster,
        code=None if update_code else Path(last.code), cwd=Path(last.cwd),
    )  # fmt: skip
    target.judge(submission)
    if not target.dry_run:
        (JobFolder(run_dir).path / STOP).unlink(missing_ok=True)
    target.launch(submission)
    advise(advice)


def policy_of(args: argparse.Namespace) -> Policy:
    """Return the limits of running again that the command line sets."""
    return Policy(args.max_stalled, args.max_crashes, args.backoff_seconds)


def resolve(recipe: str, overrides: Sequence[str]) -> RunConfig:
    """Return a recipe's configuration with changed settings."""
    from dist_train.recipes import find_recipe

    return override(find_recipe(recipe)(), overrides)


def resources_for(args: argparse.Namespace, config: RunConfig) -> Resources:
    """Take nodes and GPUs from the recipe where the command line leaves them open."""
    return resources_of(
        args, nodes=config.nodes, gpus_per_node=config.gpus_per_node, minutes=24 * 60
    )


def judge_run(
    config: RunConfig, run_dir: Path, resources: Resources, target: Target, args: argparse.Namespace
) -> tuple[list[Path], str]:
    """Judge a run that is to be submitted; returns its sets' folders, and what is to be told."""
    sets = check_run(
        config, run_dir, resources, target.site,
        allow_changes=args.allow_changes, correct=True, data_later=_data_later(args),
    )  # fmt: skip
    advice = check_speed(config, run_dir, resources, target.site, args.images_per_second)
    return sets, advice if target.cluster == "slurm" else ""


def advise(text: str) -> None:
    """Say what could not be judged, where the user sees it last."""
    if text:
        print(f"slurm: note: {text}", file=sys.stderr)


def _data_later(args: argparse.Namespace) -> bool:
    """Whether the images are on the nodes' own disks, or made by a job that is waited for."""
    return bool(args.data_on_nodes or args.dependency)


def prepare(config: RunConfig, run_dir: Path, target: Target, allow_changes: bool) -> None:
    """Write the run's configuration, which is all that its job reads."""
    from dist_train.runtime.run_dir import settle_config

    if not target.dry_run:
        settle_config(run_dir, config, allow_changes, correct=True)


def add_train(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    parser.add_argument("recipe", help="name of a recipe (`python -m dist_train list`)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changed settings")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--min-nodes", type=int, help="if nodes are long in coming, fewer will do")
    parser.add_argument(
        "--shrink-minutes", type=int, help="how long each number of nodes is waited for (360)"
    )
    add_training(parser)
    parser.set_defaults(command=train_command)


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Add the options of `resume`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument(
        "--update-code", action="store_true", help="run the present code, not that of the run"
    )
    _add_data_on_nodes(parser)
    add_resources(parser)
    parser.set_defaults(command=resume_command)


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options that `train` and `sweep` share."""
    parser.add_argument(
        "--allow-changes", action="store_true", help="go on with changed settings that are harmless"
    )
    parser.add_argument(
        "--images-per-second", type=float, help="expected speed, to judge the time limit by"
    )
    _add_data_on_nodes(parser)
    add_policy(parser)
    add_resources(parser)


def _add_data_on_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-on-nodes", action="store_true", help="do not look here for the set: nodes have it"
    )
