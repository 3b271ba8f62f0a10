"""What `logs` prints of the files of a job's ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm import log_lines
from slurm.__main__ import main
from slurm.jobs.exit_reason import reason_in_logs
from slurm.jobs.interpreter import SOURCE
from slurm.jobs.records import JobDir, JobRecord
from slurm.log_lines import parse_since, time_of, without_time
from slurm.resources import Resources


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two jobs of two ranks, each of which has printed five lines."""
    jobs = JobDir(tmp_path)
    for number in (7, 8):
        jobs.write(
            JobRecord(job_id=str(number), kind="train", name=f"run{number}", cluster="slurm",
                      submitted=float(number), cwd="", code="", logs=str(jobs.records_dir),
                      resources=Resources())
        )  # fmt: skip
        for rank in range(2):
            lines = "".join(f"job {number} rank {rank} line {n}\n" for n in range(5))
            (jobs.records_dir / f"{number}_{rank}_log.out").write_text(lines)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["logs", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_newest_job_or_all(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, str(root)) == [
        f"[{rank}]  job 8 rank {rank} line {n}" for rank in range(2) for n in range(5)
    ]
    lines = printed(capsys, str(root), "--all", "--rank", "1", "--tail", "2")
    assert lines == [
        "== run7, job 7", "[1]  job 7 rank 1 line 3", "[1]  job 7 rank 1 line 4",
        "== run8, job 8", "[1]  job 8 rank 1 line 3", "[1]  job 8 rank 1 line 4",
    ]  # fmt: skip


def test_one_rank_and_the_last_lines(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, str(root), "--job", "7", "--rank", "0")
    assert lines == [f"[0]  job 7 rank 0 line {n}" for n in range(5)]
    assert printed(capsys, str(root), "--tail", "1") == ["[1]  job 8 rank 1 line 4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tail", "0"], "--tail=0 must be at least 1"),
        (["--all", "--follow"], "--follow is of one job; leave --all out"),
    ],
)
def test_options_that_contradict(
    options: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["logs", str(root), *options]) == 2
    assert message in capsys.readouterr().err


RANK = """
import os, sys
from slurm.jobs.ranks import Task, enter_rank
del os.environ["SUBMITIT_FOLDER"]
enter_rank(Task(0, 0, 1, ("here",), "1", 1))
print("one"); print("two", 2); print()
sys.stderr.write("a\\nb")
sys.stderr.writelines(["c\\n"])
print("done")
raise ValueError("label_dim=8 is wrong")
"""


def test_ranks_print_the_time_of_each_line(tmp_path: Path) -> None:
    environment = os.environ | {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", RANK], env=environment, cwd=SOURCE,
                          capture_output=True, text=True, check=False)  # fmt: skip
    lines = done.stdout.splitlines()
    assert [without_time(line) for line in lines] == ["one", "two 2", "", "done"]
    errors = done.stderr.splitlines()
    assert [without_time(line) for line in errors[:3]] == ["start 2 of job 1", "a", "bc"]
    assert all(abs(time.time() - (time_of(line) or 0)) < 600 for line in lines + errors)
    (tmp_path / "7_0_log.err").write_text(f"error: of an earlier start\n{done.stderr}")
    assert reason_in_logs(tmp_path, "7") == "ValueError: label_dim=8 is wrong"


def test_lines_of_all_ranks_are_in_order_of_time(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = JobDir(root).records_dir
    day = "2026-01-02T03:04:0"
    (logs / "8_0_log.out").write_text(f"old\n{day}1.000 first\n{day}4.000 last\nof it\n")
    (logs / "8_1_log.out").write_text(f"{day}2.000 second\n")
    (logs / "8_1_log.err").write_text(f"{day}3.000 third\n")
    (logs / "8_10_log.out").write_text(f"{day}2.000 of rank 10\n")
    lines = printed(capsys, str(root))
    assert [line.rpartition(" ")[2] for line in lines] == (
        ["old", "first", "second", "10", "third", "last", "it"]
    )
    assert lines[1] == f"[0]  {day}1.000 first"
    late = printed(capsys, str(root), "--since", f"{day}3")
    assert [line.rpartition(" ")[2] for line in late] == ["third", "last", "it"]
    assert printed(capsys, str(root), "--since", f"{day}3", "--tail", "1") == ["[0]  of it"]
    assert printed(capsys, str(root), "--since", "2h") == []


def test_times_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines.time, "time", lambda: 1e9)
    assert parse_since("90s") == parse_since("1.5m") == 1e9 - 90
    assert parse_since("1d") == parse_since("24h") == 1e9 - 86400


@pytest.mark.parametrize("text", ["yesterday", "10", "2026-13-01", "-5m"])
def test_times_that_are_none(text: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["logs", str(root), f"--since={text}"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"{text!r} is not like 10m, 2h or 2026-01-31T18:00" in error
