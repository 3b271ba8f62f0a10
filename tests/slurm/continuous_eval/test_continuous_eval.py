"""Scheduled evaluation without Slurm: what is due, best snapshots, early stop, pruning."""

from __future__ import annotations

import errno
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.config_io import ConfigError, override, write_config
from models.safe_files import locks
from models.safe_files.locks import try_lock
from slurm.continuous_eval import lost_jobs, results
from slurm.continuous_eval import reconcile as module
from slurm.continuous_eval.lost_jobs import claim_lost, note_successor
from slurm.continuous_eval.panels import log_results
from slurm.continuous_eval.reconcile import ReconcileJob, reconcile
from slurm.continuous_eval.schedule import (
    EvaluationSchedule,
    ScheduledProtocol,
    read_schedule,
    write_schedule,
)
from slurm.jobs.jobs import STOP, TrainJob
from slurm.jobs.ranks import Task
from slurm.jobs.records import JobDir, JobRecord
from slurm.jobs.requeue import CONTINUES, LOST, history
from slurm.resources import Policy, Resources
from slurm.site import Site
from slurm.slurm_cli import QueuedJob
from slurm.submit import elastic
from slurm.submit.code_copy import copy_code
from slurm.submit.launcher import Submission
from tests.tiny import tiny_edm

KEY = "quick:fd.distance"


class Queue:
    """Slurm's queue: what was submitted stays until a test ends it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: dict[str, Any] = {}
        self.submissions: list[Submission] = []
        monkeypatch.setattr(module, "queued", lambda ids=None: dict(self.jobs) if not ids else {})

    def submit(self, submission: Submission) -> JobRecord:
        self.submissions.append(submission)
        record = JobRecord(
            job_id=str(len(self.submissions)), kind="eval", name=submission.name, cluster="slurm",
            submitted=0.0, cwd="", code="", logs="", resources=submission.resources,
            tasks=tuple(job.title for job in submission.jobs),
        )  # fmt: skip
        self.jobs |= {
            job_id: QueuedJob(job_id, record.name, "PENDING", "", "", "", "", "")
            for job_id in record.task_ids
        }
        return record


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    return Queue(monkeypatch)


def _run(root: Path, snapshots: tuple[int, ...], **settings: Any) -> Path:
    (root / "config.json").write_text('{"total_images": 400}')
    for images in snapshots:
        snapshot = root / "snapshots" / f"{images:012d}"
        snapshot.mkdir(parents=True)
        (snapshot / "snapshot.json").touch()
    protocols = (
        ScheduledProtocol(name="quick", words=("--reference", "r.npz")),
        ScheduledProtocol(name="full", words=("--reference", "r.npz"), every_images=200),
    )
    write_schedule(root, EvaluationSchedule(protocols=protocols, **settings))
    return root


def _finish(run_dir: Path, images: int, protocol: str, distance: float) -> None:
    result_dir = run_dir / "evaluation" / f"{images:012d}"
    result_dir.mkdir(parents=True, exist_ok=True)
    result = {"metrics": {"fd": {"values": {"distance": distance}}}}
    (result_dir / f"{protocol}.json").write_text(json.dumps(result))


def test_due_evaluations_are_submitted_once_as_one_array(tmp_path: Path, queue: Queue) -> None:
    run_dir = _run(tmp_path, (0, 100, 200, 400))
    report = reconcile(run_dir, Site(evaluation_partition="cheap"), queue.submit)
    assert report.wanted == 5, (
        "quick of 100, 200, 400 and full of 200, 400; never the untrained one"
    )
    assert len(report.submitted) == 5
    assert len(queue.submissions) == 1
    assert queue.submissions[0].resources.partition == "cheap"
    assert queue.submissions[0].resources.nice > 0
    again = reconcile(run_dir, Site(), queue.submit)
    assert (again.alive, again.submitted) == (5, [])


def test_failures_are_retried_and_then_reported(tmp_path: Path, queue: Queue) -> None:
    run_dir = _run(tmp_path, (100,), max_attempts=2, backoff_seconds=0.0)
    for _ in range(2):
        assert len(reconcile(run_dir, Site(), queue.submit).submitted) == 1
        queue.jobs.clear()
    report = reconcile(run_dir, Site(), queue.submit)
    assert report.submitted == []
    assert "GIVEN UP: quick of" in str(report)
    assert "tried 2 times, last as 2" in str(report) or "tried 2 times" in str(report)


@pytest.mark.parametrize(
    ("notes", "counts"),
    [
        ([("end", {"code": 75, "state": "PREEMPTED"})], False),
        ([("signal", {"cause": "time limit"}), (LOST, {"saved": 1})], False),
        ([("signal", {"cause": "time limit"}), (LOST, {"saved": 0})], True),
        ([("end", {"code": 75, "state": "CANCELLED"})], True),
        ([("end", {"code": 2})], True),
        ([], True),
    ],
)
def test_what_ends_by_preemption_is_no_failed_attempt(
    notes: list[tuple[str, dict[str, Any]]], counts: bool, tmp_path: Path, queue: Queue
) -> None:
    run_dir = _run(tmp_path, (100,), max_attempts=2, backoff_seconds=0.0)
    for number in range(4):
        submitted = reconcile(run_dir, Site(), queue.submit).submitted
        assert bool(submitted) is (number < 2 or not counts), number
        for event, facts in notes:
            JobDir(run_dir).note(str(number + 1), event, restart=0, **facts)
        queue.jobs.clear()


def _lose(run_dir: Path, job_id: str = "5", account: str = "", **facts: Any) -> None:
    """Record a training job that its node could not requeue."""
    code = copy_code(run_dir / "slurm")
    jobs = JobDir(run_dir)
    jobs.write(
        JobRecord(job_id=job_id, kind="train", name="run", cluster="slurm", submitted=1.0,
                  cwd=str(run_dir), code=str(code), logs="", policy=Policy(max_stalled=3),
                  resources=Resources(nodes=2, dependency="afterok:1", begin="now+1",
                                      account=account))
    )  # fmt: skip
    jobs.note(job_id, "start", restart=0, images_seen=0, ranks=2)
    jobs.note(job_id, "signal", restart=0, cause="time limit", images_seen=0, requeue=True)
    jobs.note(job_id, LOST, restart=0, code=75, why="scontrol is not on this machine", **facts)


def test_a_job_that_its_node_could_not_requeue_is_submitted_again_once(
    tmp_path: Path, queue: Queue
) -> None:
    (tmp_path / "config.json").write_text('{"total_images": 400}')
    _lose(tmp_path, delay=600)
    queue.submissions += [None] * 8  # type: ignore[list-item]  # so that its number is above 5
    for _ in range(3):
        module.maintain(tmp_path, Site(), queue.submit)
    [submission] = queue.submissions[8:]
    assert submission.resources.nodes == 2
    assert submission.resources.dependency == ""
    assert 0 < int(submission.resources.begin.removeprefix("now+")) <= 600, "the rest of its delay"
    assert submission.jobs[0] == TrainJob(tmp_path, Policy(max_stalled=3))
    assert [note["event"] for note in history(JobDir(tmp_path), "9")] == [
        "start",
        "signal",
        LOST,
        CONTINUES,
    ]


@pytest.mark.parametrize("reason", ["queued", "stopped", "trained", "other end"])
def test_only_what_is_lost_is_submitted_again(reason: str, tmp_path: Path, queue: Queue) -> None:
    run_dir = _run(tmp_path, ())
    _lose(run_dir)
    if reason == "queued":
        queue.jobs["5"] = QueuedJob("5", "run", "COMPLETING", "", "", "", "", "")
    elif reason == "stopped":
        (run_dir / "slurm" / STOP).write_text("{}")
    elif reason == "trained":
        (run_dir / "snapshots" / f"{400:012d}").mkdir(parents=True)
        (run_dir / "snapshots" / f"{400:012d}" / "snapshot.json").touch()
    else:
        JobDir(run_dir).note("5", "exit", restart=1, rank=0, code=3)
    module.maintain(run_dir, Site(), queue.submit)
    assert not [s for s in queue.submissions if s.kind == "train"]


@pytest.mark.parametrize(
    ("state", "again"), [("FAILED", True), ("PREEMPTED", True), ("CANCELLED", False), ("", False)]
)
def test_a_job_whose_batch_script_was_killed_is_told_from_a_cancelled_one(
    state: str, again: bool, tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has been killed so often that nothing new is saved."""
    run_dir, submitted = _run(tmp_path, ()), []
    monkeypatch.setattr(
        lost_jobs, "exit_states", lambda records: {r.job_id: (state, "") for r in records}
    )
    _lose(run_dir)
    for number in range(4):
        newest = JobDir(run_dir).records()[-1].job_id
        if number:
            JobDir(run_dir).note(newest, "start", restart=0, images_seen=0, ranks=2)
        claimed = claim_lost(run_dir, {}, Site())
        submitted.append(claimed is not None)
        if claimed is not None:
            record = replace(claimed[0], job_id=str(6 + number), submitted=2.0 + number)
            JobDir(run_dir).write(record)
            note_successor(run_dir, claimed[0], record)
    assert submitted == [True, again, False, False], "with max_stalled=3 and the first time limit"


def test_callers_at_once_submit_one_successor_of_a_lost_job(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"total_images": 400}')
    _lose(tmp_path)
    claimed: list[object] = []
    callers = [
        threading.Thread(target=lambda: claimed.append(claim_lost(tmp_path, {}, Site())))
        for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sum(claim is not None for claim in claimed) == 1


def test_a_requeued_link_of_a_series_submits_no_second_successor(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "maintain", lambda run_dir, site: ["done"])
    monkeypatch.setattr(module, "submit", queue.submit)
    job = ReconcileJob((tmp_path,), 30, Site(), Resources(), "reconcile-run")
    own = Task(0, 0, 1, ("n1",), "12", 0)
    queue.jobs["12"] = QueuedJob("12", job.name, "RUNNING", "", "", "", "", "")
    job._submit_and_maintain(own)
    assert len(queue.submissions) == 1
    job._submit_and_maintain(replace(own, restart=1))
    assert len(queue.submissions) == 1, "the first start has submitted it"


def test_failures_are_retried_after_a_delay(tmp_path: Path, queue: Queue) -> None:
    run_dir = _run(tmp_path, (100,), backoff_seconds=1000.0)
    reconcile(run_dir, Site(), queue.submit)
    queue.jobs.clear()
    report = reconcile(run_dir, Site(), queue.submit)
    assert (report.waiting, report.submitted) == (1, [])


def test_the_best_is_marked_and_training_is_stopped(tmp_path: Path, queue: Queue) -> None:
    run_dir = _run(tmp_path, (100, 150, 250), best=KEY, patience=2)
    (run_dir / "slurm").mkdir()
    for images, distance in ((100, 3.0), (150, 4.0)):
        _finish(run_dir, images, "quick", distance)
    assert reconcile(run_dir, Site(), queue.submit).best == 100
    assert not (run_dir / "slurm" / STOP).exists()
    _finish(run_dir, 250, "quick", 5.0)
    reconcile(run_dir, Site(), queue.submit)
    stop = json.loads((run_dir / "slurm" / STOP).read_text())
    assert stop["why"] == "2 snapshots after the one at 100 images were not better"
    assert json.loads((run_dir / "evaluation" / "best.json").read_text())["value"] == 3.0
    job = ReconcileJob((run_dir,), 5, Site(), Resources(), "watch")
    assert job.finished()


def _of_another(job_id: str) -> QueuedJob:
    """Return a job that has got an id of ours, after slurmctld had lost its state."""
    return QueuedJob(job_id, "another", "PENDING", "Resources", "", "", "", "", submitted=2e9)


@pytest.mark.parametrize("is_ours", [True, False])
def test_training_is_stopped_by_cancelling_its_own_jobs_only(
    is_ours: bool, tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, commands = _run(tmp_path, (100, 150), best=KEY, patience=1), list[list[str]]()
    _lose(run_dir)
    monkeypatch.setattr(results, "run_slurm", commands.append)
    job = replace(_of_another("5"), name="run") if is_ours else _of_another("5")
    monkeypatch.setattr(results, "queued", lambda job_ids: {"5": job})
    for images, distance in ((100, 3.0), (150, 4.0)):
        _finish(run_dir, images, "quick", distance)
    reconcile(run_dir, Site(), queue.submit)
    assert commands == ([["scancel", "5"]] if is_ours else [])


def test_an_attempt_is_not_alive_by_a_job_of_another_that_has_its_id(
    tmp_path: Path, queue: Queue
) -> None:
    run_dir = _run(tmp_path, (100,), backoff_seconds=0.0)

    def submit(submission: Submission) -> JobRecord:
        record = queue.submit(submission)
        JobDir(run_dir).write(record)
        return record

    assert reconcile(run_dir, Site(), submit).submitted
    assert reconcile(run_dir, Site(), submit).alive == 1
    queue.jobs = {job_id: _of_another(job_id) for job_id in queue.jobs}
    assert reconcile(run_dir, Site(), submit).submitted, "the first attempt has ended"


@pytest.mark.parametrize(
    ("scheduled", "shell", "account", "partition"),
    [
        ("", "", "training", "cheap"),
        ("", "mine", "mine", "mine"),
        ("plan", "mine", "plan", "plan"),
        ("plan", "", "plan", "plan"),
    ],
)
def test_evaluations_are_charged_as_scheduled_or_as_the_shell_says_or_as_the_run(
    scheduled: str, shell: str, account: str, partition: str,
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    resources = Resources(account=scheduled, partition=scheduled, gpus_per_node=2)
    run_dir = _run(tmp_path, (100,), resources=resources)
    _lose(run_dir, account="training")
    if shell:
        for name in ("ACCOUNT", "PARTITION"):
            monkeypatch.setenv(f"SBATCH_{name}", shell)
        monkeypatch.setenv("SBATCH_GPUS_PER_NODE", "8")
    reconcile(run_dir, Site(account="site", evaluation_partition="cheap"), queue.submit)
    [submission] = queue.submissions
    asked = submission.resources
    assert (asked.account, asked.partition, asked.gpus_per_node) == (account, partition, 2)


def test_snapshots_are_pinned_until_they_are_evaluated(tmp_path: Path, queue: Queue) -> None:
    run_dir = _run(tmp_path, (50, 100, 150, 200, 250, 300), best=KEY, keep_snapshots=1)
    for images, distance in ((50, 1.0), (100, 2.0), (200, 2.0)):
        _finish(run_dir, images, "quick", distance)
    reconcile(run_dir, Site(), queue.submit)
    left = [int(path.name) for path in sorted((run_dir / "snapshots").iterdir())]
    assert left == [50, 150, 200, 250, 300], "the best, missing results, milestones, the newest"


def test_results_go_to_loggers_once_by_images_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[dict[str, float]] = []

    def no_locks(file: object, kind: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    class Logger:
        def write(self, line: dict[str, float]) -> None:
            written.append(line)

        def close(self) -> None:
            written.append({})

    monkeypatch.setattr(
        "dist_train.monitoring.loggers.start_loggers", lambda logging, config, log_dir: [Logger()]
    )
    write_config(override(tiny_edm(), ["logging.wandb_project=p"]), tmp_path / "config.json")
    for images in (200, 100):
        _finish(tmp_path, images, "quick", float(images))
    assert log_results(tmp_path) == 2
    assert log_results(tmp_path) == 0
    _finish(tmp_path, 300, "quick", 1.0)
    with open(tmp_path / "loggers.lock", "a") as held:
        assert try_lock(held)
        assert log_results(tmp_path) == 0, "its holder sends them"
    with monkeypatch.context() as patch:
        patch.setattr(locks.fcntl, "flock", no_locks)
        assert log_results(tmp_path) == 1
    assert [line.get("images_seen") for line in written] == [100, 200, None, 300, None]
    assert written[0]["quick/fd.distance"] == 100.0
    write_config(tiny_edm(), tmp_path / "config.json")
    assert log_results(tmp_path) == 0, "the run has no logger"


def test_a_job_that_stays_pending_shrinks_to_fewer_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_edm(), global_batch_size=8)
    counts = elastic.node_counts(config, Resources(nodes=8, tasks_per_node=1), 1)
    assert counts == (4, 2, 1), "the numbers that divide the batch"
    with pytest.raises(ValueError, match="must be positive and below 8"):
        elastic.node_counts(config, Resources(nodes=8), 8)
    requested = Resources(nodes=8, fallback_nodes=counts, shrink_minutes=60)
    jobs = JobDir(tmp_path)
    jobs.write(
        JobRecord(job_id="7", kind="train", name="x", cluster="slurm", submitted=0.0, cwd="",
                  code="", logs="", resources=requested)
    )  # fmt: skip
    shown = {"NumNodes": "8-8", "EligibleTime": time.strftime("%Y-%m-%dT%H:%M:%S"),
             "Partition": "main"}  # fmt: skip
    commands: list[list[str]] = []
    monkeypatch.setattr(elastic, "describe", lambda job_id: shown)
    monkeypatch.setattr(elastic, "run_slurm", commands.append)
    monkeypatch.setattr(elastic, "idle_nodes", {"main": 5}.get)
    pending = QueuedJob("7", "x", "PENDING", "Resources", "", "", "", "")
    assert elastic.resize_waiting(tmp_path, {"7": pending}) == [], "not yet"
    shown["EligibleTime"] = "2020-01-01T00:00:00"
    assert elastic.resize_waiting(tmp_path, {"7": replace(pending, reason="Dependency")}) == []
    assert elastic.resize_waiting(tmp_path, {"7": _of_another("7")}) == []
    assert elastic.resize_waiting(tmp_path, {"7": pending}) == ["job 7 now waits for 4 nodes only"]
    assert commands == [["scontrol", "update", "JobId=7", "NumNodes=4", "NumTasks=4"]]
    shown["NumNodes"] = "4"
    assert elastic.resize_waiting(tmp_path, {"7": pending}) == [], (
        "each number of nodes may stay pending for as long"
    )


def test_a_job_that_ran_on_fewer_nodes_requests_more_when_they_are_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = Resources(nodes=8, fallback_nodes=(4, 2, 1), shrink_minutes=60)
    jobs = JobDir(tmp_path)
    jobs.write(
        JobRecord(job_id="7", kind="train", name="x", cluster="slurm", submitted=0.0, cwd="",
                  code="", logs="", resources=requested)
    )  # fmt: skip
    shown = {"NumNodes": "2", "EligibleTime": "2020-01-01T00:00:00", "Partition": "main"}
    idle = {"main": 3}
    commands: list[list[str]] = []
    monkeypatch.setattr(elastic, "describe", lambda job_id: shown)
    monkeypatch.setattr(elastic, "run_slurm", commands.append)
    monkeypatch.setattr(elastic, "idle_nodes", idle.get)
    queue = {"7": QueuedJob("7", "x", "PENDING", "BeginTime", "", "", "", "")}
    jobs.note("7", "resize", nodes=2)
    assert elastic.resize_waiting(tmp_path, queue) == [], "it has not run yet"
    jobs.note("7", "start", images_seen=0)
    assert elastic.resize_waiting(tmp_path, queue) == [], "too few are idle"
    idle["main"] = 6
    assert elastic.resize_waiting(tmp_path, queue) == ["job 7 now waits for 4 nodes again"]
    shown["NumNodes"], idle["main"] = "4", 8
    assert elastic.resize_waiting(tmp_path, queue) == [], "once after each start"
    jobs.note("7", "start", images_seen=0)
    assert elastic.resize_waiting(tmp_path, queue) == ["job 7 now waits for 8 nodes again"]
    assert len(commands) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"best": "other:fd.distance"}, "is not like quick:metric.value"),
        ({"patience": 2}, "patience needs `best`"),
    ],
)
def test_invalid_schedules(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _run(tmp_path, (), **settings)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"protocols": [], "best": KEY}, "a schedule needs at least one"),
        ({"protocols": [{"name": "q" * 201, "words": []}]}, "has 201 characters"),
    ],
)
def test_edited_schedules_are_rejected_by_name(
    tmp_path: Path, plan: dict[str, Any], message: str
) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=rf"^plan\.json.*{message}"):
        read_schedule(tmp_path)


def test_schedules_round_trip_through_json(tmp_path: Path) -> None:
    run_dir = _run(tmp_path, (), best=KEY)
    schedule = read_schedule(run_dir)
    assert schedule is not None
    assert schedule.best == KEY
    assert schedule.protocols[1].every_images == 200
