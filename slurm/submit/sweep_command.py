"""`relaywave slurm sweep`: a grid of overrides, each point a run, as one array."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.command_line import add_settings, settings_of
from models.config_io import ConfigError, differences, to_json
from models.grid import assignments, grid_points
from slurm.jobs.jobs import TrainJob
from slurm.jobs.requeue import policy_of
from slurm.resources import Policy
from slurm.submit.arguments import SubmitOptions, submit_options
from slurm.submit.elastic import check_node_range
from slurm.submit.in_order import JobsFailedError, run_in_order
from slurm.submit.launcher import Submission
from slurm.submit.preflight import RunChecks
from slurm.submit.train_command import (
    add_training_options,
    check_budget,
    check_new_run,
    print_note,
    resolve,
    resources_for,
    run_checks,
    write_run_config,
)

if TYPE_CHECKING:
    from dist_train.config import RunConfig


SAMPLER = "objective.sampling"
"""Settings that only samplers read: those of the objective's sampler."""


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """A grid of runs to submit.

    Attributes:
        recipe: Name of the recipe; None takes the file's.
        config_file: File of settings (`--config`), or None.
        overrides: Settings of all runs, as `key=value`.
        grid: Axes of the grid, see `grid_points`.
        out_dir: The directory of the run directories.
        parallel: How many runs may run at once; 0 is the site's limit.
        checks: What to check before they are queued.
        policy: How often each is run again.
        submit: Where to, and what each job requests.
    """

    recipe: str | None
    config_file: Path | None
    overrides: Sequence[str]
    grid: Sequence[str]
    out_dir: Path
    parallel: int
    checks: RunChecks
    policy: Policy
    submit: SubmitOptions


def submit_sweep(request: SweepRequest) -> None:
    """Submit the runs of a grid that are not finished, as one array."""
    target, out_dir = request.submit.target, request.out_dir
    runs = {
        out_dir / name: resolve(
            request.recipe, request.config_file, [*request.overrides, *assignments(point)]
        )
        for name, point in grid_points(request.grid).items()
    }
    _check_distinct(runs)
    first = next(iter(runs.values()))
    requested = resources_for(first, request.submit, request.overrides)
    parallel = request.parallel or requested.array_parallelism
    resources = dataclasses.replace(requested, array_parallelism=parallel)
    name = request.submit.job_name(out_dir.name)
    if target.executor == "local" and request.parallel > 1:
        raise ConfigError("--parallel: on this machine runs are one after another; leave it out")
    sets: dict[Path, None] = {}
    notes: dict[str, None] = {}
    for run_dir, config in runs.items():
        target.check_idle(run_dir)
        check_budget(request.policy, run_dir, target)
        check_node_range(config, resources)
        try:
            found, note = check_new_run(config, run_dir, resources, target, request.checks)
        except ValueError as error:
            raise ConfigError(f"{run_dir.name}: {error}") from None
        sets |= dict.fromkeys(found)
        notes[note] = None
    target.check(resources, out_dir, *sets)
    jobs = [TrainJob(run_dir, request.policy) for run_dir in runs]
    unfinished = [job for job in jobs if not job.finished()]
    if not unfinished:
        print(f"all {len(jobs)} runs of {out_dir} are finished")
        return
    submission = Submission(
        kind="sweep", name=name, root=out_dir, jobs=unfinished, resources=resources,
        site=target.site, executor=target.executor,
    )  # fmt: skip
    target.check_script(submission)
    for run_dir, config in runs.items():
        write_run_config(config, run_dir, target, request.checks)
    if target.executor == "local" and not target.dry_run:
        if failed := run_in_order(submission):
            raise JobsFailedError(f"{'; '.join(failed)}; the same command continues from there")
        return
    target.launch(submission)
    print_note(next(iter(notes)))


def _check_distinct(runs: Mapping[Path, RunConfig]) -> None:
    """Raise ConfigError, with what to do instead, if two runs would train the same weights."""
    from dist_train.planning.checks import trained_settings

    seen: list[tuple[Path, RunConfig]] = []
    for run_dir, config in runs.items():
        for other, earlier in seen:
            if trained_settings(config) != trained_settings(earlier):
                continue
            both = f"{other.name} and {run_dir.name} would train the same weights"
            changed = list(differences(to_json(earlier), to_json(config)))
            raise ConfigError(f"{both}: {_instead(changed)}")
        seen.append((run_dir, config))


def _instead(changed: Sequence[str]) -> str:
    """Say what to do about settings that training does not depend on.

    Args:
        changed: Their dotted names.
    """
    if not changed:
        return "all their settings are equal; leave one of the values out"
    of_sampler = [name for name in changed if name.startswith(SAMPLER)]
    text = f"training does not depend on {', '.join(changed)}; train one run"
    if not of_sampler:
        return f"{text}, with one value"
    axes = " ".join(f"--grid {name.removeprefix('objective.')}=..." for name in of_sampler)
    return f"{text}, and evaluate it with each value: relaywave eval sweep RUN {axes}"


def sweep_command(args: argparse.Namespace) -> None:
    """Submit a run for each point of a grid of overrides."""
    options = submit_options(args)
    recipe, file, overrides = settings_of(args)
    submit_sweep(
        SweepRequest(
            recipe=recipe,
            config_file=file,
            overrides=overrides,
            grid=args.grid,
            out_dir=args.out.absolute(),
            parallel=args.parallel or 0,
            checks=run_checks(args, options),
            policy=policy_of(args),
            submit=options,
        )
    )


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sweep`."""
    add_settings(parser)
    parser.add_argument("--out", type=Path, required=True, help="directory of the run directories")
    parser.add_argument(
        "--grid", action="append", required=True, metavar="key=a,b,...", help="an axis of the grid"
    )
    parser.add_argument("--parallel", type=int, help="how many runs may run at once")
    add_training_options(parser)
    parser.set_defaults(command=sweep_command)
