"""Whatever Slurm does to a run, it ends with the weights of an undisturbed one.

The runs are disturbed at the same time, each by a scenario; then each is compared. One that has to
wait until its time is up is stopped (SIGSTOP), as if its steps took long; Slurm's signal wakes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dist_train.runtime.metrics_file import read_metrics
from slurm.__main__ import main
from slurm.jobs.records import JobDir, images_saved
from slurm.jobs.requeue import LOST, history
from slurm.monitor.status import format_status, queue_or_empty, run_status
from slurm.slurm_cli import describe, queued, under_maintenance
from tests.dist_train.test_trainer import whole_tensors
from tests.slurm.cluster import containers, helpers
from tests.slurm.cluster.helpers import Scenario

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


@pytest.fixture(scope="module")
def disturbed(cluster: Path, undisturbed: dict[str, Tensor]) -> Path:
    """Disturb runs in every way; returns their parent directory."""
    late = (cluster / "site.toml").read_text().replace("signal_seconds = 20", "signal_seconds = 5")
    (cluster / "late.toml").write_text(late)
    try:
        helpers.run_together(
            a_time_limit_before_a_maintenance(cluster),
            a_time_limit(cluster),
            signals_preemption_a_killed_rank_and_cancelling(cluster),
        )
        helpers.run_together(
            a_run_in_apptainer(cluster),
            a_run_in_pyxis(cluster),
            a_run_where_nodes_cannot_requeue(cluster),
        )
        helpers.run_together(a_lost_controller(cluster))
        helpers.run_together(a_lost_node(cluster))
        helpers.run_together(a_maintenance_that_begins_under_a_run(cluster))
        with helpers.gang_scheduling(cluster):
            helpers.run_together(a_run_under_gang_scheduling(cluster), an_unfit_node(cluster))
    except BaseException:  # what comes after shall not have to wait
        subprocess.run(["scancel", "--user=root"], check=False)
        raise
    finally:
        helpers.end_reservation("maintenance")
        helpers.end_reservation("overtaking")
        mode = ["scontrol", "update", "partitionname=main", "preemptmode=requeue", "gracetime=0"]
        subprocess.run(mode, check=False)
    return cluster


def a_time_limit_before_a_maintenance(cluster: Path) -> Scenario:
    """Slurm shortens the time limit before a reservation, and sends its signal ahead of it."""
    run_dir = cluster / "maintenance"
    helpers.reserve("maintenance", "n3,n4", start="now+300")
    first = helpers.train(run_dir, "--nodelist=n3,n4")
    yield "the reservation to be seen", lambda: "reserv" in helpers.job(first).reason
    shown = format_status(run_status(run_dir, queued()))
    assert "or before with a --time or --time-min that ends sooner" in shown
    assert main(["cancel", str(run_dir)]) == 0
    yield "the job to be gone", lambda: not queued([first])

    site = str(cluster / "late.toml")
    helpers.reschedule("maintenance", start="now+175")  # one start of two minutes fits before it
    assert main(["resume", str(run_dir), "--time-min=2", "--site", site]) == 0
    job_id = helpers.last_job(run_dir)
    yield helpers.reaches(run_dir, 120)
    assert describe(job_id)["TimeLimit"] == "00:02:00", "it ends before the maintenance"
    with helpers.frozen(helpers.rank_pids(run_dir).values()):
        yield "Slurm's signal", lambda: helpers.job(job_id).state != "RUNNING"
    yield "the requeue", lambda: "ReqNodeNotAvail" in helpers.job(job_id).reason
    assert images_saved(run_dir) >= 120, "saved at the step of the signal"
    assert describe(job_id)["TimeLimit"] == "00:10:00", "the full time again"
    helpers.assert_no_orphans(run_dir)

    helpers.end_reservation("maintenance")
    yield "the next start", lambda: len(helpers.starts(run_dir, job_id)) == 2
    assert helpers.starts(run_dir, job_id)[1] >= 120
    yield f"job {job_id} to end", lambda: not queued([job_id])


def a_time_limit(cluster: Path) -> Scenario:
    """Let Slurm's signal ahead of the limit come."""
    run_dir = cluster / "time_limit"
    options = ["--nodelist=n3,n4", "--time=2", "--site", str(cluster / "late.toml")]
    job_id = helpers.train(run_dir, *options)
    yield helpers.reaches(run_dir, 120)
    with helpers.frozen(helpers.rank_pids(run_dir).values()):
        yield "Slurm's signal", lambda: helpers.job(job_id).state != "RUNNING"
    yield "the next start", lambda: len(helpers.starts(run_dir, job_id)) == 2
    assert helpers.starts(run_dir, job_id)[1] >= 120, "saved at the step of the signal"
    yield f"job {job_id} to end", lambda: not queued([job_id])


def a_lost_controller(cluster: Path) -> Scenario:
    """Ask a run to stop while slurmctld is down; alone, as that loses the jobs of others."""
    run_dir = cluster / "lost_controller"
    job_id = helpers.train(run_dir)
    yield helpers.reaches(run_dir, 320)
    os.kill(helpers.daemon_pid(cluster, "slurmctld"), signal.SIGKILL)
    for pid in helpers.rank_pids(run_dir).values():
        os.kill(pid, signal.SIGUSR2)
    yield "the state to be saved", lambda: images_saved(run_dir) >= 320
    helpers.restart_daemons(cluster)  # it may know the reservation again that was deleted
    helpers.end_reservation("maintenance")
    yield f"job {job_id} to end", lambda: not queued([job_id])
    assert len(helpers.starts(run_dir, job_id)) == 2
    assert helpers.starts(run_dir, job_id)[1] >= 320


def a_run_under_gang_scheduling(cluster: Path) -> Scenario:
    """Suspended for another job, the same start continues; ended for one, it is requeued."""
    run_dir = cluster / "gang"
    mode = ["scontrol", "update", "partitionname=main"]
    urgent = ["sbatch", "-p", "high", "-w", "n2", "--exclusive", "-o/dev/null"]
    subprocess.run([*mode, "preemptmode=suspend"], check=True)
    job_id = helpers.train(run_dir, "--nodelist=n1,n2")
    yield helpers.reaches(run_dir, 120)
    subprocess.run([*urgent, "--wrap=sleep 5"], check=True)
    yield "the suspension", lambda: helpers.job(job_id).state == "SUSPENDED"
    assert "SUSPENDED" in format_status(run_status(run_dir, queue_or_empty()))
    yield "the end of the other job", lambda: helpers.job(job_id).state == "RUNNING"

    yield helpers.reaches(run_dir, 200)
    assert len(helpers.starts(run_dir, job_id)) == 1
    subprocess.run([*mode, "preemptmode=cancel"], check=True)
    subprocess.run([*urgent, "--wrap=sleep 1"], check=True)
    yield "the preemption", lambda: len(helpers.starts(run_dir, job_id)) == 2
    assert helpers.starts(run_dir, job_id)[1] >= 200, "saved at the step of the preemption"
    [end] = [a for a in JobDir(run_dir).attempts(job_id) if a["event"] == "signal"]
    assert end["cause"] == "preemption"
    yield f"job {job_id} to end", lambda: not queued([job_id])


def an_unfit_node(cluster: Path) -> Scenario:
    """A node whose scratch cannot be written; the job is requeued onto others before it starts."""
    run_dir, site = cluster / "unfit_node", cluster / "checked.toml"
    text = (cluster / "site.toml").read_text()
    scratch = f"{cluster}/scratch-$SLURMD_NODENAME"
    site.write_text(f'scratch = "{scratch}"\nhealth_check = "always"\n{text}')
    (cluster / "scratch-n3").touch()  # a file where a directory is to be
    job_id = helpers.train(run_dir, "--exclude=n2", f"--site={site}", "--nodes=2")
    yield "the start on others", lambda: helpers.starts(run_dir, job_id)
    notes = JobDir(run_dir).attempts(job_id)
    crash = next(note for note in notes if note["event"] == "crash")
    assert crash["hosts"] == ["n3"]
    assert "scratch" in crash["said"]
    start = next(note for note in notes if note["event"] == "start")
    assert start["hosts"] == ["n1", "n4"]
    assert "excluded: n3" in format_status(run_status(run_dir, queue_or_empty()))
    yield f"job {job_id} to end", lambda: not queued([job_id])


def signals_preemption_a_killed_rank_and_cancelling(cluster: Path) -> Scenario:
    """Disturb one run in four ways, one after the other."""
    run_dir = cluster / "disturbed"
    job_id = helpers.train(run_dir, "--nodelist=n1,n2")
    yield helpers.reaches(run_dir, 80)
    subprocess.run(["scancel", "--signal=USR2", job_id], check=True)
    yield "the requeue", lambda: len(helpers.starts(run_dir, job_id)) == 2
    assert helpers.starts(run_dir, job_id)[1] >= 80, "saved at the step of the signal"

    yield helpers.reaches(run_dir, 200)
    urgent = ["sbatch", "-p", "high", "-w", "n1,n2", "--exclusive", "-o/dev/null"]
    subprocess.run([*urgent, "--wrap=sleep 1"], check=True)
    yield "the preemption", lambda: len(helpers.starts(run_dir, job_id)) == 3
    assert "PREEMPTED" in helpers.states(job_id)
    assert helpers.starts(run_dir, job_id)[2] >= 200, "saved at the step of the preemption"

    yield helpers.reaches(run_dir, 344)
    killed = helpers.rank_pids(run_dir)
    os.kill(killed[1], signal.SIGKILL)
    yield "the restart", lambda: len(helpers.starts(run_dir, job_id)) == 4
    assert not helpers.alive(killed.values()), "the other rank ends too"
    assert helpers.starts(run_dir, job_id)[3] >= 320, "a checkpoint each 80 images"
    crash = [a for a in JobDir(run_dir).attempts(job_id) if a["event"] == "crash"]
    assert [(a["requeue"], a["why"]) for a in crash] == [(True, "it crashed")]

    yield helpers.reaches(run_dir, 456)
    assert main(["cancel", str(run_dir)]) == 0
    yield "the end", lambda: not queued([job_id])
    assert images_saved(run_dir) >= 456, "saved although it was cancelled"
    helpers.assert_no_orphans(run_dir)
    assert main(["resume", str(run_dir)]) == 0
    resumed = helpers.last_job(run_dir)
    assert resumed != job_id
    yield f"job {resumed} to end", lambda: not queued([resumed])


def a_run_in_apptainer(cluster: Path) -> Scenario:
    """Its tasks have none of Slurm's commands; the partition cancels what it preempts."""
    run_dir, site = cluster / "apptainer", containers.make_site(cluster, "apptainer")
    with containers.on_path(cluster):
        job_id = helpers.train(run_dir, "--nodelist=n1,n2", f"--site={site}")
    yield helpers.reaches(run_dir, 80)
    subprocess.run(["scancel", "--signal=USR2", job_id], check=True)
    yield "the requeue", lambda: len(helpers.starts(run_dir, job_id)) == 2
    assert helpers.starts(run_dir, job_id)[1] >= 80, "saved at the step of the signal"

    yield helpers.reaches(run_dir, 200)
    mode = ["scontrol", "update", "partitionname=main"]
    subprocess.run([*mode, "preemptmode=cancel", "gracetime=60"], check=True)
    urgent = ["sbatch", "-p", "high", "-w", "n1,n2", "--exclusive", "-o/dev/null"]
    subprocess.run([*urgent, "--wrap=sleep 1"], check=True)
    yield "the preemption", lambda: len(helpers.starts(run_dir, job_id)) == 3
    subprocess.run([*mode, "preemptmode=requeue", "gracetime=0"], check=True)
    assert helpers.starts(run_dir, job_id)[2] >= 200, "saved at the step of the preemption"

    yield helpers.reaches(run_dir, 344)
    os.kill(helpers.rank_pids(run_dir)[1], signal.SIGKILL)
    yield "the restart", lambda: len(helpers.starts(run_dir, job_id)) == 4
    ends = [a for a in JobDir(run_dir).attempts(job_id) if a["event"] in ("signal", "crash")]
    assert [end["cause"] for end in ends] == ["signal", "preemption", "crash"]
    assert containers.commands_inside(cluster) == {"none"}
    yield f"job {job_id} to end", lambda: not queued([job_id])


def a_run_in_pyxis(cluster: Path) -> Scenario:
    """The same for containers that srun starts; snapshots are evaluated from outside."""
    run_dir, site = cluster / "pyxis", containers.make_site(cluster, "pyxis")
    with containers.on_path(cluster):
        job_id = helpers.train(run_dir, "--nodelist=n3,n4", f"--site={site}")
    yield helpers.reaches(run_dir, 80)
    subprocess.run(["scancel", "--signal=USR2", job_id], check=True)
    yield "the requeue", lambda: len(helpers.starts(run_dir, job_id)) == 2
    assert helpers.starts(run_dir, job_id)[1] >= 80, "saved at the step of the signal"
    yield f"job {job_id} to end", lambda: not queued([job_id])
    assert containers.commands_inside(cluster) == {"none"}


def a_run_where_nodes_cannot_requeue(cluster: Path) -> Scenario:
    """A login node submits again what a node could not requeue, once."""
    run_dir, site = cluster / "lost_job", containers.make_site(cluster, "without_scontrol")
    first = helpers.train(run_dir, "--nodelist=n3,n4", f"--site={site}")
    yield helpers.reaches(run_dir, 80)
    subprocess.run(["scancel", "--signal=USR2", first], check=True)
    yield "the end of the job", lambda: not queued([first])
    assert images_saved(run_dir) >= 80
    assert JobDir(run_dir).attempts(first)[-1]["event"] == LOST
    for _ in range(2):
        assert main(["reconcile", str(run_dir), f"--site={cluster / 'site.toml'}"]) == 0
    records = [r for r in JobDir(run_dir).records() if r.kind == "train"]
    assert len(records) == 2
    second = records[1].job_id
    yield f"job {second} to end", lambda: not queued([second])
    assert history(JobDir(run_dir), second)[0]["job"] == first


def a_lost_node(cluster: Path) -> Scenario:
    """Stop all that runs on a node, as after a power cut: no answer at all."""
    run_dir = cluster / "lost_node"
    job_id = helpers.train(run_dir)
    yield helpers.reaches(run_dir, 104)
    lost = helpers.processes_of_node(cluster, "n2")
    with helpers.frozen(lost, thaw=signal.SIGKILL):
        yield "the requeue onto others", lambda: len(helpers.starts(run_dir, job_id)) == 2
        assert "NODE_FAIL" in helpers.states(job_id)
        second = [a for a in JobDir(run_dir).attempts(job_id) if a["event"] == "start"][1]
        assert "n2" not in second["hosts"]
    yield "the end of all that was on it", lambda: not helpers.alive(lost)
    helpers.restart_daemons(cluster)
    yield f"job {job_id} to end", lambda: not queued([job_id])


def a_maintenance_that_begins_under_a_run(cluster: Path) -> Scenario:
    """Slurm leaves the run alone until an administrator takes a node down."""
    run_dir = cluster / "overtaken"
    job_id = helpers.train(run_dir, "--nodelist=n3,n4")
    yield helpers.reaches(run_dir, 80)
    with helpers.frozen(helpers.rank_pids(run_dir).values()):  # else it may be done before
        seen = helpers.images(run_dir)
        helpers.reserve("overtaking", "n3,n4", start="now")
        yield "the maintenance", lambda: job_id in under_maintenance()
        shown = format_status(run_status(run_dir, queue_or_empty()))
        assert "RUNNING (MaintenanceHasBegun)" in shown
        assert "saves and requeues it now" in shown
    yield helpers.reaches(run_dir, seen + 16)
    down = ["scontrol", "update", "nodename=n3"]
    subprocess.run([*down, "state=down", "reason=maintenance"], check=True)
    yield "the requeue", lambda: helpers.job(job_id).state == "PENDING"
    helpers.assert_no_orphans(run_dir)
    assert images_saved(run_dir) >= seen + 16, "saved at the step when the node was taken"
    helpers.end_reservation("overtaking")
    subprocess.run([*down, "state=resume"], check=False)  # it may have come back by itself
    yield "the next start", lambda: len(helpers.starts(run_dir, job_id)) == 2
    assert "NODE_FAIL" in helpers.states(job_id)
    yield f"job {job_id} to end", lambda: not queued([job_id])


@pytest.mark.parametrize(
    "name",
    [
        "maintenance",
        "time_limit",
        "lost_controller",
        "gang",
        "unfit_node",
        "disturbed",
        "apptainer",
        "pyxis",
        "lost_job",
        "lost_node",
        "overtaken",
    ],
)
def test_a_disturbed_run_ends_as_an_undisturbed_one(
    disturbed: Path, undisturbed: dict[str, Tensor], name: str
) -> None:
    run_dir = disturbed / name
    job_id = helpers.last_job(run_dir)
    helpers.wait_for_end(job_id)
    assert helpers.states(job_id)[-1] == "COMPLETED"
    assert "TIMEOUT" not in helpers.states(job_id)
    seen = [line["images_seen"] for line in read_metrics(run_dir)]
    assert seen == [*range(8, 641, 8)], "nothing lost, nothing twice"
    ours = whole_tensors(run_dir)
    assert ours.keys() == undisturbed.keys()
    for tensor, values in undisturbed.items():
        assert torch.equal(ours[tensor], values), tensor
    helpers.assert_no_orphans(run_dir)
