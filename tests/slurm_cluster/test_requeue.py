"""Whatever Slurm does to a run, it ends with the weights of one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slurm.__main__ import main
from slurm.folder import JobFolder, images_saved
from slurm.queue import queued
from tests.slurm_cluster import helpers
from tests.test_dist_train_loop import whole_tensors

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def undisturbed(cluster: Path) -> dict[str, Tensor]:
    run_dir = cluster / "undisturbed"
    job_id = helpers.train(run_dir)
    helpers.wait_for_end(job_id)
    assert helpers.states(job_id) == ["COMPLETED"]
    assert helpers.starts(run_dir, job_id) == [0]
    log = (run_dir / "slurm" / "jobs" / f"{job_id}_0_log.out").read_text()
    assert "640/640 images (100%)" in log
    assert (run_dir / "snapshots" / f"{640:012d}" / "snapshot.json").exists()
    helpers.assert_no_orphans(run_dir)
    return whole_tensors(run_dir)


def assert_same(run_dir: Path, expected: dict[str, Tensor]) -> None:
    ours = whole_tensors(run_dir)
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(ours[name], values), name
    assert [line["images_seen"] for line in helpers.read_lines(run_dir / "metrics.jsonl")] == [
        *range(8, 641, 8)
    ]
    helpers.assert_no_orphans(run_dir)


def test_time_limit_and_a_lost_controller(cluster: Path, undisturbed: dict[str, Tensor]) -> None:
    run_dir = cluster / "signalled"
    job_id = helpers.train(run_dir)
    helpers.wait_for_images(run_dir, 120)
    subprocess.run(["scancel", "--signal=USR2", job_id], check=True)  # as before a time limit
    helpers.wait_for("the requeue", lambda: len(helpers.starts(run_dir, job_id)) == 2)
    assert helpers.starts(run_dir, job_id)[1] >= 120, "saved at the step of the signal"

    helpers.wait_for_images(run_dir, 320)
    os.kill(helpers.daemon_pid(cluster, "slurmctld"), signal.SIGKILL)
    for pid in helpers.rank_pids(run_dir).values():  # asked to stop while nobody can requeue it
        os.kill(pid, signal.SIGUSR2)
    helpers.wait_for("the state to be saved", lambda: images_saved(run_dir) >= 320)
    subprocess.run([Path(__file__).parent / "up", cluster / "slurm"], check=True)
    helpers.wait_for_end(job_id)
    assert len(helpers.starts(run_dir, job_id)) == 3
    assert helpers.starts(run_dir, job_id)[2] >= 320
    assert helpers.states(job_id)[-1] == "COMPLETED"
    assert_same(run_dir, undisturbed)


def test_preemption_a_killed_rank_and_cancelling(
    cluster: Path, undisturbed: dict[str, Tensor]
) -> None:
    run_dir = cluster / "disturbed"
    job_id = helpers.train(run_dir)
    helpers.wait_for_images(run_dir, 104)
    subprocess.run(
        ["sbatch", "-p", "high", "-N4", "--exclusive", "-o/dev/null", "--wrap=sleep 1"], check=True
    )
    helpers.wait_for("the preemption", lambda: len(helpers.starts(run_dir, job_id)) == 2)
    assert "PREEMPTED" in helpers.states(job_id)
    assert helpers.starts(run_dir, job_id)[1] >= 104, "saved at the step of the preemption"

    helpers.wait_for_images(run_dir, 264)
    os.kill(helpers.rank_pids(run_dir)[1], signal.SIGKILL)
    helpers.wait_for("the restart", lambda: len(helpers.starts(run_dir, job_id)) == 3)
    assert helpers.starts(run_dir, job_id)[2] >= 240, "a checkpoint each 80 images"
    crash = [a for a in JobFolder(run_dir).attempts(job_id) if a["event"] == "crash"]
    assert [(a["requeue"], a["why"]) for a in crash] == [(True, "it crashed")]

    helpers.wait_for_images(run_dir, 424)
    assert main(["cancel", str(run_dir)]) == 0
    helpers.wait_for_end(job_id)
    assert helpers.states(job_id)[-1] == "CANCELLED"
    assert images_saved(run_dir) >= 424, "saved although it was cancelled"
    helpers.assert_no_orphans(run_dir)

    assert main(["resume", str(run_dir)]) == 0
    resumed = helpers.last_job(run_dir)
    assert resumed != job_id
    helpers.wait_for_end(resumed)
    assert helpers.states(resumed) == ["COMPLETED"]
    assert_same(run_dir, undisturbed)


def test_a_lost_node(cluster: Path, undisturbed: dict[str, Tensor]) -> None:
    run_dir = cluster / "node_lost"
    job_id = helpers.train(run_dir)
    helpers.wait_for_images(run_dir, 104)
    frozen = helpers.processes_of_node(cluster, "n2")  # as after a power cut: no answer at all
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        helpers.wait_for(
            "the requeue onto other nodes",
            lambda: len(helpers.starts(run_dir, job_id)) == 2,
        )
        assert "NODE_FAIL" in helpers.states(job_id)
        second = [a for a in JobFolder(run_dir).attempts(job_id) if a["event"] == "start"][1]
        assert "n2" not in second["hosts"]
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)
    subprocess.run([Path(__file__).parent / "up", cluster / "slurm"], check=True)
    helpers.wait_for_end(job_id)
    assert not queued([job_id])
    assert_same(run_dir, undisturbed)
