"""Scheduled evaluation without Slurm: what is due, best snapshots, early stop, pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slurm import reconcile as module
from slurm.cluster import Site
from slurm.evaluation_plan import EvaluationPlan, ScheduledProtocol, read_plan, write_plan
from slurm.folder import JobRecord
from slurm.jobs import STOP
from slurm.launcher import Submission
from slurm.reconcile import ReconcileJob, reconcile
from slurm.resources import Resources

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
        self.jobs |= dict.fromkeys(record.task_ids)
        return record


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    return Queue(monkeypatch)


def _run(root: Path, snapshots: tuple[int, ...], **settings: Any) -> Path:
    (root / "config.json").write_text('{"total_images": 400}')
    for images in snapshots:
        folder = root / "snapshots" / f"{images:012d}"
        folder.mkdir(parents=True)
        (folder / "snapshot.json").touch()
    protocols = (
        ScheduledProtocol(name="quick", words=("--reference", "r.npz")),
        ScheduledProtocol(name="full", words=("--reference", "r.npz"), every_images=200),
    )
    write_plan(root, EvaluationPlan(protocols=protocols, **settings))
    return root


def _finish(run_dir: Path, images: int, protocol: str, distance: float) -> None:
    folder = run_dir / "evaluation" / f"{images:012d}"
    folder.mkdir(parents=True, exist_ok=True)
    result = {"metrics": {"fd": {"values": {"distance": distance}}}}
    (folder / f"{protocol}.json").write_text(json.dumps(result))


def test_the_missing_are_submitted_once_as_one_array(tmp_path: Path, queue: Queue) -> None:
    run_dir = _run(tmp_path, (0, 100, 200, 400))
    report = reconcile(run_dir, Site(evaluation_partition="cheap"), queue.submit)
    assert report.wanted == 5, "quick of 100, 200, 400 and full of 200, 400; never the untrained"
    assert len(report.submitted) == 5
    assert len(queue.submissions) == 1
    assert queue.submissions[0].resources.partition == "cheap"
    assert queue.submissions[0].resources.nice > 0
    again = reconcile(run_dir, Site(), queue.submit)
    assert (again.alive, again.submitted) == (5, [])


def test_failures_are_tried_again_later_and_then_reported(tmp_path: Path, queue: Queue) -> None:
    run_dir = _run(tmp_path, (100,), max_attempts=2, backoff_seconds=0.0)
    for _ in range(2):
        assert len(reconcile(run_dir, Site(), queue.submit).submitted) == 1
        queue.jobs.clear()
    report = reconcile(run_dir, Site(), queue.submit)
    assert report.submitted == []
    assert "GIVEN UP: quick of" in str(report)
    assert "tried 2 times, last as 2" in str(report) or "tried 2 times" in str(report)


def test_failures_wait(tmp_path: Path, queue: Queue) -> None:
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


def test_snapshots_are_pinned_until_they_are_evaluated(tmp_path: Path, queue: Queue) -> None:
    run_dir = _run(tmp_path, (50, 100, 150, 200, 250, 300), best=KEY, keep_snapshots=1)
    for images, distance in ((50, 1.0), (100, 2.0), (200, 2.0)):
        _finish(run_dir, images, "quick", distance)
    reconcile(run_dir, Site(), queue.submit)
    left = [int(path.name) for path in sorted((run_dir / "snapshots").iterdir())]
    assert left == [50, 150, 200, 250, 300], "the best, missing results, milestones, the newest"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"best": "other:fd.distance"}, "is not like quick:metric.value"),
        ({"patience": 2}, "patience needs `best`"),
    ],
)
def test_plans_that_are_wrong(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _run(tmp_path, (), **settings)


def test_plans_survive_json(tmp_path: Path) -> None:
    run_dir = _run(tmp_path, (), best=KEY)
    plan = read_plan(run_dir)
    assert plan is not None
    assert plan.best == KEY
    assert plan.protocols[1].every_images == 200
