"""What `logs` prints of the files of a job's ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.__main__ import main
from slurm.jobs.records import JobDir, JobRecord
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
