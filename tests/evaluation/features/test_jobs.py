"""Jobs beside each other on one store: writers, readers, and what removes entries."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation import __main__ as cli
from evaluation.features import store as module
from evaluation.features.batches import BatchStore, MomentStore
from evaluation.features.store import FeatureEntry, entries, remove, trim
from models.safe_files import locks
from tests.evaluation.features.test_reuse import evaluate, write_images

ROUNDS = 3
_at_once: Barrier


@dataclass(frozen=True)
class Job:
    """A command that two processes start at the same moment, and the file that it writes."""

    command: list[str]
    out: Path
    cache: Path
    has_locks: bool
    streams: bool


def no_flock(file: object, kind: int) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


def _join(at_once: Barrier) -> None:
    global _at_once
    _at_once = at_once


def _work(job: Job) -> tuple[int, str]:
    """Do a job when the other process has come here, too; return the exit code and stderr."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setenv("RELAYWAVE_CACHE", str(job.cache))
        if not job.has_locks:
            patch.setattr(locks.fcntl, "flock", no_flock)
        if job.streams:
            patch.setattr(module, "STREAMING_IMAGES", 4)
        _at_once.wait(120)
        code = cli.main(job.command)
    return code, said.getvalue()


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, _join, (context.Barrier(2),)) as pool:
        yield pool


@pytest.mark.parametrize("has_locks", [True, False], ids=["flock", "no flock"])
@pytest.mark.parametrize("streams", [False, True], ids=["all features", "moments"])
def test_two_jobs_at_once_compute_what_one_does(
    tmp_path: Path, processes: ProcessPoolExecutor, has_locks: bool, streams: bool
) -> None:
    """Both share an uncached reference and uncached features; neither ever fails."""
    images, reference = write_images(tmp_path / "a", 12), write_images(tmp_path / "b", 12, seed=1)
    found: list[dict[str, Any]] = []
    for number in range(ROUNDS):
        place = tmp_path / str(number)
        jobs = []
        for name in ("x.json", "y.json"):
            command = ["run", str(images), "--reference", str(reference), "--out"]
            command += [str(place / name), "--metrics", "fd:block4,kid:block10"]
            command += ["--batch-size", "2"]
            jobs.append(Job(command, place / name, place / "cache", has_locks, streams))
        for code, said in processes.map(_work, jobs):
            assert code == 0, said
        found += [json.loads(job.out.read_text())["metrics"] for job in jobs]
        if has_locks:
            assert not [p for p in place.rglob("*/*/*") if p.is_dir() and "block" in p.name]
    for metrics in found[1:]:
        for name, metric in metrics.items():
            expected = found[0][name]["values"]["distance"]
            # processes share the batches in other ways, and so add up moments in another order
            tolerance = 1e-9 if streams else 0
            assert metric["values"]["distance"] == pytest.approx(expected, rel=tolerance, abs=0)


@pytest.mark.parametrize("has_locks", [True, False], ids=["flock", "no flock"])
def test_two_jobs_at_once_on_one_reference_file(
    tmp_path: Path, processes: ProcessPoolExecutor, has_locks: bool
) -> None:
    images = write_images(tmp_path / "a", 12)
    for number in range(ROUNDS):
        out = tmp_path / str(number) / "reference.npz"
        command = ["reference", str(images), str(out), "--taps", "block4", "--batch-size", "2"]
        job = Job(command, out, out.parent / "cache", has_locks, False)
        for code, said in processes.map(_work, [job, job]):
            assert code == 0, said
        assert out.exists()


@pytest.mark.parametrize("is_alone", [True, False])
def test_moments_that_two_killed_jobs_left_are_counted_once(tmp_path: Path, is_alone: bool) -> None:
    rows = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)

    def write(store: MomentStore, *starts: int) -> None:
        for start in starts:
            store.write(start, range(start, start + 2), rows[start : start + 2])
        store.flush()

    for starts in ((0, 4), (0, 2, 4), (6,)):
        write(MomentStore(tmp_path, 3, range(12)), *starts)
    store = MomentStore(tmp_path, 3, range(12))
    done, names = store.begin(is_alone=is_alone)
    assert {0, 4, 6} <= done
    growing = MomentStore(tmp_path, 3, range(12))
    if not is_alone:  # another job goes on at the same time
        write(growing, 8, 10)
    write(store, *({0, 2, 4, 6, 8, 10} - done))
    gaussian, features, selected = store.collect(12, sorted({*names, *store.written}))
    assert np.array_equal(features, rows)
    assert list(selected) == list(range(12))
    np.testing.assert_allclose(gaussian.mu, rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(gaussian.sigma, np.cov(rows.T), atol=1e-6)


def gc(place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["gc", str(place), "--older-than", "0"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("has_locks", [True, False], ids=["flock", "no flock"])
@pytest.mark.parametrize("at", ["write", "read"])
def test_what_another_job_reads_or_writes_is_not_removed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: str,
    has_locks: bool,
) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    if not has_locks:
        monkeypatch.setattr(locks.fcntl, "flock", no_flock)
    images, reference = write_images(tmp_path / "a", 6), write_images(tmp_path / "b", 6, seed=1)
    said: list[str] = []
    owner, name = (BatchStore, "write") if at == "write" else (FeatureEntry, "read")
    call = getattr(owner, name)

    def beside(self: Any, *arguments: Any) -> Any:
        entry = self.dir.parent if isinstance(self, BatchStore) else self.path
        lines = (gc(tmp_path, capsys) + gc_cache(capsys)).splitlines()
        said.extend(line for line in lines if str(entry) in line)
        trim(entry.parent, max_bytes=0)
        assert (entry / "entry.json").exists()
        return call(self, *arguments)

    monkeypatch.setattr(owner, name, beside)
    expected = evaluate(images, reference, tmp_path / "r.json", "fd:block4", "--batch-size", "2")
    evaluate(images, reference, tmp_path / "s.json", "fd:block4,kid:block4", "--batch-size", "2")
    monkeypatch.setattr(owner, name, call)
    assert len(said) >= 2, "of the reference and the images"
    assert all(("in use" if has_locks else "has no locks") in line for line in said)
    assert evaluate(images, reference, tmp_path / "t.json", "fd:block4", "--batch-size", "2") == (
        expected
    )
    for entry in entries(tmp_path / "features"):
        os.utime(entry.path / "entry.json", (0, 0))
    assert "removed" in gc(tmp_path, capsys), "it is, once no job uses it"
    assert entries(tmp_path / "features") == []
    assert list((tmp_path / "features").iterdir()) == [], "and leaves no lock behind"


def gc_cache(capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["gc", "--older-than", "0"]) == 0
    return capsys.readouterr().out


def test_what_was_used_since_it_was_listed_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    images = write_images(tmp_path / "a", 6)
    evaluate(images, images, tmp_path / "r.json", "fd:block4")
    (listed,) = entries(tmp_path / "features")
    os.utime(listed.path / "entry.json", (listed.used + 9, listed.used + 9))
    assert remove(listed) == "used just now"
    (listed,) = entries(tmp_path / "features")
    assert remove(listed) == ""
    assert not listed.path.exists()


def test_a_store_that_cannot_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    images = write_images(tmp_path / "a", 6)
    first = evaluate(images, images, tmp_path / "r.json", "fd:block4")

    def read_only(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name.endswith(".use"):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return lock(path, *arguments, **options)

    lock = locks.FileLock
    monkeypatch.setattr("evaluation.disk.FileLock", read_only)
    assert evaluate(images, images, tmp_path / "s.json", "fd:block4") == first
