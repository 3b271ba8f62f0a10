"""Locks on files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from models.safe_files import locks
from models.safe_files.locks import FileLock


def test_one_holds_a_lock_and_says_who(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    first, second = FileLock(path), FileLock(path)
    assert first.take()
    assert not second.take()
    assert f"pid {os.getpid()} on " in second.owner
    first.release()
    assert not path.exists()
    assert second.take(patience=5.0)  # the file of that name, not the one that is gone
    assert path.exists()
    third = FileLock(path)
    assert not third.take()
    third.release()  # not held: nothing is removed
    assert path.exists()
    second.release()


def test_a_lock_may_be_shared(tmp_path: Path) -> None:
    path = tmp_path / ".use"
    readers = [FileLock(path, shared=True) for _ in range(2)]
    assert all(reader.take() and reader.works for reader in readers)
    alone = FileLock(path)
    assert not alone.take()
    for reader in readers:
        reader.release()
    assert path.exists(), "others may share it still"
    assert alone.take()
    late = FileLock(path, shared=True)
    assert not late.take()
    alone.release()
    assert late.take(patience=5.0)
    assert path.exists()
    late.release()


def test_what_a_killed_process_left_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text("damaged")
    lock = FileLock(path)
    assert lock.owner == "another process"
    assert lock.take()
    lock.release()


def test_file_systems_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(file: object, kind: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    lock = FileLock(tmp_path / ".lock")
    assert lock.take()
    assert not lock.works
    lock.release()
    said = capsys.readouterr().err
    assert said == f"{tmp_path}: the file system has no locks; {locks.TWICE}\n", "not of runs"
