"""`python -m slurm workflow NAME --root DIR`: validates all steps, then submits what is missing."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.packed.manifest import MANIFEST
from models.config_io import ConfigError
from slurm.jobs.jobs import CommandJob
from slurm.monitor.status import queue_or_nothing
from slurm.slurm_cli import queued
from slurm.submit.arguments import Target, add_resources, resources_of, target_of
from slurm.submit.check_arguments import check_words
from slurm.submit.preflight import check_run, check_speed
from slurm.workflows.workflow import Step, Workflow, format_tree, job_in_queue, submit_workflow

if TYPE_CHECKING:
    from slurm.workflows.steps import Inputs


def workflow_command(args: argparse.Namespace) -> None:
    """Submit what is missing of a workflow, and show its tree."""
    from slurm.workflows import WORKFLOWS, find_workflow
    from slurm.workflows.steps import Inputs

    if args.workflow == "list":
        for name, function in WORKFLOWS.items():
            print(f"{name:26} {(function.__doc__ or '').splitlines()[0]}")
        return
    if args.root is None:
        raise ValueError("--root is missing: name the folder for all that the workflow makes")
    if args.cluster != "slurm":
        raise ValueError("a workflow's jobs wait for each other, which needs Slurm")
    target = target_of(args)
    inputs = Inputs(
        root=args.root.absolute(),
        source=args.source,
        weights=args.weights,
        resources=resources_of(args, minutes=24 * 60),
        same_size=args.nodes is not None,
        overrides=tuple(args.overrides),
        images=args.images,
        tasks=args.tasks,
    )
    for path in (args.source, args.weights):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
    workflow = find_workflow(args.workflow)(inputs)
    _check_overrides(workflow, inputs)
    if args.tree:
        print(format_tree(workflow.name, workflow.steps, queue_or_nothing()))
        return
    classes: tuple[str, ...] | None = None
    for step in workflow.steps:
        with _naming(step):
            target.check(step.resources, step.folder)
            classes = _check_words(step, known=classes is not None) or classes
    queue = {} if target.dry_run else queued()
    for step in workflow.steps:
        with _naming(step):
            _check_run(step, target, classes, job_in_queue(workflow.name, step, queue))
    submit_workflow(workflow, target, queue, _prepare)
    if not target.dry_run:
        print(format_tree(workflow.name, workflow.steps, queued()))


def _check_overrides(workflow: Workflow, inputs: Inputs) -> None:
    """Check that settings for one step name a step that trains. Raises ConfigError otherwise."""
    training = [step.name for step in workflow.steps if step.config is not None]
    for name in inputs.override_steps:
        if name not in training:
            known = ", ".join(training)
            raise ConfigError(f"{name}:...: no step {name!r} is trained; known are {known}")


@contextmanager
def _naming(step: Step) -> Iterator[None]:
    """Say which step is refused. Raises ConfigError instead of any ValueError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{step.name}: {error}") from None


def _check_words(step: Step, *, known: bool) -> tuple[str, ...] | None:
    """Check a step's words; returns the names of the classes that it packs, if not known yet."""
    packed: tuple[str, ...] | None = None
    for job in step.jobs[:1]:  # an array's tasks differ in their share only
        if isinstance(job, CommandJob):
            packs = job.module == "data_pipelines"  # the rest reads what earlier steps make
            reads_now = packs and not known and not step.finished()
            packed = check_words(job.module, job.words, inputs=reads_now)
    return packed


def _check_run(step: Step, target: Target, classes: tuple[str, ...] | None, job_id: str) -> None:
    """Check the run that a step trains.

    Args:
        step: The step.
        target: Where it is submitted to.
        classes: Names of the classes that an earlier step packs, None if they are not known.
        job_id: Its job in the queue, where its settings stay as they are; "" if there is none.
    """
    from dist_train.build import check_labels
    from dist_train.runtime.run_dir import judge_config

    config, folder = step.config, step.folder
    if config is None:
        return
    if job_id or step.finished():
        judge_config(folder, config)
        return
    later = not (Path(config.data.path) / MANIFEST).exists()  # an earlier step packs it
    if later and classes is not None:
        check_labels(config, classes)
    check_run(config, folder, step.resources, target.site, correct=True, data_later=later)
    check_speed(config, folder, step.resources, target.site, None)


def _prepare(step: Step) -> None:
    """Write the configuration of a training step's run."""
    from dist_train.runtime.run_dir import settle_config

    if step.config is not None:
        settle_config(step.folder, step.config, correct=True)


def add_workflow(parser: argparse.ArgumentParser) -> None:
    """Add the options of `workflow`."""
    parser.add_argument("workflow", help="name of a workflow, or `list`")
    parser.add_argument(
        "overrides", nargs="*", metavar="[STEP:]key=value", help="changed settings of training"
    )
    parser.add_argument("--root", type=Path, help="folder of everything that it makes")
    parser.add_argument("--source", type=Path, help="the image set as downloaded")
    parser.add_argument("--weights", type=Path, help="weights file of the detector")
    parser.add_argument("--images", type=int, help="evaluate so many samples")
    parser.add_argument("--tasks", type=int, default=16, help="array tasks of packing")
    parser.add_argument("--tree", action="store_true", help="show where it stands, and stop")
    add_resources(parser)
    parser.set_defaults(command=workflow_command)
