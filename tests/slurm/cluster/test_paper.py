"""An experiment of the papers on a real Slurm: jobs that wait for each other, to its figure."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from slurm.__main__ import main
from slurm.jobs.records import JobDir
from slurm.slurm_cli import queued
from tests.slurm.cluster import helpers

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_an_experiment_of_the_papers_ends_in_a_table_and_a_figure(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The points over each of two trainings are tasks of an array."""
    root, name = cluster / "paper", "wavediff_convergence"
    run = ["paper", "run", name, "--root", str(root), "--debug", "--cluster", "slurm"]
    run += ["--cpus-per-task", "1"]
    assert main(run) == 0
    in_queue = set(queued())
    assert main(run) == 0, "what is in the queue is left there"
    assert set(queued()) <= in_queue
    helpers.wait_for("the experiment", lambda: not queued(), 600)
    capsys.readouterr()
    assert main([*run, "--tree"]) == 0
    tree = capsys.readouterr().out
    assert tree.count(": finished") == len(tree.splitlines()) - 1, tree

    kinds = {record.kind: record for record in JobDir(root / "debug").records()}
    assert len(kinds["eval"].task_ids) == 2, "a task for each snapshot"
    out = root / "debug" / "paper" / name
    with open(out / "table.csv") as file:
        ours = [row["method"] for row in csv.DictReader(file) if row["fid ours"]]
    assert sorted(ours) == ["DDGAN", "DDGAN", "WaveDiff", "WaveDiff"]
    with Image.open(out / "figure.png") as figure:
        assert figure.width > 500
