"""Snapshots: what may be replaced, what their description may say, and who may read them."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from models.rdm.config import EdmConfig
from models.rdm.unet import UNetConfig
from models.safe_files.atomic import NotOurs
from models.snapshot import Snapshot, SnapshotError, read_snapshot, write_snapshot


def write(path: Path, images_seen: int = 5) -> Snapshot:
    unet = UNetConfig(resolution=8, model_channels=8, channel_mult=(1,), num_blocks=1)
    objective = EdmConfig(unet=unet)
    torch.manual_seed(0)
    weights = objective.build().build_networks()["denoiser"].state_dict()
    return write_snapshot(
        path,
        weights,
        objective=objective,
        network="denoiser",
        images_seen=images_seen,
        ema="none",
        provenance={"run": "test"},
    )


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


OURS = ["snapshot.json", "weights.safetensors"]


def test_colleagues_can_read_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    write(tmp_path / "new")
    os.umask(before)
    modes = {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "new").iterdir()}
    assert modes == {"0o640"}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o750


def test_snapshots_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new", tmp_path / "new", tmp_path / "empty"):
        write(path, 7)
        assert read_snapshot(path).images_seen == 7
        assert names(path) == OURS
    (tmp_path / "link").symlink_to(tmp_path / "new")
    write(tmp_path / "link", 9)
    assert (tmp_path / "link").is_symlink()
    assert read_snapshot(tmp_path / "new").images_seen == 9
    assert names(tmp_path) == ["empty", "link", "new"]


FOREIGN = {
    "thesis": {"thesis.tex": "x"},
    "run": {"config.json": "{}", "snapshots/0/snapshot.json": "{}"},
    "snapshots": {"000/snapshot.json": "{}", "000/weights.safetensors": "x"},
    "with notes": {"snapshot.json": "OURS", "weights.safetensors": "x", "notes.txt": "x"},
    "weights alone": {"weights.safetensors": "x"},
    "other json": {"snapshot.json": "[]", "weights.safetensors": "x"},
    "other object": {"snapshot.json": "{}", "weights.safetensors": "x"},
    "directories": {"snapshot.json/a": "x", "weights.safetensors/b": "x"},
    "hidden": {".git/HEAD": "x"},
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("linked", [False, True])
def test_nothing_else_is_replaced(tmp_path: Path, kind: str, linked: bool) -> None:
    ours = (write(tmp_path / "ours").path / "snapshot.json").read_text()
    out = tmp_path / "out"
    for name, text in FOREIGN[kind].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(ours if text == "OURS" else text)
    given = tmp_path / "link" if linked else out
    if linked:
        given.symlink_to(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    listing = names(tmp_path)
    with pytest.raises(NotOurs, match="holds other things than a snapshot"):
        write(given)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert names(tmp_path) == listing


def rejected(path: Path, text: str | bytes) -> str:
    (path / "snapshot.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SnapshotError) as caught:
        read_snapshot(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "3", '"x"', "{}", "[" * 10**5, b"\xff\xfe\x00", '{"a": 1}']
)
def test_other_documents_are_no_snapshot(tmp_path: Path, content: str | bytes) -> None:
    write(tmp_path / "s")
    assert "is not a snapshot" in rejected(tmp_path / "s", content)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("images_seen", ["many", None, -1, 1.5, 10**30, True, []]),
        ("network", [3, None, []]),
        ("ema", [None, {}]),
        ("weights_sha256", ["x", None, 3, "A" * 64]),
        ("provenance", [[], "x", None]),
        ("objective", [[], None, {}, {"type": "Nothing"}, {"type": "EdmConfig"}, "x"]),
        ("format_version", [0, 2, None, "1", True, []]),
    ],
)
def test_wrong_values_are_one_line(tmp_path: Path, field: str, values: list[Any]) -> None:
    document = json.loads((write(tmp_path / "s").path / "snapshot.json").read_text())
    del document["checksum"]
    for value in values:
        rejected(tmp_path / "s", json.dumps(document | {field: value}))
    if field != "provenance":
        del document[field]
        rejected(tmp_path / "s", json.dumps(document))


def test_old_and_newer_descriptions_are_read(tmp_path: Path) -> None:
    snapshot = write(tmp_path / "s")
    document = json.loads((tmp_path / "s/snapshot.json").read_text())
    del document["checksum"]  # as before there was one
    (tmp_path / "s/snapshot.json").write_text(json.dumps(document))
    assert read_snapshot(tmp_path / "s") == snapshot
    (tmp_path / "s/snapshot.json").write_text(json.dumps(document | {"colour": "red"}))
    assert read_snapshot(tmp_path / "s") == snapshot


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    snapshot = write(tmp_path / "s")
    file, rng = tmp_path / "s/snapshot.json", random.Random(0)
    content = file.read_bytes()
    for _ in range(200):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        try:
            read = read_snapshot(tmp_path / "s")
        except SnapshotError:
            continue
        assert read == snapshot


def test_unknown_networks_are_named(tmp_path: Path) -> None:
    document = json.loads((write(tmp_path / "s").path / "snapshot.json").read_text())
    del document["checksum"]
    (tmp_path / "s/snapshot.json").write_text(json.dumps(document | {"network": "critic"}))
    with pytest.raises(SnapshotError, match="holds the network 'critic', but its objective has"):
        read_snapshot(tmp_path / "s").load_network()
