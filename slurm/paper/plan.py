"""Plans: an experiment as a workflow, from the downloaded images to its table and figure.

All experiments of one root directory share what they have in common: sets in `data/`, runs by
recipe, references by protocol, results by model. All steps have the names of what they make, so
that an experiment finds what another one has made or has in the queue.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dist_train.config import RunConfig
from dist_train.recipes import find_recipe
from evaluation.protocols import find_protocol
from models.config_io import ConfigError, did_you_mean, override
from models.grid import grid_points
from models.rdm.config import RelayConfig
from slurm.jobs.jobs import CommandJob
from slurm.paper import debug
from slurm.paper.experiments import DATA, EXPERIMENTS, MODELS, Entry, Experiment, Model
from slurm.submit.sbatch_options import changed
from slurm.workflows.steps import Inputs, command_step, pack_steps, train_step, with_report
from slurm.workflows.workflow import Step, Workflow

WORKFLOW = "paper"
"""Name of the workflow that all experiments are parts of."""
POINTS = 10
"""Snapshots that are evaluated over a training."""
LARGE_EDGE, LARGE_BATCH = 512, "25"
"""From this edge on the published running times are of smaller batches."""


@dataclass(frozen=True, kw_only=True)
class PaperInputs:
    """How an experiment is run.

    Attributes:
        inputs: What it has in common with other workflows.
        sources: Image sets as downloaded, by their kinds.
        official: Directory of the authors' checkpoints, which replace own trainings; or None.
        debug: Whether everything is tiny, on embedded images; then the root is ROOT/debug.
        arrays: Whether the points of a sweep are tasks of an array, not one command.
        sized: Whether the request says how many GPUs a job gets; if not, the recipe does.
        only_tree: Whether the plan is just looked at, which needs no image set and no checkpoint.
    """

    inputs: Inputs
    sources: Mapping[str, Path] = field(default_factory=dict)
    official: Path | None = None
    debug: bool = False
    arrays: bool = True
    sized: bool = False
    only_tree: bool = False

    def __post_init__(self) -> None:
        if self.debug and (self.sources or self.official):
            raise ValueError("--debug has images and trainings of its own; leave --source and"
                             " --official out")  # fmt: skip
        for path in (*self.sources.values(), *filter(None, [self.official])):
            if not path.exists():
                raise FileNotFoundError(f"{path} does not exist")
        kinds = {data.kind for data in DATA.values()}
        for kind in self.sources:
            if kind not in kinds:
                raise ConfigError(
                    f"--source {kind}=...: no experiment has such images; they are"
                    f" {', '.join(sorted(kinds))}{did_you_mean(kind, sorted(kinds))}"
                )

    @property
    def root(self) -> Path:
        """The directory of all experiments."""
        return self.inputs.root

    @property
    def given_root(self) -> Path:
        """The directory as the command line names it."""
        return self.root.parent if self.debug else self.root

    @property
    def variant(self) -> str:
        """What tells evaluations of other weights or sizes apart, in names: "" for the paper's."""
        images = f"-{self.inputs.images}_images" if self.inputs.images else ""
        return f"{'-official' if self.official else ''}{images}"

    def out_dir(self, name: str) -> Path:
        """Return the directory of an experiment's table and figure."""
        return self.root / "paper" / f"{name}{self.variant}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A result of an experiment.

    Attributes:
        entry: The row or line that it belongs to.
        at: What tells it from others of the entry: `eta`, `budget`, `images seen`.
        files: Its result files: one for each protocol.
    """

    entry: Entry
    at: dict[str, float]
    files: tuple[Path, ...]


def find_experiment(name: str, *, tiny: bool = False) -> Experiment:
    """Return an experiment. Raises ConfigError, listing all names, if there is none."""
    if name not in EXPERIMENTS:
        known = [*EXPERIMENTS]
        similar = did_you_mean(name, known) or f"; known are {', '.join(known)}"
        raise ConfigError(f"there is no experiment {name!r}{similar}")
    return debug.shortened(EXPERIMENTS[name]) if tiny else EXPERIMENTS[name]


def plan(name: str, paper: PaperInputs) -> Workflow:
    """Return the workflow of an experiment.

    Raises:
        ConfigError: There is no such experiment, or a source or checkpoint that it needs.
    """
    return _Plan(name, paper).workflow()


def points_of(name: str, paper: PaperInputs) -> list[Point]:
    """Return the results of an experiment, in the order of its rows."""
    made = _Plan(name, paper)
    return [point for entry in made.entries for point, _ in made.evaluations(entry)]


class _Plan:
    """The steps of one experiment, each once, in an order in which they can run."""

    def __init__(self, name: str, paper: PaperInputs) -> None:
        self.name, self.paper, self.inputs = name, paper, paper.inputs
        self.experiment = find_experiment(name, tiny=paper.debug)
        self.steps: dict[str, Step] = {}

    @property
    def entries(self) -> list[Entry]:
        """The rows that can be made: with the authors' checkpoints, those that there are."""
        return [
            entry
            for entry in self.experiment.entries
            if self.paper.official is None or not entry.protocols or MODELS[entry.model].official
        ]

    def workflow(self) -> Workflow:
        """Return all steps, the last of which writes table and figure."""
        if self.paper.official is not None:
            self._check_official()
        if self.experiment.data:
            self._data_step(self.experiment.data)
        for entry in self.entries:
            self._evaluation_step(entry)
        flags = ["--debug"] if self.paper.debug else []
        flags += ["--official", str(self.paper.official)] if self.paper.official else []
        images = ["--images", str(self.inputs.images)] if self.inputs.images else []
        results = [f for e in self.entries for point, _ in self.evaluations(e) for f in point.files]
        write = ("paper", "write", self.name, "--root", str(self.paper.given_root), *flags, *images)
        last = f"{self.name}{self.paper.variant}-table"
        return with_report(WORKFLOW, self.inputs, [*self.steps.values()], last, results, write)

    def _check_official(self) -> None:
        """Raise ConfigError if the authors' checkpoints are not enough for the experiment."""
        if any(entry.over_training for entry in self.experiment.entries):
            raise ConfigError(
                f"{self.name} follows trainings, of which the authors released one checkpoint at"
                " most; leave --official out"
            )
        if not any(entry.protocols for entry in self.entries):
            raise ConfigError(f"{self.name} evaluates no checkpoint; leave --official out")

    # What is evaluated.

    def _evaluation_step(self, entry: Entry) -> None:
        """Add the evaluation of an entry, and before it all that it needs."""
        variant = self.paper.variant if entry.protocols else ""
        name = f"{self.name}{variant}-{_slug(entry.method)}"
        jobs: list[CommandJob] = []
        after: list[str] = []
        if entry.protocols:
            after = [*self._model_steps(entry.model), *self._reference_steps(entry)]
        for number, command in enumerate(dict.fromkeys(c for _, c in self.evaluations(entry))):
            done = self.paper.root / "slurm" / "done" / f"{name}-{number}"
            jobs.append(CommandJob("evaluation", command, done))
        kind = "eval" if entry.protocols else "time"
        step = command_step(self.inputs, name, kind, jobs, tuple(after))
        self._add(self._with_gpus(step, MODELS[entry.model]))

    def _with_gpus(self, step: Step, model: Model) -> Step:
        """Return a step that requests the GPUs of a node for ranks, or one for a running time."""
        resources = step.resources
        if not self.paper.sized:
            count = find_recipe(model.recipes[-1])().sharding.gpus_per_node
            resources = changed(vars(resources), {"gpus_per_node": count})
        if step.kind == "time":
            single = {"nodes": 1, "fewest_nodes": 0, "tasks_per_node": 1}
            one_gpu = {"gpus_per_node": min(resources.gpus_per_node, 1)}
            resources = changed(vars(resources), single | one_gpu)
        return dataclasses.replace(step, resources=resources)

    def evaluations(self, entry: Entry) -> Iterator[tuple[Point, tuple[str, ...]]]:
        """Yield the results of an entry, each with the command that makes it."""
        results = self.paper.root / "results" / f"{entry.model}{self.paper.variant}"
        if not entry.protocols:
            out = self.paper.root / "results" / entry.model / "times.json"
            yield Point(entry=entry, at={}, files=(out,)), self._time_command(entry, out)
            return
        if entry.grid:
            yield from self._sweep(entry, results)
            return
        for at, name, settings, snapshot in self._places(entry):
            out = results / f"{name}.json"
            sources = [str(path) for path in self._snapshots(entry.model, snapshot)]
            title = f"{entry.method}{''.join(f', {k} {v:g}' for k, v in at.items())}"
            command = ("run", *sources, *settings, *self._options(entry), "--title", title,
                       "--out", str(out))  # fmt: skip
            yield Point(entry=entry, at=at, files=self._files(entry, out)), command

    def _sweep(self, entry: Entry, results: Path) -> Iterator[tuple[Point, tuple[str, ...]]]:
        """Yield the points of a grid, with one command for all or one for each."""
        sources = [str(path) for path in self._snapshots(entry.model, None)]
        command = ("sweep", *sources, *entry.settings, *self._options(entry), "--grid", entry.grid,
                   "--title", entry.method, "--out", str(results))  # fmt: skip
        for name, settings in grid_points([entry.grid]).items():
            at = {key.rpartition(".")[2]: float(value) for key, value in settings.items()}
            point = Point(entry=entry, at=at, files=self._files(entry, results / f"{name}.json"))
            yield point, (*command, *(("--point", name) if self.paper.arrays else ()))

    def _places(
        self, entry: Entry
    ) -> Iterator[tuple[dict[str, float], str, tuple[str, ...], int | None]]:
        """Yield each result's place, name, settings, and the images of the snapshot."""
        base = (*entry.settings, *entry.options)
        if entry.budgets:
            for budget, n in entry.budgets:
                settings = (*entry.settings, *self._budget_settings(entry.model, budget, n))
                yield {"budget": float(budget)}, _named(f"budget_{budget}", base), settings, None
        elif entry.over_training:
            for images in self._snapshot_images(entry.model):
                at = {"images seen": float(images)}
                yield at, _named(f"{images}", base), entry.settings, images
        else:
            chosen = None if entry.last else self._epoch_images(entry.model)
            name = "last" if chosen is None else f"{chosen}"
            yield {}, _named(name, base), entry.settings, chosen

    def _options(self, entry: Entry) -> list[str]:
        references = {find_protocol(p).detector: self._reference(p) for p in entry.protocols}
        if self.paper.debug:
            return [
                *entry.options, "--protocol", entry.protocols[0], *debug.DETECTOR,
                "--seeds", debug.SEEDS, "--reference", str(self._reference(entry.protocols[0])),
            ]  # fmt: skip
        several = len(references) > 1
        named = [f"{name}={path}" if several else str(path) for name, path in references.items()]
        own = str(self.inputs.weights or "")
        weights = f"inception={own}" if own and several else own
        return [
            *entry.options, "--protocol", ",".join(entry.protocols), "--reference", ",".join(named),
            *(["--weights", weights] if weights else []),
            *(["--seeds", f"0-{self.inputs.images - 1}"] if self.inputs.images else []),
        ]  # fmt: skip

    def _files(self, entry: Entry, out: Path) -> tuple[Path, ...]:
        """Return the results of an evaluation: several protocols have one each."""
        if self.paper.debug or len(entry.protocols) == 1:
            return (out,)
        return tuple(out.with_stem(f"{out.stem}-{protocol}") for protocol in entry.protocols)

    def _time_command(self, entry: Entry, out: Path) -> tuple[str, ...]:
        model = MODELS[entry.model]
        settings: list[str] = []
        if self.paper.debug:
            own = debug.tiny(find_recipe(model.recipes[-1])())
            prefix = "objective."
            settings = [text.removeprefix(prefix) for text in own if text.startswith(prefix)]
        resolution = find_recipe(model.recipes[-1])().data.resolution
        large = ["--batch-size", LARGE_BATCH] if resolution >= LARGE_EDGE else []
        sizes = debug.TIMES if self.paper.debug else large
        return ("time", *model.recipes, *settings, *sizes, "--title", entry.method, "--out",
                str(out))  # fmt: skip

    # Models.

    def _model_steps(self, name: str) -> list[str]:
        """Add the training, or the conversion, of a model; returns the names of its steps."""
        model = MODELS[name]
        if self.paper.official is not None:
            return [self._convert_step(name, stage) for stage in range(len(model.recipes))]
        last = len(model.recipes) - 1
        return [
            self._train_step(model, recipe, model.changes if stage == last else ())
            for stage, recipe in enumerate(model.recipes)
        ]

    def _train_step(self, model: Model, recipe: str, changes: Sequence[str]) -> str:
        config = self._config(recipe, changes)
        data = self._data_path(model.data, config.data.resolution)
        before = self._data_step(model.data)
        tiny = debug.tiny(find_recipe(recipe)()) if self.paper.debug else []
        changed = [*tiny, *changes]
        self._add(train_step(self.inputs, recipe, recipe, data, *changed, after=(before,)))
        return recipe

    def _config(self, recipe: str, changes: Sequence[str] = ()) -> RunConfig:
        """Return the settings of a run, without those of the command line."""
        config = find_recipe(recipe)()
        tiny = debug.tiny(config) if self.paper.debug else []
        return override(config, [*tiny, *changes])

    def _convert_step(self, name: str, stage: int) -> str:
        assert self.paper.official is not None
        official = MODELS[name].official[stage]
        source, out = self.paper.official / official.file, self._official_dir(name, stage)
        if not (self.paper.only_tree or out.exists() or source.exists()):
            raise ConfigError(f"{source} does not exist: the authors' checkpoint of {name}")
        family = "wavediff-official" if name.startswith("wavediff") else "rdm-official"
        command = ("convert", family, str(source), str(out), *official.options)
        step = f"official-{MODELS[name].recipes[stage]}"
        done = self.paper.root / "slurm" / "done" / step
        jobs = [CommandJob("models", command, done)]
        self._add(command_step(self.inputs, step, "convert", jobs, ()))
        return step

    def _official_dir(self, name: str, stage: int) -> Path:
        return self.paper.root / "official" / MODELS[name].recipes[stage]

    def _snapshots(self, name: str, images: int | None) -> list[Path]:
        """Return the snapshots of a model: the newest, but the last stage's after some images."""
        recipes = MODELS[name].recipes
        if self.paper.official is not None:
            return [self._official_dir(name, stage) for stage in range(len(recipes))]
        runs = [self.paper.root / recipe for recipe in recipes]
        if images is not None:
            runs[-1] = runs[-1] / "snapshots" / f"{images:012d}"
        return runs

    def _snapshot_images(self, name: str) -> list[int]:
        """Return after how many images the snapshots of a training are evaluated."""
        config = self._config(MODELS[name].recipes[-1])
        every = config.checkpoint.snapshot_every_images
        count = max(config.total_images // every, 1)
        points = debug.POINTS if self.paper.debug else POINTS
        chosen = sorted({max(round(count * k / points), 1) for k in range(1, points + 1)})
        return [_written_at(config, number * every) for number in chosen]

    def _epoch_images(self, name: str) -> int | None:
        """Return after how many images the authors' epoch ends; None for the last snapshot."""
        model = MODELS[name]
        if not model.epoch or self.paper.debug or self.paper.official is not None:
            return None
        config = self._config(model.recipes[-1])
        epoch_images = config.total_images // (_epochs(config) + 1)
        return _written_at(config, min(model.epoch, _epochs(config)) * epoch_images)

    def _budget_settings(self, name: str, budget: int, n: int) -> list[str]:
        """Return the steps of both stages for a budget (docs/reference/rdm.md#12.6)."""
        objective = self._config(MODELS[name].recipes[-1]).objective
        assert isinstance(objective, RelayConfig)
        wanted = budget // 2 - n
        for steps in range(2, 100 * wanted):
            try:
                sampling = dataclasses.replace(objective.sampling, steps=steps)
            except ValueError:  # no level is left
                continue
            if len(sampling.levels()) - 1 == wanted:
                return [f"stage1:sampling.steps={10 * n}", f"sampling.steps={steps}"]
        raise ConfigError(f"no grid of {name} leaves {wanted} steps for the budget {budget}")

    # Data and references.

    def _data_step(self, key: str) -> str:
        """Add the packing of a set; returns the name of the step that ends it."""
        data, name = DATA[key], key
        if self.paper.debug:
            name = "photographs"
            sizes = (debug.STAGE1, debug.EDGE)
            steps = pack_steps(self.inputs, "photographs", sizes, *debug.PACK, name=name)
        else:
            inputs = dataclasses.replace(self.inputs, source=self.paper.sources.get(data.kind))
            steps = pack_steps(inputs, data.kind, data.resolutions, *data.options, name=name)
            if inputs.source is None and not (self.paper.only_tree or steps[-1].finished()):
                raise ConfigError(
                    f"{self.name} needs the images as downloaded: --source {data.kind}=PATH"
                    " (`relaywave data pack --help` describes the kinds)"
                )
        for step in steps:
            self._add(step)
        return steps[-1].name

    def _data_path(self, key: str, resolution: int) -> Path:
        if self.paper.debug:
            return self.paper.root / "data" / "photographs" / str(resolution)
        path = self.paper.root / "data" / key
        return path / str(resolution) if len(DATA[key].resolutions) > 1 else path

    def _reference_steps(self, entry: Entry) -> list[str]:
        """Add the references of an entry's protocols; returns the names of their steps."""
        protocols = entry.protocols[:1] if self.paper.debug else entry.protocols
        model = MODELS[entry.model]
        resolution = self._config(model.recipes[-1]).data.resolution
        names = []
        for protocol in protocols:
            name = self._reference(protocol).stem
            data = self._data_path(model.data, resolution)
            own = [] if self.paper.debug else ["--protocol", protocol]
            weights = self.inputs.weights
            if weights and find_protocol(protocol).detector == "inception":
                own += ["--weights", str(weights)]
            command = ("reference", str(data), str(self._reference(protocol)), *own)
            done = self.paper.root / "slurm" / "done" / name
            jobs = [CommandJob("evaluation", command, done)]
            after = (self._data_step(model.data),)
            step = command_step(self.inputs, name, "reference", jobs, after)
            self._add(self._with_gpus(step, model))
            names.append(name)
        return names

    def _reference(self, protocol: str) -> Path:
        name = "photographs" if self.paper.debug else protocol
        return self.paper.root / "references" / f"reference-{name}.npz"

    def data_path(self) -> Path:
        """Return the packed set of an experiment that evaluates nothing, at its largest size."""
        key = self.experiment.data
        edge = debug.EDGE if self.paper.debug else DATA[key].resolutions[-1]
        return self._data_path(key, edge)

    def _add(self, step: Step) -> None:
        self.steps.setdefault(step.name, step)


def data_of(name: str, paper: PaperInputs) -> Path:
    """Return the packed set of an experiment that evaluates nothing."""
    return _Plan(name, paper).data_path()


def _epochs(config: RunConfig) -> int:
    """Return the epochs of a run's schedule, without the last one, which is beyond it."""
    from dist_train.config import CosineSchedule

    schedule = next(iter(config.optim.values())).schedule
    assert isinstance(schedule, CosineSchedule)
    return schedule.epochs


def _written_at(config: RunConfig, images: int) -> int:
    """Return the images of the snapshot that is written once `images` are seen."""
    batch = config.global_batch_size
    return -(-images // batch) * batch


def _named(name: str, settings: Sequence[str]) -> str:
    """Return the stem of a result: its place, and settings that all of its entry have."""
    return "-".join([name, *map(_slug, settings)])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")
