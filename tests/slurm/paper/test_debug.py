"""Every experiment of the papers, tiny, from the embedded photographs to its table and figure.

They share a directory, as experiments do: what one has made the next one finds. Jobs run in this
process; that they run as jobs is tested elsewhere.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from evaluation.published import tables
from slurm.__main__ import main
from slurm.paper.debug import DEBUG, NOTE
from slurm.paper.experiments import EXPERIMENTS
from slurm.paper.plan import PaperInputs, find_experiment, plan
from slurm.resources import Resources
from slurm.workflows.command import prepare
from slurm.workflows.steps import Inputs
from slurm.workflows.workflow import ReportJob, Step

UNKNOWN_HERE = {"is", "sfid", "gigabytes"}
"""Columns that the offline detector, or this machine, does not give."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of experiments."""
    return tmp_path_factory.mktemp("paper") / DEBUG


def run(name: str, root: Path) -> list[Step]:
    """Run what is missing of an experiment; returns the steps that were run."""
    inputs = Inputs(root=root, tasks=1, resources=Resources(minutes=30), same_size=True)
    paper = PaperInputs(inputs=inputs, debug=True, arrays=False, sized=True)
    missing = [step for step in plan(name, paper).steps if not step.finished()]
    for step in missing:
        prepare(step)
        for job in step.jobs:
            if isinstance(job, ReportJob):
                assert main(list(job.write)) == 0
                job.done.touch()
            else:
                assert job() == "finished"
    return missing


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:The balance properties")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_ends_in_a_table_and_a_figure(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(root / "cache"))
    run(name, root)
    out = root / "paper" / name
    text = (out / "table.md").read_text()
    assert tables()[name].title in text.replace("\\", "")
    assert NOTE in text
    assert r"\begin{tabular}" in (out / "table.tex").read_text()
    with Image.open(out / "figure.png") as figure:
        assert figure.width > 500
    assert "<svg" in (out / "figure.svg").read_text()
    with open(out / "table.csv") as file:
        rows = list(csv.DictReader(file))
    experiment = find_experiment(name, tiny=True)
    for entry in experiment.entries:
        own = [row for row in rows if row["method"] == entry.method]
        for column in set(experiment.columns) - UNKNOWN_HERE:
            ours = [row for row in own if row[f"{column} ours"]]
            assert ours, f"{entry.method} has no {column}"
            assert all(row["deviations"] for row in ours)
    assert not run(name, root), "all is there, and nothing is made again"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # submitit leaves its log files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_command_runs_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["paper", "run", "rdm_figure2", "--root", str(tmp_path), "--debug"]
    assert main(command) == 0
    assert "rdm_figure2-table: finished" in capsys.readouterr().out
    out = tmp_path / "debug" / "paper" / "rdm_figure2"
    assert (out / "figure.png").exists()
    (out / "table.md").unlink()
    assert main(["paper", "write", *command[2:]]) == 0
    assert (out / "table.md").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:The balance properties")
def test_experiments_share_what_they_make(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(root / "cache"))
    run("rdm_table1", root)
    made = run("rdm_figure4", root)
    trained = {step.name for step in made if step.kind == "train"}
    assert not trained & {"rdm_celebahq64", "rdm_celebahq256"}
    for step in made:
        assert step.kind not in ("pack", "reference"), step.name
