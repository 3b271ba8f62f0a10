"""`relaywave slurm workflow NAME --root DIR`: validates all steps, then submits what is missing."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.packed.manifest import MANIFEST
from models.config_io import ConfigError
from slurm.jobs.jobs import CommandJob
from slurm.monitor.status import queue_or_empty
from slurm.site import Site
from slurm.slurm_cli import queued
from slurm.submit.arguments import SubmitOptions, Target, add_submit_options, submit_options
from slurm.submit.check_arguments import check_arguments
from slurm.submit.preflight import RunChecks, check_run, check_time_limit
from slurm.submit.sbatch_options import NAMES, OPTIONS, changed, requested_by_texts
from slurm.workflows import WORKFLOWS, find_workflow
from slurm.workflows.steps import EVALUATING, Inputs
from slurm.workflows.workflow import (
    Step,
    Workflow,
    format_tree,
    job_in_queue,
    run_workflow,
    submit_workflow,
)


@dataclass(frozen=True, kw_only=True)
class WorkflowRequest:
    """A workflow to submit.

    Attributes:
        workflow: Its steps, some of which may be finished or queued.
        target: Where to submit to.
        only_tree: Whether to show its tree and submit nothing.
    """

    workflow: Workflow
    target: Target
    only_tree: bool


def submit_missing(request: WorkflowRequest) -> None:
    """Validate all steps, submit or run those that are missing, and show the tree."""
    workflow, target = request.workflow, request.target
    if request.only_tree:
        print(format_tree(workflow.name, workflow.steps, queue_or_empty()))
        return
    classes: dict[str, tuple[str, ...]] = {}
    for step in workflow.steps:
        with _naming(step):
            target.check(step.resources, step.root)
            _check_arguments(step, classes)
    queue = queued() if target.asks_slurm else {}
    for step in workflow.steps:
        with _naming(step):
            _check_run(step, target, classes, job_in_queue(workflow.name, step, queue))
    if target.executor == "slurm" or target.dry_run:
        submit_workflow(workflow, target, queue, prepare)
    else:
        run_workflow(workflow, target, prepare)
    if not target.dry_run:
        print(format_tree(workflow.name, workflow.steps, queued() if target.asks_slurm else {}))


@contextmanager
def _naming(step: Step) -> Iterator[None]:
    """Say which step is invalid. Raises ConfigError instead of any ValueError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{step.name}: {error}") from None


def _check_arguments(step: Step, classes: dict[str, tuple[str, ...]]) -> None:
    """Check a step's arguments.

    Args:
        step: The step.
        classes: Gets the names of the classes that it packs, by the directory of the set.
    """
    if step.kind == "pack" and step.finished():
        return  # its source may be gone
    for job in step.jobs:
        if not isinstance(job, CommandJob):
            continue
        if job.module != "data_pipelines":  # it reads what earlier steps make
            check_arguments(job.module, job.arguments, inputs=False)
            continue
        out = job.arguments[job.arguments.index("--resolution") - 1]
        packed = check_arguments(job.module, job.arguments, inputs=out not in classes)
        if packed is not None:
            classes[out] = packed
        break  # its other tasks differ in their share only


def _check_run(
    step: Step, target: Target, classes: Mapping[str, tuple[str, ...]], job_id: str
) -> None:
    """Check the run that a step trains.

    Args:
        step: The step.
        target: Where it is submitted to.
        classes: Names of the classes that earlier steps pack, by the directory of the set.
        job_id: Its job in the queue, whose settings cannot change any more; "" if there is none.
    """
    from dist_train.planning.checks import check_labels
    from dist_train.runtime.run_dir import validate_config

    config, run_dir = step.config, step.root
    if config is None:
        return
    if job_id or step.finished():
        validate_config(run_dir, config)
        return
    later = not (Path(config.data.path) / MANIFEST).exists()  # an earlier step packs it
    for out, names in classes.items():
        if later and Path(config.data.path).is_relative_to(out):
            check_labels(config.data, config.objective.label_dim, names)
    checks = RunChecks(correct=True, data_later=later)
    check_run(config, run_dir, step.resources, target.site, checks)
    check_time_limit(config, run_dir, step.resources, target.site)


def prepare(step: Step) -> None:
    """Write the configuration of a training step's run."""
    from dist_train.runtime.run_dir import settle_config

    if step.config is not None:
        settle_config(step.root, step.config, correct=True)


def workflow_command(args: argparse.Namespace) -> None:
    """Submit what is missing of a workflow, or list all workflows."""
    if args.workflow == "list":
        for name, function in WORKFLOWS.items():
            print(f"{name:26} {(function.__doc__ or '').splitlines()[0]}")
        return
    if args.root is None:
        raise ValueError("--root is missing: name the directory for all that the workflow makes")
    options = submit_options(args)
    own, overrides = split_options(args.overrides)
    inputs = Inputs(
        root=args.root.absolute(),
        source=args.source,
        weights=args.weights,
        resources=options.resources(minutes=24 * 60),
        same_size="nodes" in options.requested,
        overrides=tuple(overrides),
        images=args.images,
        tasks=args.tasks,
    )
    workflow = find_workflow(args.workflow)(inputs)
    start_workflow(workflow, inputs, options, own, only_tree=args.tree)


def start_workflow(
    workflow: Workflow,
    inputs: Inputs,
    options: SubmitOptions,
    own: Mapping[str, Mapping[str, str]],
    *,
    only_tree: bool,
) -> None:
    """Submit what is missing of a workflow, or show its tree.

    Args:
        workflow: Its steps, with the request that all share.
        inputs: What the command line says about it.
        options: Where to submit to, and what each job requests.
        own: Options of sbatch by the name or the kind of steps.
        only_tree: Whether to show its tree and submit nothing.
    """
    if options.target.executor == "debug":
        raise ValueError("--cluster debug: a workflow has several jobs; take slurm or local")
    _check_overrides(workflow, inputs)
    given = options.requested.keys() & {"gpus_per_node", "tasks_per_node"}
    workflow = with_own_resources(workflow, options.target.site, own, spread=not given)
    submit_missing(WorkflowRequest(workflow=workflow, target=options.target, only_tree=only_tree))


def split_options(texts: Sequence[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Split `STEP:option=value` from settings of training.

    Returns:
        Options of sbatch by the name or kind of steps, and the settings.
    """
    own: dict[str, dict[str, str]] = {}
    settings = []
    for text in texts:
        key, _, value = text.partition("=")
        step, mark, option = key.partition(":")
        if mark and (option in OPTIONS or option in NAMES):
            own.setdefault(step, {})[option] = value
        else:
            settings.append(text)
    return own, settings


def with_own_resources(
    workflow: Workflow, site: Site, own: Mapping[str, Mapping[str, str]], *, spread: bool
) -> Workflow:
    """Return a workflow whose steps request what the site and the command line say of each.

    Args:
        workflow: Its steps, with the request that all share.
        site: The site profile: `[resources.KIND]`.
        own: Options of sbatch by the name or the kind of steps; a name counts more.
        spread: Whether evaluation gets as many GPUs of one node as training has of each, or more
            if its step says so.

    Raises:
        ConfigError: No step has that name or kind, or an option is invalid.
    """
    known = dict.fromkeys(name for step in workflow.steps for name in (step.kind, step.name))
    for name in own:
        if name not in known:
            raise ConfigError(f"{name}:...: no step is {name!r}; known are {', '.join(known)}")
    trained = [s.resources.gpus_per_node for s in workflow.steps if s.config is not None]
    steps = []
    for step in workflow.steps:
        layers = [site.resources.get(step.kind, {}), own.get(step.kind, {}), own.get(step.name, {})]
        resources = step.resources
        with _naming(step):
            if spread and step.kind in EVALUATING:
                most = max([resources.gpus_per_node, *trained])
                resources = changed(vars(resources), {"gpus_per_node": most})
            for texts in layers:
                if texts:
                    resources = changed(vars(resources), requested_by_texts(texts))
        steps.append(dataclasses.replace(step, resources=resources))
    return dataclasses.replace(workflow, steps=tuple(steps))


def _check_overrides(workflow: Workflow, inputs: Inputs) -> None:
    """Check that settings for one step name a step that trains. Raises ConfigError otherwise."""
    training = [step.name for step in workflow.steps if step.config is not None]
    for name in inputs.override_steps:
        if name not in training:
            known = ", ".join(training)
            raise ConfigError(f"{name}:...: no step {name!r} is trained; known are {known}")


def add_workflow(parser: argparse.ArgumentParser) -> None:
    """Add the options of `workflow`."""
    parser.add_argument("workflow", help="name of a workflow, or `list`")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="[STEP:]key=value",
        help="changed settings of training, or options of a step's job, as pack:time=2:00:00",
    )
    parser.add_argument("--root", type=Path, help="directory of everything that it makes")
    parser.add_argument("--source", type=Path, help="the image set as downloaded")
    parser.add_argument("--weights", type=Path, help="weights file of the detector")
    parser.add_argument("--images", type=int, help="number of samples to evaluate")
    parser.add_argument("--tasks", type=int, default=16, help="array tasks of packing")
    parser.add_argument("--tree", action="store_true", help="show the state of each step and exit")
    add_submit_options(parser)
    parser.set_defaults(command=workflow_command)
