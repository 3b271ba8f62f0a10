"""What is no file is rejected at once, by every reader; nothing waits for a pipe's writer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.__main__ import main as data
from models.__main__ import main as models
from models.safe_files.archives import check_torch_file
from models.safe_files.documents import DocumentError, read_object
from models.safe_files.regular import check_file, open_descriptor, open_file, read_file
from models.safe_files.transient import SteadyFile, file_sha256

READERS = (open_file, open_descriptor, read_file, check_file, file_sha256, SteadyFile,
           check_torch_file)  # fmt: skip


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, device, Path.mkdir])
def test_only_files_are_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "x"
    make(path)
    for reader in READERS:
        with pytest.raises(OSError, match=r"not a file|Is a directory"):
            reader(path)
    with pytest.raises(DocumentError, match="x cannot be read: "):
        read_object(path)


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("x")
    assert read_file(tmp_path / "link") == b"abc"
    check_file(tmp_path / "link")
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "missing")


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("kind", ["zip", "tar", "images", "cifar10", "stl10", "lsun", "parquet"])
def test_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], kind: str
) -> None:
    make(tmp_path / "x.parquet")
    source, out = str(tmp_path / "x.parquet"), str(tmp_path / "out")
    assert data(["pack", kind, source, out, "--resolution", "16"]) == 2
    error = capsys.readouterr().err
    assert source in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("kind", ["rdm-official", "wavediff-official"])
def test_official_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], kind: str
) -> None:
    make(tmp_path / "x.pt")
    assert models(["convert", kind, str(tmp_path / "x.pt"), str(tmp_path / "out")]) == 2
    assert "x.pt is a FIFO, a socket or a device" in capsys.readouterr().err
