"""Snapshots: what may be replaced, what their description may say, and who may read them."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.rdm.config import EdmConfig
from models.rdm.unet import UNetConfig
from models.safe_files.atomic import NotOurs
from models.safe_files.transient import file_sha256
from models.snapshot import (
    Snapshot,
    SnapshotError,
    load_sampler,
    read_snapshot,
    write_snapshot,
)
from tests.tiny import tiny_edm, tiny_relay, tiny_wavediff


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
    with pytest.raises(SnapshotError, match="is of the network 'critic', but its objective has"):
        read_snapshot(tmp_path / "s").load_network()


def _with_weights(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Snapshot:
    """Replace a snapshot's weights by others, with a description that agrees."""
    snapshot = write(path)
    weights = {name: change(values) for name, values in snapshot.load_weights().items()}
    save_file(weights, path / "weights.safetensors")
    document = json.loads((path / "snapshot.json").read_text())
    del document["checksum"]
    document["weights_sha256"] = file_sha256(path / "weights.safetensors")
    (path / "snapshot.json").write_text(json.dumps(document))
    return read_snapshot(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * float("nan"), "weights are NaN or infinite"),
        (lambda w: w + float("inf"), "weights are NaN or infinite"),
        (lambda w: w.half(), "are float16, expected float32"),
        (lambda w: w.long(), "are int64, expected float32"),
        (lambda w: w[None].contiguous(), "other shape"),
    ],
)
def test_weights_that_cannot_be_used_are_rejected(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    with pytest.raises(SnapshotError, match=message) as caught:
        _with_weights(tmp_path / "s", change).load_network()
    assert str(tmp_path / "s") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_networks_that_are_not_sampled_from_are_rejected(tmp_path: Path) -> None:
    objective = tiny_wavediff().objective
    weights = objective.build().build_networks()["discriminator"].state_dict()
    snapshot = write_snapshot(
        tmp_path / "s", weights, objective=objective, network="discriminator", images_seen=5,
        ema="none", provenance={},
    )  # fmt: skip
    with pytest.raises(SnapshotError, match="but images are sampled from the generator"):
        load_sampler([snapshot])


@pytest.mark.parametrize(
    "change",
    ["process.sigma_data=1", "process.p_mean=0", "gradient_scale=2", "unet.dropout=0.5",
     "unet.attn_resolutions=[8]", "augment_probability=0.1"],
)  # fmt: skip
def test_overrides_that_sampling_does_not_read_are_rejected(tmp_path: Path, change: str) -> None:
    write(tmp_path / "s")
    changes = [change, "unet.augment_dim=9"] if "augment" in change else [change]
    with pytest.raises(SnapshotError, match="cannot be changed afterwards"):
        read_snapshot(tmp_path / "s", changes)
    for allowed in (
        "sampling.steps=3",
        "unet.compute_dtype=bfloat16",
        "unet.recompute_blocks=true",
    ):
        read_snapshot(tmp_path / "s", [allowed])


REJECTED_NOW = {
    "steps=1 leave no level": (tiny_relay, {"steps": 1}),
    "steps=2 leave no level": (tiny_relay, {"steps": 2}),
    "churn noise=-1.0": (tiny_edm, {"churn": {"noise": -1}}),
    "rho=0.01": (tiny_edm, {"rho": 0.01}),
}
"""What older versions wrote as settings of samplers, by what is said of it."""


@pytest.mark.parametrize("reason", REJECTED_NOW)
def test_snapshots_with_samplers_that_are_rejected_now_load_with_the_defaults(
    tmp_path: Path, reason: str
) -> None:
    make, old = REJECTED_NOW[reason]
    objective = make().objective
    networks = objective.build().build_networks()
    snapshot = write_snapshot(
        tmp_path / "old", networks["denoiser"].state_dict(), objective=objective,
        network="denoiser", images_seen=5, ema="none", provenance={},
    )  # fmt: skip
    description = snapshot.path / "snapshot.json"
    document = json.loads(description.read_text())
    document["objective"]["sampling"] = document["objective"]["sampling"] | old
    del document["checksum"]
    description.write_text(json.dumps(document))
    with pytest.warns(UserWarning, match=rf"snapshot\.json.*{re.escape(reason)}.*defaults are"):
        read = read_snapshot(snapshot.path, ["sampling.steps=7"])
    sampling = type(objective.sampling)(steps=7)
    assert read.objective == dataclasses.replace(objective, sampling=sampling)
    read.load_network()
    document["objective"]["unet"]["resolution"] = -1  # that is no matter of the sampler
    description.write_text(json.dumps(document))
    with pytest.raises(SnapshotError, match="does not parse"):
        read_snapshot(snapshot.path)
