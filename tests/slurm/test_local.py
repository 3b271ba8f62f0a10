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
from PIL import Image

from dist_train.runtime.metrics_file import read_metrics
from models import command_line
from models.command_line import EXIT_PREEMPTED
from slurm.__main__ import main
from slurm.jobs import local
from slurm.jobs.jobs import CommandJob
from slurm.jobs.records import JobDir
from slurm.resources import Resources
from slurm.site import Site
from slurm.submit.arguments import Target
from slurm.submit.in_order import JobsFailedError
from slurm.workflows.workflow import Step, Workflow, run_workflow
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


@pytest.mark.slow
def test_a_cancelled_local_job_saves_and_does_not_start_again(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ["--cluster=local", "--run-dir", str(run_dir), "total_images=8000000"]
    assert main([*TRAIN, *options]) == 0
    job_id = JobDir(run_dir).records()[0].job_id
    _wait_for(lambda: _images(run_dir) >= 16)
    assert main(["cancel", str(run_dir)]) == 0
    _wait_for(lambda: not local.runs(job_id))
    events = [attempt["event"] for attempt in JobDir(run_dir).attempts(job_id)]
    assert events == ["start", "cancel", "exit"]
    assert list(run_dir.glob("checkpoints/*")), "it saved"


SWEEP = ["sweep", *TRAIN[1:], "total_images=160", "--grid", "seed=1,2", "--cluster=local"]


@pytest.mark.slow
def test_a_sweep_runs_in_order_and_continues_where_it_was_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slurm", *SWEEP, "--out", str(tmp_path / "all")]
    first, second = tmp_path / "all" / "seed_1", tmp_path / "all" / "seed_2"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        _wait_for(lambda: _images(first) >= 24)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=300)
    assert process.returncode == EXIT_PREEMPTED
    assert "stopped when asked to; the same command continues" in printed
    record = JobDir(first).records()[0]
    assert not local.runs(record.job_id), "the job ends with the command"
    assert not JobDir(second).records(), "no other was started"
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    for run_dir in (first, second):
        assert [line["images_seen"] for line in read_metrics(run_dir)] == [*range(8, 161, 8)]
    starts = [JobDir(run_dir).records()[-1].submitted for run_dir in (first, second)]
    ended = JobDir(first).attempts(JobDir(first).records()[-1].job_id)[-1]
    assert starts[0] < ended["time"] <= starts[1], "the second starts when the first has ended"


@pytest.mark.slow
def test_steps_that_need_a_failed_one_are_skipped_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        path = tmp_path / "pictures" / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 9, 9)).save(path)

    def pack(name: str, source: str, *after: str) -> Step:
        arguments = ("pack", "images", str(tmp_path / source), str(tmp_path / name), "--resolution")
        job = CommandJob("data_pipelines", (*arguments, "16"), tmp_path / "done" / name)
        return Step(name=name, kind="pack", root=tmp_path, jobs=[job], resources=Resources(),
                    after=after)  # fmt: skip

    steps = (pack("bad", "nowhere"), pack("lost", "bad", "bad"), pack("good", "pictures"))
    target = Target(Site(), "local", dry_run=False)
    with pytest.raises(JobsFailedError) as raised:
        run_workflow(Workflow("three", tmp_path, steps), target, lambda step: None)
    text = str(raised.value)
    assert "three-bad: " in text
    assert f"{tmp_path / 'nowhere'}" in text, "why it failed"
    assert "lost was skipped, as it needs bad" in text
    capsys.readouterr()
    assert command_line.fail(raised.value) == command_line.EXIT_UNEXPECTED
    assert capsys.readouterr().err == f"error: {text}\n", "no traceback: nothing here is a defect"
    assert (tmp_path / "good" / "manifest.json").exists()
    assert [record.name for record in JobDir(tmp_path).records()] == ["three-bad", "three-good"]
    (tmp_path / "pictures").rename(tmp_path / "nowhere")  # the fault is mended
    run_workflow(Workflow("three", tmp_path, steps), target, lambda step: None)
    names = [record.name for record in JobDir(tmp_path).records()]
    assert names[2:] == ["three-bad", "three-lost"], "what is finished is not run again"


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
