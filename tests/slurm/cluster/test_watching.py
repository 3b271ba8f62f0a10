"""What is shown agrees with what Slurm says; what cannot run is rejected and not queued."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from slurm.__main__ import main
from slurm.jobs.records import JobDir
from slurm.slurm_cli import idle_nodes, queued
from tests.slurm.cluster import helpers

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SHORT = ["total_images=160", "checkpoint.snapshot_every_images=160"]


def _json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found[0]


def test_status_logs_and_history_agree_with_slurm(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = cluster / "watched"
    job_id = helpers.train(run_dir, *SHORT)
    helpers.wait_for_images(run_dir, 8)
    status = _json(["status", str(run_dir)], capsys)
    line = subprocess.run(
        ["squeue", "-h", "-j", job_id, "-o", "%T %N"], capture_output=True, text=True, check=True
    ).stdout.split()
    job = status["jobs"][0]  # type: ignore[index]
    assert [job["state"], job["nodes"]] == line
    assert 8 <= status["images_seen"] <= 160  # type: ignore[operator]
    assert "denoiser/loss" in status["losses"]  # type: ignore[operator]

    assert main(["logs", str(run_dir), "--follow"]) == 0  # ends with the job
    printed = capsys.readouterr().out
    assert "160/160 images (100%)" in printed
    assert {line[:3] for line in printed.splitlines()} == {"[0]", "[1]"}
    helpers.wait_for_end(job_id)

    history = _json(["history", str(run_dir)], capsys)
    fields = "JobID,State,ElapsedRaw"
    rows = subprocess.run(
        ["sacct", "-X", "-D", "-nP", "-j", job_id, "-o", fields], capture_output=True, text=True,
        check=True,
    ).stdout.splitlines()  # fmt: skip
    runs = history["runs"]
    assert ["|".join(run[f] for f in fields.split(",")) for run in runs] == rows  # type: ignore[attr-defined]
    assert history["requeues"] == 0
    assert 0 < history["goodput"] < 1  # type: ignore[operator]
    assert main(["status", str(cluster)]) == 0
    text = capsys.readouterr().out
    assert "160/160 images (100%)" in text
    assert f"train {job_id}" in text


def test_fewer_nodes_while_the_requested_ones_are_unavailable_and_more_later(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocker = subprocess.run(
        ["sbatch", "--parsable", "-N2", "--exclusive", "-o/dev/null", "--wrap=sleep 300"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    helpers.wait_for("the blocker", lambda: helpers.job(blocker).state == "RUNNING")
    run_dir = cluster / "elastic"
    fewer = ["--nodes=4", "--min-nodes=2", "--shrink-minutes=0"]
    job_id = helpers.train(run_dir, *SHORT, *fewer)
    helpers.wait_for(
        "Slurm to say why it is pending", lambda: helpers.job(job_id).reason == "Resources", 60
    )
    assert main(["reconcile", str(run_dir)]) == 0
    assert f"job {job_id} now waits for 2 nodes only" in capsys.readouterr().out
    helpers.wait_for("the start", lambda: helpers.starts(run_dir, job_id))
    subprocess.run(["scancel", blocker], check=True)
    helpers.wait_for_images(run_dir, 16)
    subprocess.run(["scancel", "--signal=USR2", job_id], check=True)
    helpers.wait_for("the requeue", lambda: helpers.job(job_id).state == "PENDING")
    helpers.wait_for("idle nodes", lambda: idle_nodes("main") == 4)
    assert main(["reconcile", str(run_dir)]) == 0
    assert f"job {job_id} now waits for 4 nodes again" in capsys.readouterr().out
    helpers.wait_for_end(job_id)
    attempts = JobDir(run_dir).attempts(job_id)
    assert [a["ranks"] for a in attempts if a["event"] == "start"] == [2, 4]
    assert helpers.states(job_id)[-1] == "COMPLETED"
    helpers.assert_no_orphans(run_dir)


def test_the_doctor_finds_nothing_bad(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--nodes=2", "--tasks-per-node=1", "--folder", str(cluster)]
    assert main(["doctor", *options]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "partitions: main (4 nodes), high (4 nodes)" in printed
    assert "rank 1 on" in printed
    assert "over 2 ranks" in printed
    assert "bad " not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--partition=nowhere"], "no partition 'nowhere'; known are main, high"),
        (["--account=nobody"], "no account 'nobody'; known are relaywave, root"),
        (["--nodes=8"], "--nodes=8: partition main has 4 nodes"),
        (["--time=3-0"], "partition main allows 2880 minutes"),
        (["--constraint=h100"], "Slurm would reject this job"),
        (["--mem=900G"], "Slurm would reject this job"),
        (["--run-dir=/var/tmp/run"], "compute nodes cannot see /var/tmp/run"),
        (["--name=$(reboot)"], "the job name '$(reboot)'"),
    ],
)
def test_what_slurm_cannot_run_is_not_queued(
    cluster: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = cluster / "rejected"
    arguments = [*helpers.TINY, *helpers.TWO_NODES, "--run-dir", str(run_dir)]
    assert main(["train", *arguments, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not queued()
    assert not run_dir.exists()
