"""Who is a rank of what: options, the environment and launchers must agree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from dist_train.__main__ import main
from dist_train.runtime.launch import MAX_RANKS, check_ranks
from dist_train.runtime.world import init_world
from evaluation.__main__ import main as evaluate
from slurm.__main__ import main as submit

DESCRIBING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE",
              "PMI_SIZE", MAX_RANKS)  # fmt: skip


@pytest.fixture(autouse=True)
def _two_cores_and_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a process was started")

    for name in DESCRIBING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(subprocess, "Popen", start)


@pytest.mark.parametrize(
    ("environment", "ranks", "message"),
    [
        ({"RANK": "0"}, ["--ranks", "2"], "--ranks=2, but by RANK=0 and WORLD_SIZE=1"),
        ({"RANK": "1", "WORLD_SIZE": "4"}, ["--ranks", "2"], "this is one of 4; unset"),
        ({"RANK": "3"}, [], "RANK=3 and WORLD_SIZE=1 in the environment describe no rank"),
        ({"WORLD_SIZE": "2"}, [], "RANK= and WORLD_SIZE=2 in the environment describe no rank"),
        ({"RANK": "two", "WORLD_SIZE": "4"}, [], "RANK='two' is not a whole number"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, [], "srun started 2 processes"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, ["--ranks", "2"], "they form no world"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, [], "mpirun started 3 processes"),
        ({"PMI_SIZE": "4"}, [], "start one with --ranks 4"),
        ({}, ["--ranks", "64"], "--ranks=64: this machine has no GPU, and 2 cores"),
        ({}, ["--ranks", "0"], "--ranks=0 must be at least 1"),
        ({MAX_RANKS: "4"}, ["--ranks", "5"], "start at most 4, or set RELAYWAVE_MAX_RANKS=5"),
        ({MAX_RANKS: "many"}, ["--ranks", "5"], "RELAYWAVE_MAX_RANKS='many' is no positive number"),
    ],
)
def test_contradictions_are_rejected_before_anything_starts(
    environment: dict[str, str], ranks: list[str], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run_dir = tmp_path / "run"
    assert main(["rdm_debug_edm16", "--run-dir", str(run_dir), *ranks]) == 2
    if environment.get("RANK", "0") == "0":  # errors that all ranks have are printed by rank 0
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not run_dir.exists()


def test_evaluation_rejects_them_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    command = ["sample", str(tmp_path), "--out", str(tmp_path / "out"), "--ranks", "2"]
    assert evaluate(command) == 2
    assert "--ranks=2, but by RANK=0" in capsys.readouterr().err


def test_jobs_of_this_machine_are_bounded_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--cluster=local", "--nodes=1", "--tasks-per-node=64", "--gpus-per-node=0"]
    settings = ["global_batch_size=64", "--run-dir", str(tmp_path / "run")]
    assert submit(["train", "rdm_debug_edm16", *settings, *options]) == 2
    assert "--tasks-per-node=64: this machine has no GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_bound_can_be_lifted_and_gpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    check_ranks(8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="this machine has 2 GPUs, one for each rank"):
        check_ranks(3)
    monkeypatch.setenv(MAX_RANKS, "64")
    check_ranks(64)


def test_one_task_of_a_launcher_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")  # in a batch script: of the job, not of this process
    world = init_world()
    assert (world.rank, world.size) == (0, 1)
