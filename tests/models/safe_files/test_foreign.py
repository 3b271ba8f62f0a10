"""Trying again, and bounds on archives and on what files hold."""

from __future__ import annotations

import errno
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.safe_files import transient
from models.safe_files.archives import ArchiveError, check_uncompressed, read_member
from models.safe_files.transient import TRANSIENT, retried
from models.safe_files.trees import check_tree


class Failing:
    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def __call__(self) -> str:
        if self.numbers:
            raise OSError(self.numbers.pop(0), "failed")
        return "done"


def test_transient_errors_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(transient.time, "sleep", slept.append)
    for number in TRANSIENT:
        assert retried(Failing(number), "reading") == "done"
    slept.clear()
    assert retried(Failing(errno.EIO, errno.ESTALE), "reading", delays=(1, 2, 3)) == "done"
    assert slept == [1, 2], "with back-off"
    with pytest.raises(OSError, match="failed"):
        retried(Failing(*[errno.EIO] * 4), "reading", delays=(1, 2, 3))
    for number in (errno.ENOENT, errno.EACCES, errno.ENOSPC):
        with pytest.raises(OSError, match="failed"):
            retried(Failing(number), "reading")
    assert retried(Failing(errno.ENOSPC), "writing", errors=TRANSIENT | {errno.ENOSPC}) == "done"


def write_zip(path: Path, method: int, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=str
)
def test_bombs_are_rejected_before_they_expand(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "bomb.zip", method, big=bytes(100 << 20), small=b"fine")
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with zipfile.ZipFile(path) as archive:
        with pytest.raises(ArchiveError, match=r"'big' expands from .* to 104857600 bytes"):
            read_member(archive, "big")
        with pytest.raises(ArchiveError, match="'small' has 4 bytes, more than the 3"):
            read_member(archive, "small", max_bytes=3)
        with pytest.raises(ArchiveError, match="no member 'none'"):
            read_member(archive, "none")
        assert read_member(archive, "small") == b"fine"
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_compressed_and_overlapping_members_are_no_pytorch_file(tmp_path: Path) -> None:
    check_uncompressed(write_zip(tmp_path / "stored.pt", zipfile.ZIP_STORED, a=b"1", b=b"2"))
    with pytest.raises(ArchiveError, match="'a' is compressed, which PyTorch never does"):
        check_uncompressed(write_zip(tmp_path / "c.pt", zipfile.ZIP_DEFLATED, a=bytes(1000)))
    with zipfile.ZipFile(tmp_path / "overlap.pt", "w") as archive:
        archive.writestr("a", bytes(1 << 16))
        archive.filelist += [archive.filelist[0]] * 50
    with pytest.raises(ArchiveError, match=r"its members have .* bytes, but the file has"):
        check_uncompressed(tmp_path / "overlap.pt")


@pytest.mark.parametrize("name", ["/evil", "../evil", "a/../../evil", "a/.."])
def test_members_outside_of_an_archive_are_no_pytorch_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="outside of the archive's directory"):
        check_uncompressed(write_zip(tmp_path / "out.pt", zipfile.ZIP_STORED, **{name: b"1"}))
    fine = write_zip(tmp_path / "fine.pt", zipfile.ZIP_STORED, **{"a/..b": b"1", "a/.data/x": b"2"})
    check_uncompressed(fine)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_are_there_twice_are_no_pytorch_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.pt", "w") as archive:
        for name in ("a/data.pkl", "a/data/0", "a/data/1", "a/data/1"):
            archive.writestr(name, b"1")
    with pytest.raises(ArchiveError, match="'a/data/1' is there 2 times"):
        check_uncompressed(tmp_path / "twice.pt")


class Holder:
    def __init__(self, *held: object) -> None:
        self.held = held


def shared(kind: Any, levels: int) -> Any:
    value = kind(["x"])
    for _ in range(levels):
        value = kind([value, value])
    return value


KINDS = {
    "list": list,
    "tuple": tuple,
    "dict": lambda held: dict(enumerate(held)),
    "object": lambda held: Holder(*held),
    "array": lambda held: np.array([*held, None], object),
}


@pytest.mark.parametrize("kind", KINDS)
def test_shared_and_deep_trees_are_bounded(kind: str) -> None:
    make = KINDS[kind]
    check_tree(shared(make, 10))
    start = time.monotonic()
    with pytest.raises(ValueError, match="more than 1000000 entries"):
        check_tree(shared(make, 28))
    assert time.monotonic() - start < 10
    value = make(["x"])
    for _ in range(200):
        value = make([value])
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        check_tree(value)


def test_loops_are_too_deep() -> None:
    loop: list[Any] = []
    loop.append(loop)
    holder = Holder()
    holder.held = (holder,)
    for value in (loop, holder):
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            check_tree(value)
