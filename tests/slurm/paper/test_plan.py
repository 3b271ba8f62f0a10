"""Plans of the papers' experiments at full size, and what is rejected."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from data_pipelines.pack.command import add_pack
from dist_train.recipes import find_recipe
from evaluation.arguments import parse
from evaluation.detectors.inception import FidInception
from evaluation.published import tables
from evaluation.request import evaluations_of
from evaluation.sweep import sweep_points
from models.config_io import ConfigError, override
from models.rdm.config import EdmConfig, RelayConfig
from slurm.__main__ import main
from slurm.jobs.jobs import CommandJob
from slurm.paper.experiments import DATA, EXPERIMENTS, MODELS
from slurm.paper.plan import PaperInputs, plan, points_of
from slurm.workflows.steps import Inputs
from slurm.workflows.workflow import Step
from tests.evaluation.test_commands import write_images
from tests.models.convert.test_rdm import official_module
from tests.test_reproduce import write_rdm

__all__ = ["official_module"]  # a fixture
KINDS = {data.kind for data in DATA.values()}


@pytest.fixture
def paper(tmp_path: Path) -> PaperInputs:
    """All images, as empty files: a plan reads none."""
    for kind in KINDS:
        (tmp_path / kind).touch()
    sources = {kind: tmp_path / kind for kind in KINDS}
    return PaperInputs(inputs=Inputs(root=tmp_path / "root"), sources=sources)


def commands(steps: tuple[Step, ...]) -> list[CommandJob]:
    return [job for step in steps for job in step.jobs if isinstance(job, CommandJob)]


def test_experiments_are_the_published_tables_and_figures() -> None:
    assert [*EXPERIMENTS] == [*tables()]
    for name, experiment in EXPERIMENTS.items():
        if experiment.kind in ("table", "sweep", "time"):
            methods = {row.method for row in tables()[name].rows}
            ours = {entry.method for entry in experiment.entries}
            assert ours - methods <= {"STL-10, DDGAN", "DDGAN"}, "what is not published says so"
            evaluated = {entry.model for entry in experiment.entries}
            for row in tables()[name].rows:
                assert not row.model or row.method in ours, f"{name}: {row.method} is ours"
            assert evaluated <= MODELS.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_arguments_of_all_steps_parse(name: str, paper: PaperInputs) -> None:
    packing = argparse.ArgumentParser()
    add_pack(packing)
    steps = plan(name, paper).steps
    for job in commands(steps):
        if job.module == "evaluation":
            parse(job.arguments)
        else:
            assert job.arguments[0] == "pack"
            packing.parse_args(job.arguments[1:])
    made = {step.name for step in steps}
    assert all(re.fullmatch(r"[a-z0-9_.-]+", step) for step in made)
    for step in steps:
        if step.config is not None:
            packed = [s for s in step.after if s.startswith("data-")]
            assert packed, f"{step.name} waits for its images"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_evaluations_write_the_results_that_the_table_reads(name: str, paper: PaperInputs) -> None:
    written: list[Path] = []
    for job in commands(plan(name, paper).steps):
        args = parse(job.arguments) if job.module == "evaluation" else None
        if args is not None and args.command == "run":
            written += [request.out for request in evaluations_of(args, inputs=False)]
        elif args is not None and args.command == "sweep":
            written += [point.evaluation.out for point in sweep_points(args, inputs=False)]
        elif args is not None and args.command == "time":
            written.append(args.out)
    read = [file for point in points_of(name, paper) for file in point.files]
    assert written == read
    assert len(set(read)) == len(read)


@pytest.mark.parametrize(
    ("name", "step", "options"),
    [
        ("rdm_table1", "data-rdm_celebahq", ["celebahq", "--resolution 64,256"]),
        ("rdm_table2", "data-rdm_imagenet", ["imagenet", "--resolution 64,256"]),
        ("wavediff_stl10", "data-wavediff_stl10", ["--resolution 64", "--filter bilinear"]),
        ("wavediff_celebahq256", "data-wavediff_celebahq256",
         ["celebahq", "--filter bilinear", "--limit 27000"]),
        ("wavediff_lsun_church", "data-wavediff_lsun_church",
         ["lsun", "--filter bilinear", "--limit 120000"]),
    ],
)  # fmt: skip
def test_images_are_packed_as_the_papers_did(
    name: str, step: str, options: list[str], paper: PaperInputs
) -> None:
    (packed,) = (s for s in plan(name, paper).steps if s.name == step)
    (job,) = commands((packed,))
    text = " ".join(job.arguments)
    assert all(option in text for option in options), text
    assert ("--filter" in text) == name.startswith("wavediff"), "RDM's tools take Lanczos"


def test_each_training_is_planned_once_with_the_data_of_its_paper(paper: PaperInputs) -> None:
    runs: dict[str, str] = {}
    for name in EXPERIMENTS:
        for step in plan(name, paper).steps:
            if step.config is not None:
                path = runs.setdefault(step.name, step.config.data.path)
                assert path == step.config.data.path
    assert runs["rdm_celebahq256"].endswith("data/rdm_celebahq/256")
    assert runs["rdm_celebahq64"].endswith("data/rdm_celebahq/64")
    assert runs["wavediff_celebahq256"].endswith("data/wavediff_celebahq256")
    assert runs["ddgan_celebahq512"].endswith("data/wavediff_celebahq_large/512")


def test_budgets_are_spent_as_the_paper_counts(paper: PaperInputs) -> None:
    """10 n steps of stage 1, each evaluation a tenth, and N/2 - n steps of stage 2."""
    objectives = [find_recipe(name)().objective for name in MODELS["rdm_imagenet256"].recipes]
    for job in commands(plan("rdm_figure5", paper).steps):
        if job.arguments[0] != "run":
            continue
        settings = [t for t in job.arguments if "sampling." in t and "/" not in t]
        own = [text.removeprefix("stage1:") for text in settings if text.startswith("stage1:")]
        stage1 = override(objectives[0], own)
        stage2 = override(objectives[1], [t for t in settings if not t.startswith("stage1:")])
        assert isinstance(stage1, EdmConfig)
        assert isinstance(stage2, RelayConfig)
        (budget,) = (int(n) for n in re.findall(r"budget_(\d+)", " ".join(job.arguments)))
        steps = len(stage2.sampling.levels()) - 1
        spent = (2 * stage1.sampling.steps - 1) / 10 + 2 * steps - 1
        assert spent == pytest.approx(budget - 1.1), settings
        assert stage2.sampling.guidance.scale == 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_snapshots_that_are_evaluated_are_written(name: str, paper: PaperInputs) -> None:
    """A snapshot is written by the first step that reaches a multiple of the interval."""
    for job in commands(plan(name, paper).steps):
        for text in job.arguments:
            if "/snapshots/" not in text:
                continue
            path = Path(text)
            config = find_recipe(path.parent.parent.name)()
            batch, every = config.global_batch_size, config.checkpoint.snapshot_every_images
            images = int(path.name)
            assert images % batch == 0
            assert images // every > (images - batch) // every or images >= config.total_images


def test_the_epochs_of_the_authors_are_evaluated(paper: PaperInputs) -> None:
    (wavediff, ddgan) = points_of("wavediff_cifar10", paper)
    assert wavediff.files[0].name == f"{1300 * 195 * 256}-wavediff_cifar10.json"
    assert wavediff.files[1].name == f"{1300 * 195 * 256}-wavediff_cifar10_recall.json"
    assert ddgan.files[0].name.startswith(f"{1200 * 195 * 256}-")


def test_the_stochasticity_is_a_sweep_over_one_training(paper: PaperInputs) -> None:
    jobs = [job for job in commands(plan("rdm_table3", paper).steps) if job.arguments[0] == "sweep"]
    assert len(jobs) == 12, "a task for each point"
    alone = PaperInputs(inputs=paper.inputs, sources=paper.sources, arrays=False)
    jobs = [job for job in commands(plan("rdm_table3", alone).steps) if job.arguments[0] == "sweep"]
    assert [job.arguments.count("--point") for job in jobs] == [0, 0], "one process, in order"


@pytest.mark.usefixtures("official_module")
def test_official_checkpoints_replace_trainings(tmp_path: Path, paper: PaperInputs) -> None:
    official = tmp_path / "official"
    official.mkdir()
    write_rdm(official / "rdm-celebahq64.pt", 64, 0)
    with_theirs = PaperInputs(inputs=paper.inputs, sources=paper.sources, official=official)
    with pytest.raises(ConfigError, match=r"rdm-celebahq256.pt does not exist"):
        plan("rdm_table1", with_theirs)
    write_rdm(official / "rdm-celebahq256.pt", 256, 0)
    steps = plan("rdm_table1", with_theirs).steps
    assert not [step for step in steps if step.kind == "train"]
    conversions = [step for step in steps if step.kind == "convert"]
    for step in conversions:
        assert [job() for job in step.jobs] == ["finished"]
        assert step.finished()
    (run,) = (job for job in commands(steps) if job.arguments[0] == "run")
    assert [Path(text, "snapshot.json").exists() for text in run.arguments[1:3]] == [True, True]


@pytest.mark.usefixtures("official_module")
def test_evaluations_of_other_weights_or_sizes_are_kept_apart(
    tmp_path: Path, paper: PaperInputs
) -> None:
    """All of them may be made below one root; trainings, sets and references are shared."""
    official = tmp_path / "official"
    official.mkdir()
    for name in ("rdm-celebahq64.pt", "rdm-celebahq256.pt"):
        (official / name).touch()
    few = replace(paper.inputs, images=100)
    kinds = [paper, replace(paper, official=official), replace(paper, inputs=few)]
    files = [point.files for kind in kinds for point in points_of("rdm_table1", kind)]
    assert len(set(files)) == len(kinds)
    names = [{s.name for s in plan("rdm_table1", kind).steps} for kind in kinds]
    assert names[0] & names[2] >= {"rdm_celebahq256", "reference-rdm_celebahq256"}
    assert len({kind.out_dir("rdm_table1") for kind in kinds}) == len(kinds)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        shared = names[one] & names[other]
        assert not [name for name in shared if name.startswith("rdm_table1")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run rdm_tabel1 --root r", "there is no experiment 'rdm_tabel1'; did you mean rdm_table1"),
        ("run", "the name of an experiment is missing"),
        ("run rdm_table1", "--root is missing"),
        (
            "run rdm_table1 --root r",
            "needs the images as downloaded: --source celebahq=",
        ),
        ("run rdm_table1 --root r --source celebahq", "is not KIND=PATH"),
        ("run rdm_table1 --root r --source celebhq=.", "did you mean celebahq"),
        ("run rdm_table1 --root r --source celebahq=none", "does not exist"),
        ("run rdm_table1 --root r --source celebahq=. --source celebahq=.", "is given twice"),
        ("run rdm_table1 --root r --debug --source celebahq=.", "leave --source"),
        ("run rdm_table1 --root r --debug --images 9", "--images has no effect"),
        ("run rdm_figure4 --root r --official . --source celebahq=.", "leave --official out"),
        ("run wavediff_time --root r --official .", "leave --official out"),
        ("write rdm_table1 --root r --tree", "--tree has no effect"),
        ("run rdm_table1 --root r --debug rdm_celebahq65:seed=3", "no step 'rdm_celebahq65'"),
        ("run rdm_table1 --root r --debug rdm_celebahq64:sed=3", "unknown setting 'sed'"),
    ],
)
def test_invalid_command_lines_are_one_line(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["paper", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "step", "requested"),
    [
        ("rdm_table1", "", "rdm_table1-rdm", "gpus-per-node=8"),
        ("rdm_table1", "--official official", "rdm_table1-official-rdm", "gpus-per-node=8"),
        ("rdm_table1", "--official official", "official-rdm_celebahq256", ""),
        ("wavediff_time", "", "wavediff_time-cifar_10_ddgan", "gpus-per-node=1"),
        ("wavediff_time", "--gpus-per-node=8", "wavediff_time-cifar_10_ddgan", "gpus-per-node=1"),
        ("wavediff_time", "--gpus-per-node=0", "wavediff_time-cifar_10_ddgan", ""),
        ("rdm_table1", "--debug --cluster slurm", "rdm_table1-rdm", ""),
    ],
)
@pytest.mark.usefixtures("official_module")
def test_steps_request_the_gpus_that_they_use(
    name: str, options: str, step: str, requested: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELAYWAVE_WEIGHTS", str(tmp_path / "weights.toml"))
    inception = {k: v for k, v in FidInception().state_dict().items() if v.is_floating_point()}
    save_file(inception, tmp_path / "inception.safetensors")
    (tmp_path / "weights.toml").write_text('inception = "inception.safetensors"\n')
    write_images(tmp_path / "images", 2, size=256)
    (tmp_path / "official").mkdir()
    for number, edge in (("64", 64), ("256", 256)):
        write_rdm(tmp_path / "official" / f"rdm-celebahq{number}.pt", edge, 0)
    source = [] if "--debug" in options or name == "wavediff_time" else ["--source=celebahq=images"]
    command = ["paper", "run", name, "--root", "root", *source, *options.split(), "--dry-run"]
    assert main(command) == 0, capsys.readouterr().err
    scripts = capsys.readouterr().out.split("#!/bin/bash")
    (script,) = (text for text in scripts if f"--job-name=paper-{step}\n" in text)
    gpus = re.findall(r"#SBATCH --(gpus-per-node=\S+)", script)
    assert gpus == ([requested] if requested else [])


def test_the_list_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in EXPERIMENTS)
