"""Reading checkpoints: what is damaged is rejected by name, and the older complete one is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.checkpoint.format import (
    MARKER,
    CheckpointError,
    CheckpointReader,
    TrainState,
    committed,
    find_newest_complete,
)
from dist_train.checkpoint.writer import CheckpointWriter
from dist_train.config import CheckpointConfig
from dist_train.engine.loss_scaling import LossScale
from dist_train.engine.shards import ParameterShard
from dist_train.runtime.world import World
from models.safe_files import transient
from models.safe_files.documents import checksum

ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
SHARD = "rank_00000.safetensors"
OLDER, NEWER = f"{10:012d}", f"{20:012d}"


def write(run_dir: Path, *times: int) -> None:
    """Write checkpoints of a small network."""
    writer = CheckpointWriter(run_dir, ALONE, CheckpointConfig(keep_last=9))
    for images in times:
        shard = ParameterShard("w", 0, torch.full((4,), float(images)), {})
        scales = {"net": LossScale(dynamic=False).state()}
        state = TrainState(images, images // 5, {"net": images // 5}, scales)
        writer.begin(state, {"net": [shard], "net.ema": [shard]})
        writer.finish()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write(tmp_path, 10, 20)
    return tmp_path


def find(run_dir: Path) -> tuple[str, str]:
    """Return the name of the checkpoint that would be loaded, and what is said of others."""
    path, problems = find_newest_complete(run_dir, ALONE)
    assert path is not None
    assert CheckpointReader(path).state.images_seen == int(path.name)
    return path.name, "; ".join(problems)


def change(path: Path, edit: Callable[[dict[str, Any]], object], *, keep_checksum: bool) -> None:
    """Change a marker: one of today, or one of the time before checksums."""
    document = json.loads(path.read_text())
    edit(document)
    if not keep_checksum:
        del document["checksum"]
    path.write_text(json.dumps(document))


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "images_seen": lambda d: d.update(images_seen=21),
    "another's images": lambda d: d.update(images_seen=10, step=2, updates={"net": 2}),
    "step": lambda d: d.update(step=3),
    "updates": lambda d: d.update(updates={"net": 5}),
    "negative": lambda d: d.update(data_offset=-1),
    "huge": lambda d: d.update(images_seen=10**80),
    "float": lambda d: d.update(step=4.0),
    "bool": lambda d: d.update(data_offset=True),
    "text": lambda d: d.update(images_seen="20"),
    "list": lambda d: d.update(updates=[4]),
    "network": lambda d: d.update(updates={"nat": 4}),
    "scale": lambda d: d["loss_scales"]["net"].pop("scale"),
    "scale is nan": lambda d: d["loss_scales"]["net"].update(scale=float("nan")),
    "scales": lambda d: d.update(loss_scales={"nat": d["loss_scales"]["net"]}),
    "no step": lambda d: d.pop("step"),
    "no files": lambda d: d.update(files={}),
    "no files entry": lambda d: d.pop("files"),
    "outside": lambda d: d.update(files={f"../{OLDER}/{SHARD}": d["files"][SHARD]}),
    "a rank too many": lambda d: d["files"].update({"rank_00001.safetensors": d["files"][SHARD]}),
    "size": lambda d: d["files"][SHARD].update(size=d["files"][SHARD]["size"] + 1),
    "hash": lambda d: d["files"][SHARD].update(sha256="0" * 64),
    "no hash": lambda d: d["files"][SHARD].pop("sha256"),
    "version": lambda d: d.update(format_version=3),
    "no version": lambda d: d.pop("format_version"),
}


@pytest.mark.parametrize("keep_checksum", [True, False])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_a_changed_marker_is_rejected_by_name(
    run_dir: Path, edit: Callable[[dict[str, Any]], object], keep_checksum: bool
) -> None:
    marker = run_dir / "checkpoints" / NEWER / MARKER
    change(marker, edit, keep_checksum=keep_checksum)
    name, said = find(run_dir)
    assert name == OLDER
    assert str(marker.parent) in said
    assert "\n" not in said


def test_every_changed_digit_is_found(run_dir: Path) -> None:
    marker = run_dir / "checkpoints" / NEWER / MARKER
    content = marker.read_bytes()
    digits = [k for k, byte in enumerate(content) if chr(byte).isdigit()]
    for k in digits:
        other = b"%d" % ((content[k] - ord("0") + 1) % 10)
        marker.write_bytes(content[:k] + other + content[k + 1 :])
        assert find(run_dir)[0] == OLDER, content[k - 20 : k + 1]
    assert len(digits) > 60


BROKEN = [b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":1}x']


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_marker_that_is_none_is_rejected_by_name(run_dir: Path, content: bytes) -> None:
    marker = run_dir / "checkpoints" / NEWER / MARKER
    marker.write_bytes(content)
    name, said = find(run_dir)
    assert (name, str(marker) in said, len(said) < 500) == (OLDER, True, True)


def test_markers_without_checksum_and_with_more_fields_are_read(run_dir: Path) -> None:
    marker = run_dir / "checkpoints" / NEWER / MARKER
    change(marker, lambda d: d.update(later="x"), keep_checksum=False)
    assert find(run_dir) == (NEWER, "")
    document = json.loads(marker.read_text())
    marker.write_text(json.dumps({**document, "checksum": checksum(document)}))
    assert find(run_dir) == (NEWER, "")
    change(marker, lambda d: d.pop("loss_scales"), keep_checksum=False)
    assert find(run_dir) == (NEWER, "")


def _resealed(directory: Path, content: bytes) -> None:
    """Replace a shard's file and make the marker fit it, as someone may who means harm."""
    (directory / SHARD).write_bytes(content)
    marker = json.loads((directory / MARKER).read_text())
    digest = hashlib.sha256(content).hexdigest()
    marker["files"][SHARD] = {"size": len(content), "sha256": digest}
    del marker["checksum"]
    marker["checksum"] = checksum(marker)
    (directory / MARKER).write_text(json.dumps(marker))


def _header(text: str, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


def _swap_shards(directory: Path) -> None:
    shutil.copy(directory.with_name(OLDER) / SHARD, directory / SHARD)


def _become(make: Callable[[Path], object], name: str = SHARD) -> Callable[[Path], object]:
    def damage(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return damage


ENTRY = '{"net/weight/w@0": {"dtype": "F32", "shape": [%s], "data_offsets": [0, %d]}}'
DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda d: os.truncate(d / SHARD, 20),
    "empty": lambda d: os.truncate(d / SHARD, 0),
    "longer": lambda d: os.truncate(d / SHARD, 10_000),
    "swapped": _swap_shards,
    "missing": lambda d: (d / SHARD).unlink(),
    "directory": _become(Path.mkdir),
    "pipe": _become(os.mkfifo),
    "loop": _become(lambda path: path.symlink_to(path)),
    "no marker": lambda d: (d / MARKER).unlink(),
    "marker directory": _become(Path.mkdir, MARKER),
    "marker pipe": _become(os.mkfifo, MARKER),
    "marker loop": _become(lambda path: path.symlink_to(path), MARKER),
    "header of 2^63": lambda d: _resealed(d, (1 << 63).to_bytes(8, "little") + b"{}"),
    "header is no JSON": lambda d: _resealed(d, _header("x" * 100)),
    "absurd shape": lambda d: _resealed(d, _header(ENTRY % (1 << 60, 16), bytes(16))),
    "two dimensions": lambda d: _resealed(d, _header(ENTRY % ("2, 2", 16), bytes(16))),
    "a scalar": lambda d: _resealed(d, _header(ENTRY % ("", 4), bytes(4))),
    "foreign names": lambda d: _resealed(
        d, _header((ENTRY % (4, 16)).replace("w@0", "w@x"), bytes(16))
    ),
    "no tensors": lambda d: _resealed(d, _header("{}")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_files_lead_to_the_older_checkpoint(
    run_dir: Path, damage: Callable[[Path], object]
) -> None:
    directory = run_dir / "checkpoints" / NEWER
    damage(directory)
    name, said = find(run_dir)
    assert (name, str(directory) in said) == (OLDER, True)
    damage_older = (run_dir / "checkpoints" / OLDER / SHARD).unlink
    damage_older()
    with pytest.raises(CheckpointError, match=f"is complete: .*{NEWER}.*; .*{OLDER}.*backup"):
        find_newest_complete(run_dir, ALONE)


def test_a_renamed_checkpoint_is_rejected(run_dir: Path) -> None:
    directory = run_dir / "checkpoints" / NEWER
    renamed = directory.rename(directory.with_name(f"{30:012d}"))
    assert find(run_dir) == (OLDER, f"{renamed / MARKER} is of 20 images: the directory was"
                             " renamed, or the marker is another checkpoint's")  # fmt: skip


def test_what_is_not_called_like_a_checkpoint_is_not_one(run_dir: Path) -> None:
    for name in ("20", f"{NEWER}.bak", f"{NEWER} (copy)", "2026-11-27"):
        shutil.copytree(run_dir / "checkpoints" / NEWER, run_dir / "checkpoints" / name)
    (run_dir / "checkpoints" / "9 lives").touch()
    assert find(run_dir) == (NEWER, "")
    assert [path.name for path in committed(run_dir)] == [OLDER, NEWER]
    write(run_dir, 30)
    assert find(run_dir) == (f"{30:012d}", "")


def test_a_read_that_fails_for_a_moment_is_tried_again(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transient, "DELAYS", (0.0, 0.0))
    original, failures = hashlib.file_digest, [116, 5]

    def fail_twice(*arguments: Any) -> Any:
        if failures:
            raise OSError(failures.pop(), "for a moment")
        return original(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", fail_twice)
    assert find(run_dir) == (NEWER, "")
    failures[:] = [5, 5, 5]
    name, said = find(run_dir)
    assert (name, f"{NEWER}/{SHARD} cannot be read: for a moment" in said) == (OLDER, True)
