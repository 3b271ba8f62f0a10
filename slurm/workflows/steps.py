"""The steps that workflows are made of, each a function of what the command line says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dist_train.recipes import find_recipe
from models.config_io import override
from slurm.jobs.jobs import CommandJob, TrainJob
from slurm.resources import Resources
from slurm.workflows.workflow import ReportJob, Step, Workflow

PACK_TASKS = 16
EVALUATING = ("sample", "reference", "eval")
"""Kinds of steps whose ranks share the work, so that they can use all GPUs of a node."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the command line says about a workflow.

    Attributes:
        root: Directory of everything that it makes.
        source: The image set as downloaded; None if it needs none.
        weights: Weights file of the detector; None uses the offline one.
        resources: The request of every job: partition, account, time, ...; for training, nodes
            and ranks are the recipe's unless `same_size`.
        same_size: Whether training uses nodes and ranks of `resources` too.
        overrides: `key=value` for all training steps, or `step:key=value` for one.
        images: Number of samples to evaluate; None is the protocol's.
        tasks: Array tasks of packing.
    """

    root: Path
    source: Path | None = None
    weights: Path | None = None
    resources: Resources = field(default_factory=Resources)
    same_size: bool = False
    overrides: tuple[str, ...] = ()
    images: int | None = None
    tasks: int = PACK_TASKS

    def __post_init__(self) -> None:
        if self.tasks < 1:
            raise ValueError(f"--tasks={self.tasks} must be at least 1")
        if self.images is not None and self.images < 2:
            raise ValueError(f"--images={self.images}: at least 2 can be evaluated")
        for path in (self.source, self.weights):
            if path is not None and not path.exists():
                raise FileNotFoundError(f"{path} does not exist")

    def step_overrides(self, step: str) -> list[str]:
        """Return the overrides of one training step."""
        return [text for name, text in self._overrides() if name in ("", step)]

    @property
    def override_steps(self) -> list[str]:
        """Names of the steps that have overrides of their own."""
        return [name for name, _ in self._overrides() if name]

    def _overrides(self) -> list[tuple[str, str]]:
        """Split `step:key=value`; the step is "" where none is named."""
        split = [text.partition("=") for text in self.overrides]
        parts = [(key.rpartition(":"), mark + value) for key, mark, value in split]
        return [(step, key + rest) for (step, _, key), rest in parts]

    @property
    def pack(self) -> Resources:
        """The request of a job that packs: one process, and no GPU."""
        return self.resources.without_gpus()

    @property
    def table(self) -> Resources:
        """The request of the job that prints the table: one core."""
        return self.resources.without_gpus(cpus_per_task=1)


def pack_steps(
    inputs: Inputs, kind: str, resolutions: Sequence[int], *options: str, name: str = ""
) -> tuple[Step, Step]:
    """Pack the source: an array that shares the work, and the step `data` that joins its parts.

    Sets are in `data/`, or in `data/<resolution>/` if there are several. With a name they are in
    `data/<name>/`, and the steps are `data-<name>-shares` and `data-<name>`.
    """
    source = [str(inputs.source.absolute())] if inputs.source else []
    sizes = ",".join(map(str, resolutions))
    out = inputs.root / "data" / name
    arguments = ("pack", kind, *source, str(out), "--resolution", sizes, *options)
    done = inputs.root / "slurm" / "done"
    first, last = (f"data-{name}-shares", f"data-{name}") if name else ("shares", "data")
    share = first.removesuffix("s")
    shares = [
        CommandJob(
            "data_pipelines",
            (*arguments, "--shard", f"{number}/{inputs.tasks}"),
            done / f"{share}-{number}-of-{inputs.tasks}",
        )
        for number in range(inputs.tasks)
    ]
    joined = CommandJob("data_pipelines", (*arguments, "--finish"), done / last)
    common = {"kind": "pack", "root": inputs.root, "resources": inputs.pack}
    return (
        Step(name=first, jobs=shares, until=joined.done, **common),  # type: ignore[arg-type]
        Step(name=last, jobs=[joined], after=(first,), **common),  # type: ignore[arg-type]
    )


def train_step(
    inputs: Inputs,
    name: str,
    recipe: str,
    data: Path,
    *overrides: str,
    after: tuple[str, ...] = ("data",),
) -> Step:
    """Train a recipe on a packed set, in the run directory `<name>`."""
    config = override(find_recipe(recipe)(), [f"data.path={data}", *overrides])
    config = override(config, inputs.step_overrides(name))
    resources = inputs.resources
    if not inputs.same_size:
        resources = dataclasses.replace(
            resources,
            fewest_nodes=0,
            nodes=config.sharding.nodes,
            tasks_per_node=config.sharding.gpus_per_node,
            gpus_per_node=config.sharding.gpus_per_node,
        )
    run_dir = inputs.root / name
    return Step(
        name=name, kind="train", root=run_dir, jobs=[TrainJob(run_dir)], resources=resources,
        after=after, config=config,
    )  # fmt: skip


def sample_step(inputs: Inputs, name: str, runs: Sequence[str]) -> Step:
    """Sample a grid of 64 images from a model (a relay's runs in order) to `<name>.png`."""
    arguments = ["sample", *(str(inputs.root / run) for run in runs), "--seeds", "0-63"]
    products = ["--out", str(inputs.root / name), "--grid", str(inputs.root / f"{name}.png")]
    return _evaluation_step(inputs, name, "sample", [*arguments, *products], tuple(runs))


def reference_step(inputs: Inputs, data: Path, *options: str) -> Step:
    """Compute the reference statistics of a packed set, in `reference.npz`."""
    arguments = ["reference", str(data), str(inputs.root / "reference.npz"), *options]
    return _evaluation_step(
        inputs, "reference", "reference", [*arguments, *_weights(inputs)], ("data",)
    )


def evaluate_step(
    inputs: Inputs, name: str, runs: Sequence[str], title: str, *options: str
) -> Step:
    """Evaluate a model against the reference, to `evaluation/<name>.json`."""
    arguments = ["run", *(str(inputs.root / run) for run in runs), "--title", title, *options]
    arguments += ["--reference", str(inputs.root / "reference.npz"), *_weights(inputs)]
    arguments += ["--seeds", f"0-{inputs.images - 1}"] if inputs.images else []
    arguments += ["--out", str(inputs.root / "evaluation" / f"{name}.json")]
    return _evaluation_step(inputs, name, "eval", arguments, ("reference", *runs))


def with_table(name: str, inputs: Inputs, *steps: Step) -> Workflow:
    """Return the workflow of these steps and a last one, `table`, which reports on all of them."""
    results = tuple(
        inputs.root / "evaluation" / f"{step.name}.json" for step in steps if step.kind == "eval"
    )
    return with_report(name, inputs, steps, "table", results)


def with_report(
    name: str,
    inputs: Inputs,
    steps: Sequence[Step],
    last: str,
    results: Sequence[Path],
    write: tuple[str, ...] = (),
) -> Workflow:
    """Return the workflow of these steps and a last one, which reports on all of them.

    It runs when the others have ended, even if some failed, and shows what failed and which results
    exist.

    Args:
        name: The workflow's name.
        inputs: What the command line says about it.
        steps: Its other steps.
        last: The name of the last one.
        results: Results of evaluation, in the order of the table.
        write: Arguments of `relaywave slurm` that write what is made of the results; by default
            their table is printed.
    """
    waited_for = {before for step in steps for before in step.after}
    # Settings may be of a plugin's classes, which jobs can read only once they have imported it.
    shown = tuple(dataclasses.replace(step, config=None) for step in steps)
    done = inputs.root / "slurm" / "done" / last
    report = ReportJob(name, shown, tuple(results), done, write)
    table = Step(
        name=last, kind="table", root=inputs.root, jobs=[report], resources=inputs.table,
        after=tuple(step.name for step in steps if step.name not in waited_for), when="afterany",
    )  # fmt: skip
    return Workflow(name, inputs.root, (*steps, table))


def command_step(
    inputs: Inputs, name: str, kind: str, jobs: Sequence[CommandJob], after: tuple[str, ...]
) -> Step:
    """Return a step of commands: one, or the tasks of an array."""
    resources = inputs.resources if kind in (*EVALUATING, "time") else inputs.pack
    return Step(name=name, kind=kind, root=inputs.root, after=after, resources=resources, jobs=jobs)


def _evaluation_step(
    inputs: Inputs, name: str, kind: str, arguments: Sequence[str], after: tuple[str, ...]
) -> Step:
    done = inputs.root / "slurm" / "done" / name
    jobs = [CommandJob("evaluation", tuple(arguments), done)]
    return command_step(inputs, name, kind, jobs, after)


def _weights(inputs: Inputs) -> list[str]:
    return ["--weights", str(inputs.weights.absolute())] if inputs.weights else []
