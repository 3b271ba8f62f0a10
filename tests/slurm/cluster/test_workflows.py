"""Arrays, sweeps, workflows and scheduled evaluation on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.packed.manifest import read_manifest
from slurm.__main__ import main
from slurm.continuous_eval.schedule import EvaluationSchedule, ScheduledProtocol, write_schedule
from slurm.jobs.records import JobDir
from slurm.resources import Resources
from slurm.slurm_cli import queued
from tests.dist_train.test_trainer import whole_tensors
from tests.slurm.cluster import helpers
from tests.tiny import last_of_each

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ONE_TASK = ["--nodes=1", "--tasks-per-node=1", "--gpus-per-node=0", "--time=10"]
TINY_WORKFLOW = [
    "logging.wandb_project=null",
    "global_batch_size=8",
    "total_images=16",
    "edm16:objective.unet.model_channels=8",
    "relay64:objective.unet.model_channels=8",
    "edm16:objective.unet.label_dim=2",
    "relay64:objective.unet.label_dim=2",
    "edm16:objective.sampling.steps=2",
    "relay64:objective.sampling.steps=5",
]


@pytest.fixture(scope="module")
def pictures(cluster: Path) -> Path:
    """Make a directory of two classes of small pictures."""
    generator = np.random.default_rng(0)
    for number in range(64):
        path = cluster / "pictures" / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return cluster / "pictures"


@pytest.fixture(scope="module")
def arguments(cluster: Path, pictures: Path) -> list[str]:
    """The quickstart's workflow with both models, tiny; four tasks pack the pictures."""
    root, shares = ["--root", str(cluster / "workflow")], ["--tasks=4", "--images=8"]
    source = ["--source", str(pictures)]
    return ["workflow", "quickstart", *root, *source, *shares, *ONE_TASK, *TINY_WORKFLOW]


@pytest.fixture(scope="module")
def workflow_root(cluster: Path, arguments: list[str]) -> Path:
    """Run the workflow to its end."""
    assert main(arguments) == 0
    in_queue = set(queued())
    assert main(arguments) == 0, "what is in the queue is left there"
    assert set(queued()) <= in_queue
    helpers.wait_for("the workflow", lambda: not queued(), 400)
    assert main(arguments) == 0
    assert not queued(), "what is finished is skipped"
    return cluster / "workflow"


def test_a_workflow_ends_in_tables(
    workflow_root: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--tree"]) == 0
    tree = capsys.readouterr().out
    assert tree.count("finished") == 11, tree
    table = [r for r in JobDir(workflow_root).records() if r.kind == "table"]
    assert len(table) == 1
    assert main(["logs", str(workflow_root), "--job", table[0].job_id]) == 0
    printed = capsys.readouterr().out
    assert "RDM" in printed
    assert "WaveDiff" in printed
    assert "fd:block4" in printed


def test_a_workflow_reports_what_failed_and_continues_once_it_is_fixed(
    workflow_root: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = workflow_root / "wavediff64" / "snapshots" / f"{16:012d}" / "weights.safetensors"
    aside = weights.rename(weights.with_name("aside"))
    for name in ("evaluation/wavediff.json", "slurm/done/wavediff", "slurm/done/table"):
        (workflow_root / name).unlink()
    assert main(arguments) == 0
    helpers.wait_for("the workflow", lambda: not queued(), 120)
    report = JobDir(workflow_root).records()[-1]
    assert report.kind == "table"
    assert report.resources.dependency.startswith("afterany:")
    capsys.readouterr()
    assert main(["logs", str(workflow_root), "--job", report.job_id]) == 0
    printed = capsys.readouterr().out
    why = r"was failed \(/.*weights.safetensors cannot be read: .*\); logs in /"
    assert re.search(rf"wavediff: STOPPED: job \d+ {why}", printed), printed
    assert "no result of wavediff; fix the cause and submit again" in printed
    assert "fd:block4" in printed, "the existing results"
    assert "rdm: finished" in printed
    aside.rename(weights)
    assert main(arguments) == 0
    helpers.wait_for("the workflow", lambda: not queued(), 120)
    capsys.readouterr()
    assert main([*arguments, "--tree"]) == 0
    assert capsys.readouterr().out.count("finished") == 11


def test_an_array_packs_what_one_process_packs(
    workflow_root: Path, pictures: Path, tmp_path: Path
) -> None:
    arguments = ["pack", "images", str(pictures), str(tmp_path / "one"), "--resolution", "64"]
    subprocess.run([sys.executable, "-P", "-m", "data_pipelines", *arguments], check=True)
    ours, theirs = read_manifest(workflow_root / "data"), read_manifest(tmp_path / "one")
    assert ours.digest == theirs.digest
    assert [shard.sha256 for shard in ours.shards] == [shard.sha256 for shard in theirs.shards]


def test_a_sweep_runs_every_point(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = cluster / "sweep"
    short = ["total_images=16", "checkpoint.snapshot_every_images=16"]
    arguments = [
        *last_of_each(*helpers.TINY, *short),
        *ONE_TASK,
        "--grid=seed=0,1",
        "--parallel=2",
        "--out",
        str(out),
    ]
    assert main(["sweep", *arguments]) == 0
    assert main(["sweep", *arguments]) == 2, "runs in the queue are not submitted again"
    assert "already" in capsys.readouterr().err
    job_id = helpers.last_job(out)
    helpers.wait_for_end(job_id)
    assert helpers.states(job_id) == ["COMPLETED", "COMPLETED"]
    first, second = (whole_tensors(out / f"seed_{seed}") for seed in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert main(["sweep", *arguments]) == 0
    assert "all 2 runs" in capsys.readouterr().out


def test_every_snapshot_is_evaluated_exactly_once(
    cluster: Path, workflow_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = workflow_root / "edm16"
    arguments = ("--reference", str(workflow_root / "reference.npz"), "--metrics", "fd:block4")
    protocols = tuple(
        ScheduledProtocol(name=name, words=(*arguments, "--seeds", seeds))
        for name, seeds in (("quick", "0-3"), ("full", "4-9"))
    )
    schedule = EvaluationSchedule(
        protocols=protocols, resources=Resources(minutes=10), claim_seconds=1.0,
        best="quick:fd_effnet_lite0_block4.distance",
    )  # fmt: skip
    write_schedule(run_dir, schedule)
    watcher = [sys.executable, "-P", "-m", "slurm", "reconcile", str(run_dir)]
    killed = subprocess.Popen([sys.executable, "-P", "-c", KILLED, str(run_dir)])
    assert killed.wait(60) == -signal.SIGKILL  # between its claim and its submission
    assert main(["reconcile", str(run_dir), "--every=1", *ONE_TASK]) == 0
    both = [subprocess.Popen(watcher) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]

    def all_done() -> bool:
        hurry(run_dir)
        assert main(["reconcile", str(run_dir)]) == 0
        return "2 of 2 evaluations done" in capsys.readouterr().out

    helpers.wait_for("all evaluations", all_done, 200)
    helpers.wait_for("the series to end", lambda: hurry(run_dir) or not queued(), 60)
    series = [r.job_id for r in JobDir(run_dir).records() if r.kind == "reconcile"]
    assert len(series) >= 2, "it has submitted itself again"
    assert {state for job_id in series for state in helpers.states(job_id)} == {"COMPLETED"}
    for name in ("quick", "full"):
        result_dir = run_dir / "evaluation" / f"{16:012d}"
        starts = [json.loads(p.read_text())["job"] for p in result_dir.glob(f".{name}.*.start")]
        assert len([job_id for job_id in starts if job_id]) == 1, "one job has evaluated it"
        assert (result_dir / f"{name}.json").exists()
    best = json.loads((run_dir / "evaluation" / "best.json").read_text())
    assert best["images_seen"] == 16
    assert os.listdir(run_dir / "evaluation").count("best.json") == 1


def hurry(run_dir: Path) -> None:
    """Let the next call of a series start at once, instead of after a minute."""
    for job_id, job in queued().items():
        if job.name == f"reconcile-{run_dir.name}" and job.reason == "BeginTime":
            subprocess.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now"], check=False)


def test_rank_0_has_its_snapshots_evaluated(cluster: Path, workflow_root: Path) -> None:
    run_dir = cluster / "scheduled"
    arguments = ("--reference", str(workflow_root / "reference.npz"), "--metrics", "fd:block4")
    quick = ScheduledProtocol(name="quick", words=(*arguments, "--seeds", "0-3"))
    write_schedule(run_dir, EvaluationSchedule(protocols=(quick,), resources=Resources(minutes=10)))
    short = ["total_images=16", "checkpoint.snapshot_every_images=8"]
    helpers.train(run_dir, *short, "objective.sampling.steps=2")
    results = [run_dir / "evaluation" / f"{images:012d}" / "quick.json" for images in (8, 16)]
    helpers.wait_for("the results", lambda: all(path.exists() for path in results), 200)
    helpers.wait_for("the queue to be empty", lambda: not queued(), 60)


KILLED = """
import os, signal, sys
from pathlib import Path
from slurm.site import read_site
from slurm.continuous_eval.reconcile import reconcile

def die(submission):
    os.kill(os.getpid(), signal.SIGKILL)

reconcile(Path(sys.argv[1]), read_site(), die)
"""
