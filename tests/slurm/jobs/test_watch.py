"""Which snapshots have `reconcile` called while a run trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.jobs import watch
from slurm.jobs.interpreter import SOURCE


def _snapshot(run_dir: Path, images: int) -> None:
    marker = run_dir / "snapshots" / f"{images:012d}" / "snapshot.json"
    marker.parent.mkdir(parents=True)
    marker.touch()


def _schedule(run_dir: Path) -> None:
    (run_dir / "evaluation").mkdir()
    (run_dir / "evaluation" / "plan.json").touch()


class Looks(threading.Event):
    """Lets things happen between looks; then the run ends."""

    def __init__(self, *happen: Callable[[], object]) -> None:
        super().__init__()
        self.happen, self.intervals = list(happen), []  # type: ignore[var-annotated]

    def wait(self, timeout: float | None = None) -> bool:
        self.intervals.append(timeout)
        self.happen.pop(0)()
        return not self.happen


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the next calls of `reconcile` lead to; those made are taken off."""
    left: list[bool] = []
    monkeypatch.setattr(watch, "_reconcile", lambda run_dir: left.pop(0))
    return left


def test_each_new_snapshot_is_reconciled_once_and_the_last_at_the_end(
    tmp_path: Path, answers: list[bool]
) -> None:
    answers += [True, True, True]

    def nothing() -> None:
        pass

    watch.watch(
        tmp_path,
        Looks(
            lambda: _snapshot(tmp_path, 8),  # there is no schedule yet
            lambda: _schedule(tmp_path),  # reconciled
            nothing,
            lambda: _snapshot(tmp_path, 16),  # reconciled
            nothing,
            lambda: _snapshot(tmp_path, 24),  # at the end: reconciled
        ),
    )
    assert answers == []


def test_what_fails_is_tried_again_ever_later(tmp_path: Path, answers: list[bool]) -> None:
    answers += [False, False, False, True]
    _schedule(tmp_path)
    _snapshot(tmp_path, 8)
    looks = Looks(*[lambda: None] * 6)
    watch.watch(tmp_path, looks)
    first = watch.INTERVAL
    assert looks.intervals == [first, 2 * first, 4 * first, 8 * first, first, first]
    assert answers == []


def test_it_calls_reconcile_and_ends_at_sigterm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"total_images": 8}')
    _schedule(tmp_path)
    _snapshot(tmp_path, 8)
    (tmp_path / "slurm" / "jobs").mkdir(parents=True)
    command = [sys.executable, "-P", "-m", "slurm.jobs.watch", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PATH": "/nowhere"}
    process = subprocess.Popen(command, env=environment)
    log = tmp_path / "slurm" / "jobs" / "reconcile.log"
    while not log.exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "there is no Slurm on this machine" in log.read_text()
