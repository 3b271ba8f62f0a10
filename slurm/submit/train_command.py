"""`relaywave slurm train | resume`: runs as jobs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.runtime.run_files import check_is_run, import_recorded
from models.command_line import add_settings, settings_of
from models.config_io import ConfigError
from slurm.jobs import budget
from slurm.jobs.budget import budget_problem, gpu_hours
from slurm.jobs.interpreter import SOURCE
from slurm.jobs.jobs import STOP, TrainJob
from slurm.jobs.records import JobDir
from slurm.jobs.requeue import (
    add_budget_options,
    add_policy_options,
    policy_of,
    with_budget,
)
from slurm.resources import Policy, Resources
from slurm.submit.arguments import SubmitOptions, Target, add_submit_options, submit_options
from slurm.submit.code_copy import check_code
from slurm.submit.elastic import check_node_range, node_counts
from slurm.submit.launcher import Submission
from slurm.submit.preflight import RunChecks, check_run, check_time_limit

if TYPE_CHECKING:
    from dist_train.config import RunConfig
BUDGETS = Path(budget.__file__).relative_to(SOURCE)


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """A run to submit.

    Attributes:
        recipe: Name of the recipe; None takes the file's.
        config_file: File of settings (`--config`), or None.
        overrides: Changed settings, as `key=value`.
        run_dir: The run directory.
        min_nodes: Fewest nodes that it may run on; None insists on the full number.
        checks: What to check before it is queued.
        policy: How often it is run again.
        submit: Where to, and what the job requests.
    """

    recipe: str | None
    overrides: Sequence[str]
    run_dir: Path
    min_nodes: int | None
    checks: RunChecks
    policy: Policy
    submit: SubmitOptions
    config_file: Path | None = None


def submit_run(request: TrainRequest) -> None:
    """Check a run, write its configuration, and submit it."""
    run_dir, target = request.run_dir, request.submit.target
    import_recorded(run_dir)
    config = resolve(request.recipe, request.config_file, request.overrides)
    resources = resources_for(config, request.submit, request.overrides)
    name = request.submit.job_name(run_dir.name)
    resources = _elastic(config, resources, request.min_nodes)
    target.check_idle(run_dir)
    check_budget(request.policy, run_dir, target)
    sets, note = check_new_run(config, run_dir, resources, target, request.checks)
    target.check(resources, run_dir, *sets)
    submission = Submission(
        kind="train", name=name, root=run_dir, jobs=[TrainJob(run_dir, request.policy)],
        resources=resources, site=target.site, executor=target.executor,
    )  # fmt: skip
    target.check_script(submission)
    write_run_config(config, run_dir, target, request.checks)
    target.launch(submission)
    print_note(note)


@dataclass(frozen=True, kw_only=True)
class ResumeRequest:
    """Stopped runs to submit again.

    Attributes:
        run_dirs: The run directories.
        min_nodes: Fewest nodes that they may run on; None keeps that of the last submission.
        update_code: Whether to run the present code instead of that of the last submission.
        checks: What to check before they are queued.
        submit: Where to, and what each job requests otherwise than at its last submission.
        budget: Changes the limits of the last submission.
    """

    run_dirs: Sequence[Path]
    min_nodes: int | None
    update_code: bool
    checks: RunChecks
    submit: SubmitOptions
    budget: Callable[[Policy], Policy] = lambda policy: policy


def resume_run(run_dir: Path, request: ResumeRequest) -> None:
    """Submit a run again as it was last submitted.

    Raises:
        ConfigError: It has never been submitted, or its ranks would reject it.
        SlurmError: A job of it is still in the queue.
    """
    from dist_train.runtime.run_dir import read_run_config

    check_is_run(run_dir)
    records = [record for record in JobDir(run_dir).records() if record.kind == "train"]
    if not records:
        raise ConfigError(f"{run_dir} was never submitted; use `relaywave slurm train`")
    last, target = records[-1], request.submit.target
    config = read_run_config(run_dir)
    resources = _resources_again(config, last.resources, request)
    target.check_idle(run_dir)
    sets = check_run(config, run_dir, resources, target.site, request.checks)
    note = check_time_limit(config, run_dir, resources, target.site)
    target.check(resources, run_dir, *sets)
    job = TrainJob(run_dir, request.budget(last.policy))
    if job.trained():
        print(f"{run_dir.name}: is finished")
        return
    code = None if request.update_code else Path(last.code)
    check_budget(job.policy, run_dir, target, code)
    if code is not None and not target.dry_run:
        check_code(code)
    submission = Submission(
        kind="train", name=last.name, root=run_dir, jobs=[job], resources=resources,
        site=target.site, executor=target.executor, code=code, cwd=Path(last.cwd),
    )  # fmt: skip
    target.check_script(submission)
    if not target.dry_run:
        (JobDir(run_dir).slurm_dir / STOP).unlink(missing_ok=True)
    target.launch(submission)
    print_note(note)


def check_budget(policy: Policy, run_dir: Path, target: Target, code: Path | None = None) -> None:
    """Check that a run may start within its budget.

    Args:
        policy: Its limits.
        run_dir: The run directory.
        target: Where it is submitted to.
        code: The code that it will run; None is the present one.

    Raises:
        ConfigError: The budget is used up, or nothing would heed it.
    """
    if not policy.gpu_hours:
        return
    asked = f"--gpu-hours={policy.gpu_hours:g}"
    if target.executor != "slurm":
        raise ConfigError(f"{asked} is for jobs of Slurm; leave it out")
    if code is not None and not (code / BUDGETS).exists():
        raise ConfigError(f"{asked}: {code} is too old to heed it; add --update-code")
    problem = budget_problem(policy, gpu_hours(JobDir(run_dir)))
    if problem and not policy.budget_warns:
        raise ConfigError(f"{run_dir}: {problem}; raise --gpu-hours, or add --over-budget=warn")


def _resources_again(config: RunConfig, last: Resources, request: ResumeRequest) -> Resources:
    """Return the request of a run that is submitted again, by the rules of a new one."""
    # what the first submission waited for is over
    free = dataclasses.replace(last, dependency="", begin="", fallback_nodes=())
    resources = request.submit.changed(vars(free))
    fewest = request.min_nodes or min(last.fallback_nodes, default=0)
    if request.min_nodes is None and (fewest >= resources.nodes or resources.fewest_nodes):
        fewest = 0
    return _elastic(config, resources, fewest or None)


def _elastic(config: RunConfig, resources: Resources, min_nodes: int | None) -> Resources:
    """Return a request with the smaller numbers of nodes that the run may use as well."""
    check_node_range(config, resources)
    if min_nodes is None:
        return resources
    fallback = node_counts(config, resources, min_nodes)
    return dataclasses.replace(resources, fallback_nodes=fallback)


def resolve(recipe: str | None, file: Path | None, overrides: Sequence[str]) -> RunConfig:
    """Return the settings of a recipe, changed by those of a file, and of the command line."""
    from dist_train.recipes import resolve_config

    return resolve_config(recipe, file, overrides)


def resources_for(config: RunConfig, options: SubmitOptions, overrides: Sequence[str]) -> Resources:
    """Return a run's request: nodes and GPUs are the recipe's where the options leave them open.

    Raises:
        ConfigError: An option and an override say different things.
    """
    for name in ("nodes", "gpus_per_node"):
        asked, setting = options.requested.get(name), getattr(config.sharding, name)
        given = any(text.startswith(f"sharding.{name}=") for text in overrides)
        if given and asked is not None and asked != setting:
            option = f"--{name.replace('_', '-')}={asked}"
            raise ConfigError(f"{option} contradicts sharding.{name}={setting}; leave one out")
    return options.resources(
        nodes=config.sharding.nodes, gpus_per_node=config.sharding.gpus_per_node, minutes=24 * 60
    )


def check_new_run(
    config: RunConfig, run_dir: Path, resources: Resources, target: Target, checks: RunChecks
) -> tuple[list[Path], str]:
    """Check a run before it is submitted; returns its sets' directories, and a note for the user.

    The note says what could not be checked; "" if there is nothing.
    """
    sets = check_run(config, run_dir, resources, target.site, checks)
    note = check_time_limit(config, run_dir, resources, target.site, checks.images_per_second)
    return sets, note if target.executor == "slurm" else ""


def write_run_config(config: RunConfig, run_dir: Path, target: Target, checks: RunChecks) -> None:
    """Write the run's configuration, which is all that its job reads."""
    from dist_train.runtime.run_dir import settle_config

    if not target.dry_run:
        settle_config(run_dir, config, checks.allow_changes, correct=True)


def print_note(text: str) -> None:
    """Print what could not be checked, last, so that it is seen."""
    if text:
        print(f"slurm: note: {text}", file=sys.stderr)


def train_command(args: argparse.Namespace) -> None:
    """Submit a run."""
    options = submit_options(args)
    recipe, file, overrides = settings_of(args)
    submit_run(
        TrainRequest(
            recipe=recipe,
            config_file=file,
            overrides=overrides,
            run_dir=args.run_dir.absolute(),
            min_nodes=args.min_nodes,
            checks=run_checks(args, options),
            policy=policy_of(args),
            submit=options,
        )
    )


def resume_command(args: argparse.Namespace) -> None:
    """Submit stopped runs again."""
    options = submit_options(args)
    request = ResumeRequest(
        run_dirs=[run_dir.absolute() for run_dir in args.runs],
        min_nodes=args.min_nodes,
        update_code=args.update_code,
        checks=RunChecks(data_later=_data_later(args, options)),
        submit=options,
        budget=lambda policy: with_budget(policy, args),
    )
    for run_dir in request.run_dirs:
        resume_run(run_dir, request)


def run_checks(args: argparse.Namespace, options: SubmitOptions) -> RunChecks:
    """Return what the options of `train` and `sweep` say about checking a new run."""
    return RunChecks(
        allow_changes=args.allow_changes,
        correct=True,
        data_later=_data_later(args, options),
        images_per_second=args.images_per_second,
    )


def _data_later(args: argparse.Namespace, options: SubmitOptions) -> bool:
    return bool(args.data_on_nodes or options.requested.get("dependency"))


def add_train(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    add_settings(parser, "name of a recipe (`relaywave train list`)")
    parser.add_argument("--run-dir", type=Path, required=True, help="run directory")
    _add_min_nodes(parser)
    add_training_options(parser)
    parser.set_defaults(command=train_command)


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Add the options of `resume`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument(
        "--update-code",
        action="store_true",
        help="run the present code instead of that of the last submission",
    )
    _add_min_nodes(parser)
    _add_data_on_nodes(parser)
    add_budget_options(parser)
    add_submit_options(parser)
    parser.set_defaults(command=resume_command)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `train` and `sweep` share."""
    parser.add_argument(
        "--allow-changes", action="store_true", help="resume with changed settings if harmless"
    )
    parser.add_argument(
        "--images-per-second", type=float, help="expected throughput, to check the time limit"
    )
    _add_data_on_nodes(parser)
    add_policy_options(parser)
    add_submit_options(parser)


def _add_min_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-nodes",
        type=int,
        help="minimum number of nodes; shrink the request if the full number stays pending",
    )
    parser.add_argument(
        "--shrink-minutes",
        type=int,
        help="minutes that each number of nodes may stay pending (360)",
    )


def _add_data_on_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-on-nodes",
        action="store_true",
        help="do not check the set here: only the nodes have it",
    )
