"""The table of runs side by side, such as those of a sweep."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from dist_train.runtime.metrics_file import METRICS
from slurm.__main__ import main
from slurm.jobs.records import JobDir, JobRecord
from slurm.monitor import commands
from slurm.monitor.table import differing
from slurm.resources import Resources
from slurm.slurm_cli import QueuedJob
from tests.slurm.project import make_run

FORMS = ["text", "markdown", "latex", "html", "csv", "json"]


def _evaluated(run_dir: Path, images: int, protocol: str, **values: float) -> None:
    path = run_dir / "evaluation" / f"{images:012d}" / f"{protocol}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": {"fid": {"values": values}}}))


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of a sweep over the seed: a finished run, one that runs, one to come."""
    names = ["seed_1", "seed_2", "seed_3"]
    for number, (name, seen) in enumerate(zip(names, (100, 40, 0), strict=True), 1):
        run_dir = make_run(tmp_path / "sweep" / name, "total_images=100", f"seed={number}")
        line = {"images_seen": seen, "step": seen // 8, "denoiser/loss": 0.5 / number, "time": 1.0}
        (run_dir / METRICS).write_text(json.dumps(line) + "\n" if seen else "")
    _evaluated(tmp_path / "sweep" / "seed_1", 50, "quick", distance=9.0, std=0.1)
    _evaluated(tmp_path / "sweep" / "seed_1", 100, "quick", distance=7.25, std=0.1)
    JobDir(tmp_path / "sweep").write(
        JobRecord(job_id="7", kind="sweep", name="sweep", cluster="slurm", submitted=0.0, cwd="",
                  code="", logs=str(tmp_path), resources=Resources(),
                  tasks=tuple(f"train {name}" for name in names))
    )  # fmt: skip
    queue = {
        "7_1": QueuedJob("7_1", "sweep", "RUNNING", "None", "n1", "0:10", "", ""),
        "7_2": QueuedJob("7_2", "sweep", "PENDING", "JobArrayTaskLimit", "", "", "", ""),
    }
    monkeypatch.setattr(commands, "queue_or_empty", lambda: queue)
    monkeypatch.setattr(commands, "exited_states", lambda roots, queue: {"7_0": ("COMPLETED", "")})
    return tmp_path / "sweep"


def _printed(sweep: Path, form: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["status", str(sweep), "--table", form]) == 0
    return capsys.readouterr().out


def test_a_row_per_run_says_what_differs_and_where_it_stands(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, rule, *lines = _printed(sweep, "text", capsys).splitlines()
    assert header.split() == [
        "run", "seed", "state", "step", "images", "denoiser/loss", "quick/fid.distance"
    ]  # fmt: skip
    assert set(rule) == {"-"}
    cells = [" ".join(line.split()) for line in lines]
    assert cells == [
        "seed_1 1 finished 12 100/100 0.5 7.25 at 100",
        "seed_2 2 7_1 running 5 40/100 0.25 -",
        "seed_3 3 7_2 pending (JobArrayTaskLimit) 0 0/100 - -",
    ]
    assert main(["status", str(sweep), "--table"]) == 0
    assert capsys.readouterr().out.splitlines() == [header, rule, *lines]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_all_runs(
    form: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _printed(sweep, form, capsys)
    for part in ("seed_1", "seed_2", "seed_3", "7.25", "finished"):
        assert part.replace("_", {"latex": r"\_", "markdown": r"\_"}.get(form, "_")) in text


def test_programs_read_values_and_their_images_apart(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.DictReader(_printed(sweep, "csv", capsys).splitlines()))
    assert rows[0]["quick/fid.distance"] == "7.25"
    assert rows[0]["quick/fid.distance images seen"] == "100"
    assert (rows[1]["seed"], rows[1]["images seen"], rows[1]["total images"]) == ("2", "40", "100")
    first, *_ = runs = json.loads(_printed(sweep, "json", capsys))
    assert [run["settings"] for run in runs] == [{"seed": 1}, {"seed": 2}, {"seed": 3}]
    assert first["results"] == {"quick/fid.distance": {"value": 7.25, "images_seen": 100}}


def test_a_run_that_cannot_be_read_is_a_row_and_a_remark(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "seed_2" / "config.json").write_text("{")
    text = _printed(sweep, "text", capsys)
    assert len([line for line in text.splitlines() if line.startswith("seed_")]) == 4
    assert "config.json" in text.splitlines()[-1]
    assert [row["seed"] for row in csv.DictReader(_printed(sweep, "csv", capsys).splitlines())] == [
        "1", "", "3"
    ]  # fmt: skip


def test_directories_without_runs_have_no_table(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("seed_1", "seed_2", "seed_3"):
        (sweep / name).rename(sweep.parent / name)
    assert main(["status", str(sweep), "--table"]) == 2
    assert "no run among these directories" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("documents", "names"),
    [
        ([], []),
        ([{"a": 1}], []),
        ([{"a": 1, "b": {"c": 1}}, {"a": 1, "b": {"c": 2}}], ["b.c"]),
        ([{"b": {"c": 1}}, {"b": {"c": 2}}, {"b": None}], ["b"]),
        ([{"a": 1}, {"a": 1}, {"a": 1, "n": None, "m": 2}], ["m"]),
    ],
)
def test_settings_that_differ(documents: list[dict[str, Any]], names: list[str]) -> None:
    assert differing(documents) == names


def test_a_run_of_a_sweep_shows_its_own_job(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(sweep / "seed_2")]) == 0
    assert "sweep 7_1  RUNNING" in capsys.readouterr().out
