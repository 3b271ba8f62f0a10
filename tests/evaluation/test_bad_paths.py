"""Paths that lead nowhere are named first, with the nearest thing that is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation import __main__ as cli
from evaluation.image_sets import image_set
from tests.evaluation.test_commands import write_images
from tests.evaluation.test_ranks import write_generator

RUN = ["run", "images", "--reference", "ref.npz", "--out", "r.json"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_images(tmp_path / "images", 3, size=16)
    write_generator(tmp_path / "runs" / "cifar" / "snapshots" / f"{500:012d}", 500)
    (tmp_path / "ref.npz").touch()
    (tmp_path / "result.json").touch()
    (tmp_path / "weights.pth").touch()
    (tmp_path / "link").symlink_to("gone")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    return tmp_path


SNAPSHOT = f"runs/cifar/snapshots/{500:012d}"
CASES = [
    ("image does not exist; images is there: did you mean it?", ["run", "image", *RUN[2:]]),
    (f"runs/cifr/snapshots/{500:012d} does not exist; {SNAPSHOT} is there: did you mean it?",
     ["sample", f"runs/cifr/snapshots/{500:012d}", "--out", "s"]),
    ("runs/lr=1/x does not exist", ["sample", "runs/lr=1/x", "--out", "s"]),
    ("ref.npy does not exist; ref.npz is there: did you mean it?",
     [*RUN, "--reference", "ref.npy"]),
    ("rf.npz does not exist; ref.npz is there",
     [*RUN, "--reference", "moments=ref.npz,features=rf.npz"]),
    ("file weight.pth cannot be read: it does not exist; weights.pth is there: did you",
     [*RUN, "--weights", "weight.pth"]),
    ("imagse does not exist; images is there", ["reference", "imagse", "o.npz"]),
    ("file weight.pth cannot be read: it does not exist; weights.pth is there",
     ["reference", "images", "o.npz", "--weights", "weight.pth"]),
    ("results.json does not exist; result.json is there", ["table", "results.json"]),
    ("runs/cifar10 does not exist; runs/cifar is there", ["compare", "runs/cifar10"]),
    ("imags does not exist; images is there", ["sheet", "classes", "imags", "--out", "s.png"]),
    ("imags does not exist; images is there",
     ["sheet", "realism", "images", "--reference", "imags", "--out", "s.png"]),
    ("runs/cifa does not exist; runs/cifar is there", ["gc", "runs/cifa"]),
    ("weight.pth does not exist; weights.pth is there",
     ["convert", "weight.pth", "o.safetensors"]),
    ("rex.npz does not exist; ref.npz is there",
     ["import", "rex.npz", "o.npz", "--pipeline", "tf1"]),
    ("rex.npz does not exist; ref.npz is there", ["export", "rex.npz", "o", "--format", "edm2"]),
    ("a/b/c does not exist; of its path, . is there", ["table", "a/b/c"]),
    ("link does not exist: it is a link to gone, which is not there", ["table", "link"]),
]  # fmt: skip


@pytest.mark.parametrize(("said", "command"), CASES)
def test_paths_that_lead_nowhere(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
    command: list[str],
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("images were listed first")

    monkeypatch.setattr(image_set, "_list_items", fail)
    if command[0] in ("run", "sample", "reference") and "weight.pth" not in command:
        assert cli.main([*command, "--dry-run"]) == 2
        assert said in capsys.readouterr().err
    if command[:2] == ["reference", "images"]:
        monkeypatch.undo()
        monkeypatch.chdir(place)
    assert cli.main(command) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_a_reference_that_does_not_record_its_number_of_images(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reference", "images", "full.npz"]) == 0
    with np.load("full.npz") as file:
        np.savez("foreign.npz", mu=file["mu"], sigma=file["sigma"])
    command = ["run", "images", "--reference", "foreign.npz", "--out", "o.json"]
    command += ["--reference-pipeline", "half_pixel112", "--metrics", "fd:block4"]
    command += ["--protocol", "wavediff_cifar10", "--detector", "effnet_lite0"]
    assert cli.main(command) == 0
    result = json.loads(Path("o.json").read_text())
    assert result["reference"]["n"] is None
    deviations = "; ".join(result["protocol"]["deviations"])
    assert "its file does not record how many images it was made of" in deviations
    assert "is 0" not in deviations
    assert "is 0" not in capsys.readouterr().out
