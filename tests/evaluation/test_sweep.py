"""`relaywave eval sweep`: a model with each point of a grid, by the ordinary path."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from unittest import mock

import pytest

from evaluation import __main__ as cli
from evaluation.samples.generate import GeneratedImages
from tests.evaluation.test_commands import write_images
from tests.slurm.project import make_run

GRID = ["--grid", "sampling.steps=2,3", "--grid", "sampling.rho=5,7"]
OPTIONS = ["--seeds", "0-3", "--batch-size", "4", "--metrics", "fd:block4"]
NAMES = ["steps_2-rho_5", "steps_2-rho_7", "steps_3-rho_5", "steps_3-rho_7"]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sweep of a tiny model against a few images."""
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "images", 4, size=16)
    assert cli.main(["reference", str(tmp_path / "images"), str(tmp_path / "ref.npz")]) == 0
    run_dir = make_run(tmp_path / "run")
    reference = ["--reference", str(tmp_path / "ref.npz"), *OPTIONS]
    return ["sweep", str(run_dir), *reference, "--out", str(tmp_path / "sweep")]


def test_a_grid_becomes_results_and_tables(sweep: list[str], tmp_path: Path) -> None:
    assert cli.main([*sweep, *GRID, "--title", "tiny"]) == 0
    out = tmp_path / "sweep"
    assert sorted(path.stem for path in out.glob("s*.json")) == NAMES
    with open(out / "table.csv") as file:
        rows = list(csv.DictReader(file))
    axes = ("sampling.steps", "sampling.rho")
    assert [tuple(row[axis] for axis in axes) for row in rows] == [
        ("2", "5"), ("2", "7"), ("3", "5"), ("3", "7"),
    ]  # fmt: skip
    assert [row["nfe"] for row in rows] == ["3", "3", "5", "5"]
    assert (out / "table.md").read_text().startswith("| model | sampling.steps | sampling.rho |")
    assert r"\begin{tabular}" in (out / "table.tex").read_text()
    single = tmp_path / "single.json"
    run_dir, *options = sweep[1:-2]
    command = ["run", run_dir, "sampling.steps=3", "sampling.rho=5", *options]
    assert cli.main([*command, "--out", str(single)]) == 0
    alone, point = (json.loads(p.read_text()) for p in (single, out / "steps_3-rho_5.json"))
    assert alone["identity"] == point["identity"]
    name = "fd_effnet_lite0_block4"
    assert alone["metrics"][name]["values"] == point["metrics"][name]["values"]


def test_nothing_is_drawn_twice(sweep: list[str], tmp_path: Path) -> None:
    """Tasks of an array evaluate their points; the command for all then only writes the table."""
    for name in NAMES:
        assert cli.main([*sweep, *GRID, "--point", name]) == 0
    assert not (tmp_path / "sweep" / "table.md").exists()
    assert cli.main([*sweep, *GRID, "--metrics", "fd:block4,fd:block10"]) == 0
    with mock.patch.object(GeneratedImages, "draw", side_effect=AssertionError("drawn again")):
        assert cli.main([*sweep, *GRID, "--metrics", "fd:block4"]) == 0
        assert cli.main([*sweep, "--grid", "sampling.steps=2", "--grid", "sampling.rho=7"]) == 0
    assert len((tmp_path / "sweep" / "table.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "sampling.steps=2,2.5"], "point steps_2.5: "),
        (["--grid", "sampling.sigma_max=80,80.0"], "draw the same samples; leave one out"),
        (["--grid", "unet.model_channels=8,16"], "point model_channels_8: "),
        (["--grid", "sampling.steps=2", "sampling.steps=3"], "sampling.steps is given twice"),
        (["--grid", "sampling.steps=2", "--grid", "sampling.steps=3"], "is given twice"),
        (["--grid", "sampling.steps=2", "--point", "steps_3"], "--point steps_3 is not one of"),
        (["--grid", "stage2:sampling.steps=2"], "there are 1 snapshot(s)"),
        (["--grid", "sampling.steps"], "is not like key=value,value"),
    ],
    ids=str,
)
def test_invalid_sweeps_are_one_line_and_write_nothing(
    options: list[str],
    message: str,
    sweep: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for dry_run in ([], ["--dry-run"]):
        capsys.readouterr()
        assert cli.main([*sweep, *options, *dry_run]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "sweep").exists()


def test_images_have_no_settings_to_sweep(
    sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["sweep", str(tmp_path / "images"), *sweep[2:]]
    assert cli.main([*images, *GRID]) == 2
    assert "is no model: a sweep changes how samples are drawn" in capsys.readouterr().err


def test_tables_of_others_are_left_alone(
    sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "table.md").write_text("my notes")
    assert cli.main([*sweep, "--grid", "sampling.steps=2"]) == 2
    assert "is not a table of ours" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["table.md"]
    assert (tmp_path / "sweep" / "table.md").read_text() == "my notes"
