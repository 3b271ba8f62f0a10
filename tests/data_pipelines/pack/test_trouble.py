"""Trouble of the moment while packing is tried again, then ends the pack; nothing is left out."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipelines.__main__ import main
from data_pipelines.packed.check import check
from data_pipelines.packed.manifest import read_manifest
from models.command_line import EXIT_STORAGE
from models.safe_files import transient
from tests.flaky_files import make_flaky

NAMES = [f"{cls}/{number}.png" for cls in ("cat", "dog") for number in range(4)]


def encoded(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (level, 0, 9)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {name: encoded(20 * number) for number, name in enumerate(NAMES)}


def directory_of(path: Path) -> Path:
    for name, content in IMAGES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tar_of(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in IMAGES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in IMAGES.items():
            archive.writestr(name, content)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "folder": lambda path: directory_of(path / "source"),
    "tar": lambda path: tar_of(path / "source.tar"),
    "zip": lambda path: zip_of(path / "source.zip"),
}


def pack(source: Path, destination: Path, *options: str) -> int:
    arguments = ["images", str(source), str(destination), "--resolution=16", "--shard-images=2"]
    return main(["pack", *arguments, "--workers=1", *options])


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_moment_of_trouble_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    source = SOURCES[kind](tmp_path)
    assert pack(source, tmp_path / "expected") == 0
    failed = _break_items(monkeypatch, times=2, number=number)
    assert pack(source, tmp_path / "set") == 0
    assert failed.total() == 2 * len(NAMES)
    assert contents(tmp_path / "set") == contents(tmp_path / "expected")
    assert read_manifest(tmp_path / "set").skipped == {}


@pytest.mark.parametrize("kind", SOURCES)
def test_lasting_trouble_ends_the_pack_which_resumes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    source = SOURCES[kind](tmp_path)
    assert pack(source, tmp_path / "expected") == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        _break_items(patch, times=10**6, only=NAMES[5])
        assert pack(source, tmp_path / "set") == EXIT_STORAGE
    error = [line for line in capsys.readouterr().err.splitlines() if "trying again" not in line]
    assert "dog/1.png cannot be read now: Input/output error; run the same" in error[-1]
    assert pack(source, tmp_path / "set") == 0
    assert contents(tmp_path / "set") == contents(tmp_path / "expected")
    assert not check(tmp_path / "set").problems


def _break_items(
    monkeypatch: pytest.MonkeyPatch, times: int, number: int = errno.EIO, only: str = ""
) -> Counter[str]:
    """Let the first attempts to read each item fail, below the reader that tries again."""
    from data_pipelines.sources.steady import SteadyReader

    monkeypatch.setattr(transient, "DELAYS", (0.0, 0.0, 0.0))
    failed: Counter[str] = Counter()
    opened = SteadyReader._reader

    def reader(self: SteadyReader) -> Any:
        read = opened(self)

        def flaky(entry: Any) -> Any:
            if only in ("", entry.name) and failed[entry.name] < times:
                failed[entry.name] += 1
                raise OSError(number, os.strerror(number))
            return read(entry)

        return flaky

    monkeypatch.setattr(SteadyReader, "_reader", reader)
    return failed


def test_files_of_a_directory_are_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = directory_of(tmp_path / "source")
    (source / "cat" / "picture").write_bytes(encoded(250))  # an image by its content
    failed = make_flaky(monkeypatch, lambda path: source in path.parents, 3)
    assert pack(source, tmp_path / "set") == 0
    assert len(failed) == len(NAMES) + 1
    assert read_manifest(tmp_path / "set").num_images == len(NAMES) + 1


def test_damage_is_still_skipped(tmp_path: Path) -> None:
    source = directory_of(tmp_path / "source")
    (source / NAMES[0]).write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    (source / NAMES[1]).unlink()
    (source / NAMES[1]).symlink_to("nowhere")
    assert pack(source, tmp_path / "set") == 0
    assert sum(read_manifest(tmp_path / "set").skipped.values()) == 2


def test_files_larger_than_images_are_not_read(tmp_path: Path) -> None:
    source = directory_of(tmp_path / "source")
    with open(source / "cat" / "huge.png", "wb") as file:
        file.truncate(1 << 40)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in IMAGES.items():
            archive.writestr(name, content)
        archive.writestr("cat/bomb.png", bytes(80 << 20))
    assert pack(source, tmp_path / "set") == 0
    assert read_manifest(tmp_path / "set").skipped == {"too large": 1}
    assert pack(tmp_path / "bomb.zip", tmp_path / "unzipped") == 0
    assert read_manifest(tmp_path / "unzipped").skipped == {"unreadable": 1}


def test_only_what_packing_wrote_is_removed_from_its_working_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = directory_of(tmp_path / "source")
    work = tmp_path / "set" / ".packing"
    work.mkdir(parents=True)
    (work / "thesis.tex").write_text("mine")
    assert pack(source, tmp_path / "set", "--holdout=2") == 0
    assert [path.name for path in work.rglob("*")] == ["thesis.tex"]
    assert "thesis.tex" in caplog.text
    assert pack(source, tmp_path / "clean", "--holdout=2") == 0
    assert not (tmp_path / "clean" / ".packing").exists()
