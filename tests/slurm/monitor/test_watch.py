"""The table that follows runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_train.runtime.events import EVENTS
from dist_train.runtime.metrics_file import METRICS
from slurm.__main__ import main
from slurm.jobs.records import JobDir, JobRecord
from slurm.monitor.status import run_status
from slurm.monitor.watch import COLUMNS, duration, row_of
from slurm.resources import Resources
from slurm.slurm_cli import QueuedJob
from tests.paths import ROOT
from tests.slurm.project import make_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return a run that has seen 40 of 100 images in 30 s, of which 20 were steps."""
    found = make_run(tmp_path / "run", "total_images=100", "checkpoint.every_images=16")
    line = {"images_seen": 40, "step": 5, "denoiser/loss": 0.25, "speed/images_per_second": 2.0}
    (found / METRICS).write_text(json.dumps({**line, "time": 1030.0}) + "\n")
    events = [{"event": "start", "time": 1000.0, "images_seen": 0, "ranks": 2},
              {"event": "end", "time": 1030.0, "images_seen": 40, "why": "preempted"}]  # fmt: skip
    (found / EVENTS).write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return found


def test_a_row_says_where_a_run_stands(run_dir: Path) -> None:
    row = dict(zip(COLUMNS, row_of(run_dir, run_status(run_dir, {})), strict=True))
    assert row["run"] == "run"
    assert row["step"] == "5"
    assert row["images"] == "40/100 (40%)"
    assert row["images/s"] == "2"
    assert row["loss"] == "0.25"
    assert row["next checkpoint"] == "8 images, 1 min"
    assert row["left"] == "1 min"
    assert row["goodput"] == "67%"


def test_a_row_says_why_a_job_waits_and_when_none_is_queued(run_dir: Path) -> None:
    JobDir(run_dir).write(
        JobRecord(job_id="7", kind="train", name="run", cluster="slurm", submitted=0.0, cwd="",
                  code="", logs=str(run_dir), resources=Resources())
    )  # fmt: skip
    job = QueuedJob("7", "run", "PENDING", "Resources", "", "0:00", "", "")
    assert row_of(run_dir, run_status(run_dir, {"7": job}))[1] == "7 pending (Resources)"
    assert row_of(run_dir, run_status(run_dir, {}))[1] == "unfinished, not queued"


def test_the_table_is_shown_anew_until_it_is_interrupted(run_dir: Path) -> None:
    command = [sys.executable, "-m", "relaywave", "slurm", "status", str(run_dir), "--watch", "1"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        shown: list[str] = []
        while sum("40/100" in line for line in shown) < 2:
            line = process.stdout.readline()
            assert line, "it has ended"
            shown.append(line)
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 60
        while process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert process.returncode == 0


def test_wrong_intervals_and_paths_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(tmp_path), "--watch", "1"]) == 2
    assert "has neither a run nor a job" in capsys.readouterr().err
    assert main(["status", str(tmp_path), "--watch", "0"]) == 2
    assert "--watch=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (5, "1 min"), (180, "3 min"), (9000, "2.5 h"), (2e5, "2.3 d")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
