"""Damaged records, claims and results: skipped by name, without harm to the others."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dist_train.monitoring.evaluations import RESULTS, all_values
from models.safe_files import documents
from models.safe_files.atomic import atomic_file
from models.safe_files.typed_json import ConfigError
from slurm.__main__ import main
from slurm.continuous_eval import reconcile as module
from slurm.continuous_eval.leases import Work
from slurm.continuous_eval.reconcile import Report, due, reconcile
from slurm.continuous_eval.results import prune
from slurm.continuous_eval.schedule import (
    EvaluationSchedule,
    ScheduledProtocol,
    read_schedule,
    write_schedule,
)
from slurm.jobs.jobs import STOP
from slurm.jobs.records import STOPS, JobDir, JobRecord, say_once
from slurm.monitor.status import run_status
from slurm.resources import Resources
from slurm.site import Site
from slurm.submit import preflight
from tests.flaky_files import make_flaky


@pytest.fixture(autouse=True)
def _no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    say_once.cache_clear()
    monkeypatch.setattr(module, "queued", lambda ids=None: {})


def _record(job_id: str, **changes: object) -> JobRecord:
    fields = {
        "job_id": job_id, "kind": "train", "name": "x", "cluster": "slurm", "cwd": "", "code": "",
        "submitted": float(job_id), "logs": "", "resources": Resources(),
    }  # fmt: skip
    return JobRecord(**fields | changes)  # type: ignore[arg-type]


def _set(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:30]),
    "binary": lambda path: path.write_bytes(b"\xff\x00" * 50),
    "a list": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "deep": lambda path: path.write_text('{"a":' * 20_000),
    "wrong type": lambda path: _set(path, job_id=[], job={}, time="x", metrics=3, why=[]),
    "other value": lambda path: _set(path, job_id="77", job="77", time=0.5, metrics={}, why="?"),
    "extra field": lambda path: _set(path, added=1),
    "not a number": lambda path: path.write_text(re.sub(r"\d", "NaN", path.read_text())),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_records_of_jobs(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = JobDir(tmp_path)
    for job_id in ("11", "12", "13"):
        jobs.write(_record(job_id))
    DAMAGE[damage](jobs.records_dir / "12.json")
    assert [record.job_id for record in jobs.records()] == ["11", "13"]
    error = capsys.readouterr().err
    assert "12.json" in error
    assert error.count("\n") == 1
    assert jobs.damaged() == ["12"]
    assert [job["job_id"] for job in run_status(tmp_path, {})["jobs"]] == ["11", "13"]


def test_records_without_a_checksum_load_but_not_under_another_name(tmp_path: Path) -> None:
    jobs = JobDir(tmp_path)
    jobs.write(_record("11"))
    (jobs.records_dir / "11.attempts.jsonl").unlink()
    _set(jobs.records_dir / "11.json", added=1)
    assert [record.job_id for record in jobs.records()] == ["11"]
    (jobs.records_dir / "11.json").rename(jobs.records_dir / "12.json")
    assert jobs.records() == []


def test_a_run_whose_jobs_record_is_damaged_is_not_submitted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, asked = JobDir(tmp_path), []
    jobs.write(_record("12"))
    (jobs.records_dir / "12.json").write_text("{")
    monkeypatch.setattr(preflight, "have_slurm", lambda: True)
    monkeypatch.setattr(preflight, "queued", lambda ids: asked.extend(ids) or {})
    preflight.check_idle(tmp_path)
    assert asked == ["12"]


def test_logs_of_jobs_keep_their_good_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = JobDir(tmp_path)
    jobs.note("7", "start", images_seen=8, restart=0)
    bad = [b"\xff\xfe", b"5", b"[]", b"{", b'{"event": 3, "time": 1}', b'{"event": "exit"}',
           b'{"event": "start", "time": 1, "images_seen": "8"}',
           b'{"event": "submitted", "time": 1, "checksum": {"a": 1}}',
           b'{"event": "exit", "time": 1, "rank": 0}']  # fmt: skip
    with open(jobs.records_dir / "7.attempts.jsonl", "ab") as file:
        file.writelines(line + b"\n" for line in bad)
    jobs.note("7", "exit", rank=0, code=0)
    jobs.write(_record("7"))
    assert [record.job_id for record in jobs.records()] == ["7"]
    assert [line["event"] for line in jobs.attempts("7")] == ["start", "exit"]
    assert "7.attempts.jsonl" in caplog.text


def _run(root: Path, *snapshots: int) -> EvaluationSchedule:
    (root / "config.json").write_text('{"total_images": 400}')
    for images in snapshots:
        snapshot = root / "snapshots" / f"{images:012d}"
        snapshot.mkdir(parents=True)
        (snapshot / "snapshot.json").touch()
        (snapshot / "weights.safetensors").touch()
    schedule = EvaluationSchedule(
        protocols=(ScheduledProtocol(name="quick", words=("--reference", "r.npz")),),
        best="quick:fd.distance", keep_snapshots=1,
    )  # fmt: skip
    write_schedule(root, schedule)
    return schedule


def _finish(run_dir: Path, images: int, distance: float) -> Path:
    path = run_dir / "evaluation" / f"{images:012d}" / "quick.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write(path, {"metrics": {"fd": {"values": {"distance": distance}}}})
    return path


def _never(submission: object) -> JobRecord:
    raise AssertionError("nothing may be submitted")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["claim", "job", "start"])
def test_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, damage: str) -> None:
    schedule = _run(tmp_path, 100, 200)
    monkeypatch.setattr(module, "queued", lambda ids=None: {"5": None, "6": None})
    works = [Work(tmp_path, images, "quick") for images in (100, 200)]
    for work, job_id in zip(works, ("5", "6"), strict=True):
        assert work.claim(1)
        if kind != "claim":
            work.submitted(1, job_id)
        if kind == "start":
            assert work.start(1, job_id)
    path = works[0].result_dir / f".quick.1.{kind}"
    DAMAGE[damage](path)
    before = sorted(works[0].result_dir.iterdir())
    report = Report()
    assert due(tmp_path, schedule, report) == []
    assert (report.wanted, report.alive, report.failed) == (2, 1, [])
    assert str(path) in report.skipped[0]
    assert sorted(works[0].result_dir.iterdir()) == before, "nothing is claimed or expires"


def test_claims_of_older_versions_and_moments_of_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(tmp_path, 100, "quick")
    work.result_dir.mkdir(parents=True)
    (work.result_dir / ".quick.1.claim").write_text('{"time": 1.5, "pid": 3}')
    (work.result_dir / ".quick.1.job").write_text('{"job": "5"}')
    (work.result_dir / ".quick.1.start").write_text('{"time": 2.5, "job": "5"}')
    for number in (errno.EIO, errno.ESTALE):
        with monkeypatch.context() as patch:
            failed = make_flaky(patch, lambda path: path.parent == work.result_dir, 2, number)
            assert (work.job_of(1), work.ended(1), work.attempts) == ("5", 2.5, 1)
            assert work.alive(1, {"5"}, 600.0)
            assert not work.alive(1, (), 600.0)
            assert failed.total() == 2
    with monkeypatch.context() as patch:
        make_flaky(patch, lambda path: path.suffix == ".start", 10**6)
        with pytest.raises(ValueError, match=r"\.quick\.1\.start cannot be read"):
            work.alive(1, (), 600.0)


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage != "extra field"])
def test_results(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path, 100, 200, 300)
    paths = [_finish(tmp_path, images, images / 100) for images in (100, 200, 300)]
    DAMAGE[damage](paths[0])
    content = paths[0].read_bytes() if paths[0].is_file() else None
    report = reconcile(tmp_path, Site(), _never) if content is not None else None
    assert {images for images, _ in all_values(tmp_path)} == {200, 300}
    assert str(paths[0]) in capsys.readouterr().err
    if report is not None:
        assert report.best == 200
        assert paths[0].read_bytes() == content, "left as it is"


def test_values_that_are_no_numbers_are_not_the_best(tmp_path: Path) -> None:
    _run(tmp_path, 100, 200, 300)
    for images, distance in ((100, float("nan")), (200, 2.0), (300, 3.0)):
        _finish(tmp_path, images, distance)
    assert reconcile(tmp_path, Site(), _never).best == 200


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage != "extra field"])
@pytest.mark.parametrize(
    "name",
    ["evaluation/best.json", f"slurm/{STOP}", "evaluation/plan.json", "evaluation/plan.checksum"],
)
def test_notes_of_a_run(
    tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(tmp_path, 100, 200)
    (tmp_path / "slurm" / "jobs").mkdir(parents=True)
    for images in (100, 200):
        _finish(tmp_path, images, 1.0)
    reconcile(tmp_path, Site(), _never)
    STOPS.write(tmp_path / "slurm" / STOP, {"why": "enough", "time": 1.0})
    DAMAGE[damage](tmp_path / name)
    assert main(["status", str(tmp_path)]) == 0
    said = "".join(capsys.readouterr())
    assert Path(name).name in said
    assert "0/400 images" in said, "the rest is shown"


def test_every_changed_digit_of_a_schedule_is_found_until_it_is_given_again(tmp_path: Path) -> None:
    schedule = replace(_run(tmp_path, 100), keep_snapshots=30, patience=12)
    write_schedule(tmp_path, schedule)
    path = tmp_path / "evaluation" / "plan.json"
    text = path.read_text()
    for place in (match.start() for match in re.finditer(r"\d", text)):
        other = str((int(text[place]) + 1) % 10)
        path.write_text(text[:place] + other + text[place + 1 :])
        with pytest.raises(ConfigError, match=r"plan\.json was changed .*slurm reconcile .*--plan"):
            read_schedule(tmp_path)
    write_schedule(tmp_path, schedule)
    assert read_schedule(tmp_path) == schedule
    (tmp_path / "evaluation" / "plan.checksum").unlink()  # as older versions wrote it
    path.write_text(text.replace("30", "31"))
    assert read_schedule(tmp_path) == replace(schedule, keep_snapshots=31)


@pytest.mark.parametrize("written", [1, 2])
def test_a_kill_while_a_schedule_is_replaced_leaves_one_of_the_two(
    tmp_path: Path, written: int
) -> None:
    old = _run(tmp_path, 100)
    new, count = replace(old, patience=7), 0

    @contextmanager
    def killed(path: Path) -> Iterator[Any]:
        nonlocal count
        if count == written:
            raise KeyboardInterrupt
        count += 1
        with atomic_file(path) as file:
            yield file

    with mock.patch.object(documents, "atomic_file", killed), pytest.raises(KeyboardInterrupt):
        write_schedule(tmp_path, new)
    assert read_schedule(tmp_path) == (old if written == 1 else new)


def test_only_snapshots_are_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = _run(tmp_path, 100, 200, 300, 400)
    for images in (100, 200, 300, 400):
        _finish(tmp_path, images, images / 100)
    snapshots = tmp_path / "snapshots"
    (snapshots / f"{200:012d}" / "thesis.tex").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    (snapshots / f"{300:012d}").rename(elsewhere)
    (snapshots / f"{300:012d}").symlink_to(elsewhere)
    prune(tmp_path, schedule, 400, best=400)
    left = [int(path.name) for path in sorted(snapshots.iterdir())]
    assert left == [200, 300, 400]
    assert (elsewhere / "snapshot.json").exists()
    error = capsys.readouterr().err
    assert "thesis.tex" in error
    assert error.count("the old snapshot is kept") == 2


def test_nothing_is_pruned_while_the_best_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = dataclasses.replace(_run(tmp_path, 100, 200, 300), best="quick:fid.distance")
    write_schedule(tmp_path, schedule)
    for images in (100, 200, 300):
        _finish(tmp_path, images, images / 100)
    assert reconcile(tmp_path, Site(), _never).best is None
    assert len(list((tmp_path / "snapshots").iterdir())) == 3
    error = capsys.readouterr().err
    assert "best='quick:fid.distance' is in none of the 3 results" in error
    assert "they have quick:fd.distance; did you mean quick:fd.distance?" in error
    write_schedule(tmp_path, dataclasses.replace(schedule, best="quick:fd.distance"))
    assert reconcile(tmp_path, Site(), _never).best == 100
    left = sorted(int(path.name) for path in (tmp_path / "snapshots").iterdir())
    assert left == [100, 300], "the best, and the newest"


@pytest.mark.parametrize(
    ("removed", "best", "left"),
    [((100,), 200, [200, 400]), ((100, 200), 300, [300, 400]), ((100, 200, 300, 400), None, [500])],
)
def test_the_best_is_a_snapshot_that_exists(
    tmp_path: Path, removed: tuple[int, ...], best: int | None, left: list[int]
) -> None:
    snapshots = (100, 200, 300, 400) if best else (100, 200, 300, 400, 500)
    _run(tmp_path, *snapshots)
    for images in (100, 200, 300, 400):
        _finish(tmp_path, images, images / 100)
    for images in removed:
        shutil.rmtree(tmp_path / "snapshots" / f"{images:012d}")
    record = mock.Mock(return_value=mock.Mock(task_ids=["7"]))
    assert reconcile(tmp_path, Site(), record).best == best
    assert sorted(int(path.name) for path in (tmp_path / "snapshots").iterdir()) == left


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (b"\xff\xfe\x00", "cannot be read as a site profile: 'utf-8' codec"),
        (b"partition = 5", "site.toml.partition=5 is not of type str"),
        (b"[container]\nimages = ''", "unknown setting site.toml.container.images"),
        (b"[container]\nruntime = 'docker'", "site.toml.container.runtime='docker' is not one of"),
        (b"open_files = -1", "open_files=-1 must not be negative"),
        (b'partition = "a\\nb"', "must be one line of text"),
        (b'setup = ["a\\u0000"]', "must be one line of text"),
        (b"[environment]\n'A;B' = 'x'", "environment: 'A;B' is no name of a variable"),
        (b"a = " + b"[" * 5000, "cannot be read as a site profile"),
        (b"signal_seconds = 1" + b"0" * 5000, "cannot be read as a site profile"),
        (b" " * (2 << 20), "more than 1048576 bytes"),
    ],
)
def test_site_profiles(
    tmp_path: Path, profile: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(profile)
    assert main(["doctor", "--site", str(path), "--no-job"]) == 2
    error = capsys.readouterr().err
    assert error.partition(": ")[2].startswith(str(path))
    assert message in error
    assert error.count("\n") == 1
