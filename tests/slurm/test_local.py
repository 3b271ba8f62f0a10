"""The same jobs without Slurm: processes of this machine, requeued by submitit's own controller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_train.runtime.metrics_file import read_metrics
from slurm.__main__ import main
from slurm.jobs.records import JobDir
from tests.paths import ROOT

TRAIN = [
    "train",
    "quickstart_edm16",
    "data.backend=synthetic",
    "objective.unet.model_channels=8",
    "objective.unet.label_dim=4",
    "logging.wandb_project=null",
    "global_batch_size=8",
    "logging.every_images=8",
    "checkpoint.every_images=80",
    "--nodes=1",
    "--gpus-per-node=0",
    "--time=10",
]


def _wait_for(condition: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _images(run_dir: Path) -> int:
    lines = read_metrics(run_dir)
    return int(lines[-1]["images_seen"]) if lines else 0


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.distributed
@pytest.mark.slow
def test_a_local_job_is_stopped_and_resumes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ["--cluster=local", "--tasks-per-node=2", "--run-dir", str(run_dir)]
    assert main([*TRAIN, "total_images=400", "checkpoint.snapshot_every_images=400", *options]) == 0
    record = JobDir(run_dir).records()[0]
    assert record.cluster == "local"
    _wait_for(lambda: _images(run_dir) >= 40)
    for pid in _children(int(record.job_id)):
        os.kill(pid, signal.SIGUSR2)
    _wait_for(lambda: (run_dir / "snapshots" / f"{400:012d}" / "snapshot.json").exists())
    starts = [a for a in JobDir(run_dir).attempts(record.job_id) if a["event"] == "start"]
    assert [start["ranks"] for start in starts] == [2, 2]
    assert starts[1]["images_seen"] >= 40
    assert [line["images_seen"] for line in read_metrics(run_dir)] == [*range(8, 401, 8)]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # submitit leaves its log files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_job_runs_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    options = ["--cluster=debug", "--tasks-per-node=1", "--run-dir", str(run_dir)]
    assert main([*TRAIN, "total_images=16", "checkpoint.snapshot_every_images=16", *options]) == 0
    assert (run_dir / "snapshots" / f"{16:012d}" / "snapshot.json").exists()
    assert "RANK" not in os.environ
    assert main(["status", str(run_dir)]) == 0
    assert "16/16 images (100%)" in capsys.readouterr().out


def test_several_nodes_need_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--cluster=local",
        "--tasks-per-node=1",
        "--nodes=2",
        "--run-dir",
        str(tmp_path / "r"),
    ]
    assert main([*TRAIN, *options]) == 2
    assert "without Slurm there is only this machine" in capsys.readouterr().err


@pytest.mark.slow
def test_a_local_job_does_not_hold_the_pipe_of_its_command(tmp_path: Path) -> None:
    options = ["--cluster=local", "--run-dir", str(tmp_path / "run"), "total_images=8000000"]
    command = [sys.executable, "-m", "slurm", *TRAIN, *options]
    done = subprocess.run(  # in a directory without modules of others
        command, capture_output=True, text=True, timeout=400, cwd=ROOT, check=True
    )
    assert "job " in done.stdout
    job_id = int(JobDir(tmp_path / "run").records()[0].job_id)
    try:
        assert Path("/proc", str(job_id)).exists(), "it runs on"
        opened = [os.readlink(f"/proc/{job_id}/fd/{number}") for number in (0, 1, 2)]
        assert opened == [os.devnull] * 3
    finally:
        main(["cancel", str(tmp_path / "run")])
