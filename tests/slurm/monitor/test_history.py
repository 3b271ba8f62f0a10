"""When a run trained: sessions, goodput and the time axis, from what runs and jobs note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dist_train.runtime.events import EVENTS
from slurm.jobs.records import JobDir, JobRecord
from slurm.monitor.history import read_history
from slurm.resources import Resources


def write_events(run_dir: Path, *events: dict[str, Any]) -> None:
    lines = [json.dumps({"images_seen": 0, **event}) for event in events]
    (run_dir / EVENTS).write_text("\n".join(lines) + "\n")


def lines(*images_seen: int, rate: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"images_seen": seen, "step": seen, "speed/images_per_second": rate} for seen in images_seen
    ]


def test_goodput_is_the_time_of_steps_over_that_of_all_processes(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        {"event": "start", "time": 1000.0, "ranks": 4},
        {"event": "end", "time": 1100.0, "images_seen": 80},
        {"event": "start", "time": 5000.0, "images_seen": 50, "ranks": 2},
        {"event": "end", "time": 5100.0, "images_seen": 100},
    )
    history = read_history(tmp_path, lines(50, 100), None)
    assert (history.restarts, history.sessions_seconds) == (1, 200.0)
    assert history.goodput == pytest.approx(0.5)
    assert history.rank_hours == pytest.approx((4 * 100 + 2 * 100) / 3600)
    assert not history.is_bound
    assert history.hours == pytest.approx([50 / 3600, 4050 / 3600]), "the pause is on the axis"


def test_a_process_that_was_killed_counts_until_its_last_line(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        {"event": "start", "time": 1000.0, "ranks": 1},
        {"event": "start", "time": 9000.0, "images_seen": 40, "ranks": 1},
        {"event": "end", "time": 9060.0, "images_seen": 100},
    )
    history = read_history(tmp_path, lines(40, 100), None)
    assert history.is_bound
    assert history.sessions_seconds == 40 + 60


def test_a_running_process_counts_until_now(tmp_path: Path) -> None:
    write_events(tmp_path, {"event": "start", "time": 1000.0, "ranks": 3})
    history = read_history(tmp_path, lines(10), 1020.0)
    assert (history.sessions_seconds, history.is_bound) == (20.0, False)
    assert history.goodput == 0.5


def test_after_a_roll_back_lines_stand_where_they_were_made_again(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        {"event": "start", "time": 0.0, "ranks": 1},
        {"event": "roll_back", "time": 100.0, "images_seen": 20, "why": "the loss is nan"},
        {"event": "end", "time": 130.0, "images_seen": 50},
    )
    history = read_history(tmp_path, lines(20, 50), None)
    assert history.hours == pytest.approx([20 / 3600, 130 / 3600])
    assert [mark.why for mark in history.marks if mark.kind == "roll_back"] == ["the loss is nan"]
    assert history.restarts == 0


def test_jobs_say_when_and_why_they_ended(tmp_path: Path) -> None:
    jobs = JobDir(tmp_path)
    record = JobRecord(
        job_id="7", kind="train", name="run", cluster="slurm", submitted=1.0, cwd="", code="",
        resources=Resources(), logs=str(jobs.records_dir),
    )  # fmt: skip
    jobs.write(record)
    notes = [
        {"event": "start", "time": 100.0, "images_seen": 0, "ranks": 2},
        {"event": "exit", "time": 140.0, "rank": 0, "code": 76},
        {"event": "exit", "time": 141.0, "rank": 1, "code": 76},
        {"event": "crash", "time": 145.0, "requeue": True, "why": "it crashed", "said": "rank 1"},
        {"event": "start", "time": 200.0, "images_seen": 10, "ranks": 2},
        {"event": "exit", "time": 255.0, "rank": 0, "code": 0},
    ]
    with open(jobs.records_dir / "7.attempts.jsonl", "a") as file:
        file.writelines(json.dumps(note) + "\n" for note in notes)
    history = read_history(tmp_path, lines(10, 20), None)
    assert [(mark.kind, mark.time, mark.why) for mark in history.marks] == [
        ("start", 100.0, ""),
        ("end", 145.0, "it crashed: rank 1"),
        ("start", 200.0, ""),
        ("end", 255.0, ""),
    ]
    assert history.sessions_seconds == 45 + 55
    assert history.goodput == pytest.approx(0.2)


def test_runs_of_older_versions_have_the_hours_of_their_steps(tmp_path: Path) -> None:
    history = read_history(tmp_path, lines(3600, 7200), None)
    assert history.hours == (1.0, 2.0)
    assert (history.goodput, history.rank_hours, history.restarts) == (None, None, None)
