"""Samples and results of another device, precision or TF32 setting are not joined to ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation import __main__ as cli
from evaluation.detectors.base import PYTORCH_TF32
from evaluation.samples.generate import GeneratedImages, SampleSpec, unlike
from models.snapshot import read_snapshot
from tests.evaluation.test_commands import write_images
from tests.evaluation.test_ranks import write_generator

SEEDS = ["--seeds", "0-3", "--batch-size", "2"]
OVERRIDE = "generator.compute_dtype=bfloat16"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    write_generator(tmp_path / "model", 0)
    write_images(tmp_path / "images", 4, size=16)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    torch.set_float32_matmul_precision("highest")


COMMANDS = {
    "out": ["sample", "model", "--out", "out", *SEEDS],
    "r.json": ["run", "model", "--reference", "images", "--out", "r.json", *SEEDS,
               "--metrics", "fd:block4"],
}  # fmt: skip
"""Commands by what they write."""


def record_of(out: str) -> Path:
    return Path(out) if out.endswith(".json") else Path(out) / "samples.json"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file as another version, or machine, would have written it."""
    document = json.loads(path.read_text())
    change(document)
    document.pop("checksum", None)
    path.write_text(json.dumps(document))


def drawn_in(document: dict[str, Any]) -> dict[str, Any]:
    identity: dict[str, Any] = document["images" if "images" in document else "identity"]
    return identity


def drawn_on_a_gpu(document: dict[str, Any]) -> None:
    drawn_in(document)["device"] = "cuda"


def drawn_before_it_was_in_the_identity(document: dict[str, Any]) -> None:
    del drawn_in(document)["tf32"]


def drawn_before_it_was_recorded(document: dict[str, Any]) -> None:
    del drawn_in(document)["tf32"], document["tf32"]


@pytest.mark.parametrize("out", COMMANDS)
@pytest.mark.parametrize(
    ("said", "override", "tf32", "change"),
    [
        ("generator.compute_dtype is float32, not bfloat16", OVERRIDE, False, dict),
        ("device is cuda, not cpu", "", False, drawn_on_a_gpu),
        ("TF32.matrix_products is False, not True", "", True, dict),
        ("TF32.matrix_products is False, not True", "", True, drawn_before_it_was_in_the_identity),
    ],
)
def test_other_arithmetic_is_said_and_nothing_joined(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    out: str,
    said: str,
    override: str,
    tf32: bool,
    change: Callable[[dict[str, Any]], object],
) -> None:
    assert cli.main(COMMANDS[out]) == 0
    edit(record_of(out), change)
    before = record_of(out).read_bytes()
    capsys.readouterr()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    more = [override] if override else []
    assert cli.main([*COMMANDS[out], *more]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert record_of(out).read_bytes() == before


@pytest.mark.parametrize("out", COMMANDS)
@pytest.mark.parametrize(
    "change", [dict, drawn_before_it_was_in_the_identity, drawn_before_it_was_recorded]
)
def test_what_older_versions_wrote_is_continued(
    place: Path, out: str, change: Callable[[dict[str, Any]], object]
) -> None:
    assert cli.main(COMMANDS[out]) == 0
    edit(record_of(out), change)
    assert cli.main(COMMANDS[out]) == 0


def test_features_of_other_tf32_settings_are_computed_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []
    draw = GeneratedImages.draw
    monkeypatch.setattr(GeneratedImages, "draw", lambda *a: (drawn.append(a), draw(*a))[1])
    assert cli.main(COMMANDS["r.json"]) == 0
    assert len(drawn) == 2
    another = [*COMMANDS["r.json"], "--out", "other.json"]
    assert cli.main(another) == 0
    assert len(drawn) == 2
    torch.set_float32_matmul_precision("high")
    assert cli.main([*another, "--replace"]) == 0
    assert len(drawn) == 4
    assert json.loads(Path("other.json").read_text())["tf32"]["matrix_products"] is True


def test_the_identity_has_device_precision_and_tf32(place: Path) -> None:
    plain, half = read_snapshot(place / "model"), read_snapshot(place / "model", [OVERRIDE])
    spec = SampleSpec((0, 1))
    ours = GeneratedImages([plain], spec).identity
    assert ours["tf32"] == PYTORCH_TF32
    others = [GeneratedImages([half], spec), GeneratedImages([plain], spec, "cuda")]
    assert len({ours["digest"], *(other.identity["digest"] for other in others)}) == 3
    more = GeneratedImages([plain], SampleSpec((0, 1, 2))).identity
    assert unlike(ours, more) == ""
