"""Nodes that are unfit: what is seen of their GPUs and directories, and jobs that leave them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from models.command_line import EXIT_LOST, EXIT_PREEMPTED, EXIT_STORAGE, EXIT_UNEXPECTED
from slurm.jobs import health, nvidia_smi
from slurm.jobs.health import Reduced
from slurm.jobs.hosts import UNHEALTHY, crashed_hosts
from slurm.jobs.nvidia_smi import gpu_problems
from slurm.jobs.ranks import Task
from slurm.jobs.records import JobDir

FIT = {
    "name": "NVIDIA H100",
    "ecc.errors.uncorrected.volatile.total": "0",
    "remapped_rows.pending": "No",
    "remapped_rows.failure": "No",
    "clocks.sm": "1980",
    "clocks_event_reasons.hw_slowdown": "Not Active",
    "clocks_event_reasons.hw_thermal_slowdown": "Not Active",
    "clocks_event_reasons.hw_power_brake_slowdown": "Not Active",
}
SMI = """\
#!{python}
import sys, time
gpus, before = {gpus!r}, {before!r}
exec(before)
fields = sys.argv[1].removeprefix("--query-gpu=index,").split(",")
assert sys.argv[2:] == ["--format=csv,noheader,nounits"]
for field in fields:
    if field not in gpus[0]:
        print(f'Field "{{field}}" is not a valid field to query.')
        sys.exit(2)
for number, gpu in enumerate(gpus):
    print(", ".join([str(number), *(gpu[field] for field in fields)]))
"""
REDUCED = Reduced(True, 0.1, 2, "cuda:0", 2)


def fake_smi(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *gpus: dict[str, str], before: str = ""
) -> None:
    """Put an `nvidia-smi` before others on the path; it shows these GPUs, after some other code."""
    path = directory / "bin" / "nvidia-smi"
    path.parent.mkdir(exist_ok=True)
    path.write_text(SMI.format(python=sys.executable, gpus=gpus, before=before))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, ""),
        ({"ecc.errors.uncorrected.volatile.total": "[N/A]"}, ""),
        ({"clocks_event_reasons.hw_slowdown": "[N/A]"}, ""),
        ({"ecc.errors.uncorrected.volatile.total": "2"}, "GPU 1 has 2 uncorrected ECC errors"),
        ({"remapped_rows.pending": "Yes"}, "GPU 1 has rows of its memory to remap"),
        ({"remapped_rows.failure": "Yes"}, "GPU 1 has rows of its memory to remap"),
        (
            {"clocks_event_reasons.hw_thermal_slowdown": "Active", "clocks.sm": "345"},
            "GPU 1 is slowed down to 345 MHz (hw_thermal_slowdown)",
        ),
    ],
)
def test_what_nvidia_smi_shows_of_unfit_gpus(
    changed: dict[str, str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_smi(tmp_path, monkeypatch, FIT, FIT | changed)
    found = "; ".join(gpu_problems(2))
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_older_drivers_call_the_reasons_of_clocks_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {name.replace("_event_", "_throttle_"): text for name, text in FIT.items()}
    del older["remapped_rows.pending"]  # nor do they know this
    hot = older | {"clocks_throttle_reasons.hw_power_brake_slowdown": "Active"}
    fake_smi(tmp_path, monkeypatch, hot)
    assert list(gpu_problems(1)) == ["GPU 0 is slowed down to 1980 MHz (hw_power_brake_slowdown)"]


def test_gpus_that_are_missing_or_do_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_smi(tmp_path, monkeypatch, FIT)
    assert list(gpu_problems(8)) == ["nvidia-smi shows 1 of 8 GPUs"]
    lost = "Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error"
    fake_smi(tmp_path, monkeypatch, FIT, before=f"print({lost!r})")
    assert list(gpu_problems(1)) == [f"nvidia-smi: {lost}"], "with exit code 0, too"
    fake_smi(tmp_path, monkeypatch, FIT, before="print('No devices were found'); sys.exit(6)")
    assert list(gpu_problems(1)) == ["nvidia-smi: No devices were found"]
    fake_smi(tmp_path, monkeypatch, FIT, before="time.sleep(60)")
    monkeypatch.setattr(nvidia_smi, "SECONDS", 0.2)
    assert list(gpu_problems(1)) == ["nvidia-smi did not answer in 0 s"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert list(gpu_problems(1)) == [], "GPUs of another maker"


def as_task(monkeypatch: pytest.MonkeyPatch, local_rank: int = 0) -> None:
    """Let this process be a task on n2 of two nodes."""
    task = Task(1 + local_rank, local_rank, 4, ("n1", "n2"), "7", 3)
    monkeypatch.setattr(health, "this_task", lambda: task)
    monkeypatch.setattr(health, "enter_rank", lambda task: None)
    monkeypatch.setattr(health, "NOTING_SECONDS", 0.0)
    monkeypatch.setenv("SLURMD_NODENAME", "n2")


def notes(jobs: JobDir) -> list[dict[str, Any]]:
    return [note for note in jobs.attempts("7") if note["event"] == UNHEALTHY]


@pytest.mark.parametrize(
    ("reduced", "why"),
    [
        (REDUCED, ""),
        (Reduced(False, 0.1, 2, "cuda:0", 2), "the all-reduce gave rank 1 a wrong sum"),
        (Reduced(True, 0.1, 2, "cpu", 0), "rank 1 sees no GPU"),
    ],
)
def test_an_unfit_node_is_noted_with_its_host(
    reduced: Reduced, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    jobs = JobDir(tmp_path)
    jobs.records_dir.mkdir(parents=True)
    as_task(monkeypatch)
    fake_smi(tmp_path, monkeypatch, FIT, FIT)
    assert health.check(jobs, 2, lambda: reduced) == (EXIT_UNEXPECTED if why else 0)
    assert [(n["host"], n["why"], n["restart"]) for n in notes(jobs)] == (
        [("n2", why, 3)] if why else []
    )
    assert (f"error: n2: {why}" in capsys.readouterr().err) == bool(why)


def test_only_one_task_of_a_node_looks_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = JobDir(tmp_path)
    jobs.records_dir.mkdir(parents=True)
    fake_smi(tmp_path, monkeypatch, FIT | {"ecc.errors.uncorrected.volatile.total": "1"})
    as_task(monkeypatch, local_rank=1)
    assert health.check(jobs, 1, lambda: REDUCED) == 0
    as_task(monkeypatch)
    assert health.check(jobs, 0, lambda: REDUCED) == 0, "a job without GPUs"
    assert health.check(jobs, 1, lambda: REDUCED) == EXIT_UNEXPECTED
    assert notes(jobs)[0]["why"] == "GPU 0 has 1 uncorrected ECC errors"


def test_directories_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_task(monkeypatch)
    jobs = JobDir(tmp_path)
    jobs.records_dir.mkdir(parents=True)

    def fail(task: Task) -> None:
        raise PermissionError(13, "Permission denied", "/scratch")

    monkeypatch.setattr(health, "enter_rank", fail)
    assert health.check(jobs, 0, lambda: REDUCED) == EXIT_UNEXPECTED
    assert "scratch cannot be used" in notes(jobs)[0]["why"]
    (tmp_path / "file").touch()
    assert health.check(JobDir(tmp_path / "file"), 0, lambda: REDUCED) == EXIT_STORAGE
    assert "directory" in capsys.readouterr().err


def start(*hosts: str, ranks: int = 4) -> dict[str, Any]:
    return {"event": "start", "hosts": list(hosts), "ranks": ranks}


def left(rank: int, code: int, host: str) -> dict[str, Any]:
    return {"event": "exit", "rank": rank, "code": code, "host": host}


@pytest.mark.parametrize(
    ("notes", "hosts"),
    [
        ([], []),
        ([start("n1", "n2")], []),  # none has noted anything: whatever killed all of them
        ([start("n1", "n2"), *(left(rank, EXIT_PREEMPTED, "n1") for rank in (0, 1)),
          left(3, EXIT_LOST, "n2")], ["n2"]),  # rank 2 was killed
        ([start("n1", "n2"), left(0, EXIT_PREEMPTED, "n1"), left(2, 1, "n2")], ["n2"]),
        ([start("n1", "n2"), left(0, 1, "n1"), left(2, 1, "n2")], []),  # a defect of the code
        ([start("n1", ranks=1)], ["n1"]),
        ([start("n1", ranks=1), left(0, 1, "n1")], ["n1"]),
        ([start("n1", "n2"), {"event": "exit", "rank": 0, "code": 1}], ["n1"]),  # of older code
        ([{"event": UNHEALTHY, "host": "n2", "hosts": ["n1", "n2", "n3"]}], ["n2"]),
        ([{"event": UNHEALTHY, "host": h, "hosts": ["n1", "n2", "n3"]} for h in ("n3", "n2")],
         ["n2", "n3"]),
        ([{"event": UNHEALTHY, "host": h, "hosts": ["n1", "n2"]} for h in ("n1", "n2")], []),
    ],
)  # fmt: skip
def test_the_hosts_of_a_crash(notes: list[dict[str, Any]], hosts: list[str]) -> None:
    assert crashed_hosts(notes) == hosts
