"""The evaluation commands end to end, on fake models and tiny image sets."""

from __future__ import annotations

import csv
import functools
import json
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import __main__ as cli
from evaluation import evaluate, request
from evaluation.digest import short_hash
from evaluation.features import store
from evaluation.features.extract import extract
from evaluation.image_sets.image_set import open_images
from models.rdm.edm_sampler import EdmSampler
from tests.fuzz.subjects.models import make_snapshot
from tests.slurm.project import make_run


def write_images(directory: Path, count: int, size: int = 32, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    directory.mkdir(parents=True)
    for i in range(count):
        base = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(base).resize((size, size)).save(directory / f"{i:03d}.png")
    return directory


def test_images_against_themselves_are_at_distance_zero(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 12)
    reference, out = tmp_path / "ref.npz", tmp_path / "result.json"
    assert cli.main(["reference", str(images), str(reference), "--batch-size", "5"]) == 0
    command = ["run", str(images), "--reference", str(reference), "--out", str(out)]
    assert cli.main(command) == 0
    result = json.loads(out.read_text())
    assert set(result["metrics"]) == {
        f"fd_effnet_lite0_{tap}" for tap in ("block4", "block10", "block15", "head")
    }
    for metric in result["metrics"].values():
        assert abs(metric["values"]["distance"]) < 1e-6
        assert (metric["n_gen"], metric["n_ref"]) == (12, 12)


def test_metrics_of_a_part_of_a_large_set_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "STREAMING_IMAGES", 10)
    images = write_images(tmp_path / "images", 14)
    monkeypatch.setattr(evaluate, "extract", functools.partial(extract, num_kept=8))
    monkeypatch.setattr(request, "selected_by", functools.partial(store.selected_by, num_kept=8))
    out = tmp_path / "result.json"
    command = ["run", str(images), "--reference", str(images), "--out", str(out)]
    assert cli.main([*command, "--metrics", "fd:block4,pr:block4,kid:block4"]) == 0
    assert "Of 8 of the 14 images: pr:block4, kid:block4." in capsys.readouterr().out
    assert cli.main(["table", str(out), "--format", "csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    sizes = {name: row[f"images of {name}_effnet_lite0_block4"] for name in ("fd", "pr", "kid")}
    assert sizes == {"fd": "14", "pr": "8", "kid": "8"}
    old = json.loads(out.read_text())
    del old["made_of"]["selection"], old["checksum"]  # an older version took every k-th image
    old["identity"] = short_hash(old["made_of"])
    out.write_text(json.dumps(old))
    assert cli.main([*command, "--metrics", "fd:block4,prdc:block4"]) == 2
    assert "(selection is None, not stratified)" in capsys.readouterr().err


def test_a_second_run_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 6)
    reference, out = tmp_path / "ref.npz", tmp_path / "result.json"
    commands = [
        ["reference", str(images), str(reference)],
        ["run", str(images), "--reference", str(reference), "--out", str(out)],
    ]
    assert [cli.main(command) for command in commands] == [0, 0]
    before = out.read_bytes()
    from evaluation.detectors.base import Detector

    def fail(*_: object) -> None:
        raise AssertionError("the detector ran again")

    monkeypatch.setattr(Detector, "__call__", fail)
    capsys.readouterr()
    assert [cli.main(command) for command in commands] == [0, 0]
    assert "reused" in capsys.readouterr().out
    assert out.read_bytes() == before


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batch_size_changes_nothing_that_matters(tmp_path: Path, batch_size: int) -> None:
    images = write_images(tmp_path / "images", 7)
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path, size in zip(paths, (7, batch_size), strict=True):
        arguments = ["reference", str(images), str(path), "--batch-size", str(size)]
        assert cli.main(arguments) == 0
    with np.load(paths[0]) as a, np.load(paths[1]) as b:
        np.testing.assert_allclose(a["mu"], b["mu"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a["sigma"], b["sigma"], rtol=1e-4, atol=1e-6)


def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert cli.main(["reference", str(empty), str(tmp_path / "r.npz")]) == 2
    error = capsys.readouterr().err
    assert "holds no images" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("setting", ["churn.noise=1.1", "guidance.sigma_max=9"])
def test_sampler_settings_without_effect_are_rejected(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = make_run(tmp_path / "run") / "snapshots" / f"{8:012d}"
    command = ["sample", str(snapshot), "--out", str(tmp_path / "out"), f"sampling.{setting}"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert f"sampling.{setting} has no effect: no level" in error.replace("9.0", "9")
    assert not (tmp_path / "out").exists()


def test_mixed_sizes_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", 3)
    Image.new("RGB", (16, 20)).save(images / "odd.png")
    assert cli.main(["reference", str(images), str(tmp_path / "r.npz")]) == 2
    assert "odd.png is 16x20 pixels, others are 32x32" in capsys.readouterr().err


def test_grey_images_count_as_rgb_and_alpha_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 3)
    Image.new("L", (32, 32), 80).save(images / "grey.png")
    assert cli.main(["reference", str(images), str(tmp_path / "r.npz")]) == 0
    Image.new("RGBA", (32, 32)).save(images / "alpha.png")
    assert cli.main(["reference", str(images), str(tmp_path / "r2.npz")]) == 2
    assert "alpha.png has mode RGBA" in capsys.readouterr().err


def test_classes_are_sub_directories_unless_a_table_lists_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / "directory" / name, 2)
    assert labels_of(tmp_path / "directory") == [0, 0, 1, 1]
    table = {"labels": [["cat/000.png", 7], ["cat/001.png", 8], ["dog/000.png", 9]]}
    (tmp_path / "directory" / "dataset.json").write_text(json.dumps(table))
    assert labels_of(tmp_path / "directory") is None  # one image has no class
    table["labels"].append(["dog/001.png", 7])
    (tmp_path / "directory" / "dataset.json").write_text(json.dumps(table))
    assert labels_of(tmp_path / "directory") == [7, 8, 9, 7]
    with zipfile.ZipFile(tmp_path / "edm.zip", "w") as archive:
        for path in (tmp_path / "directory").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "directory").as_posix())
    assert labels_of(tmp_path / "edm.zip") == [7, 8, 9, 7]
    for name in ("000000", "001000"):
        write_images(tmp_path / "numbered" / name, 1)
    assert labels_of(tmp_path / "numbered") is None
    (tmp_path / "directory" / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match=r"dataset\.json cannot be read"):
        open_images(tmp_path / "directory")


def labels_of(path: Path) -> list[int] | None:
    images = open_images(path)
    labels = images.labels(range(len(images)))
    return None if labels is None else labels.tolist()


def test_unfinished_samples_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 3)
    (images / "samples.json").write_text(json.dumps({"complete": False}))
    assert cli.main(["reference", str(images), str(tmp_path / "r.npz")]) == 2
    assert "being written by another job" in capsys.readouterr().err


def test_a_reference_of_another_preprocessing_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 3)
    reference = tmp_path / "ref.npz"
    assert cli.main(["reference", str(images), str(reference), "--pipeline", "half_pixel224"]) == 0
    out = str(tmp_path / "o.json")
    assert cli.main(["run", str(images), "--reference", str(reference), "--out", out]) == 2
    assert "preprocessing is half_pixel224, not half_pixel112" in capsys.readouterr().err


def test_a_tampered_weights_file_shows_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 3)
    weights = tmp_path / "weights.pth"
    torch.save({"_fc.bias": torch.zeros(1)}, weights)
    arguments = ["reference", str(images), str(tmp_path / "r.npz"), "--weights", str(weights)]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "has sha256" in error
    assert "expected 579344248a93" in error


def test_samples_that_are_not_finite_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights are checked when they are read; finite ones may lead to others all the same."""
    make_snapshot(tmp_path / "model", 0)
    command = ["sample", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    broken = torch.full((2, 3, 8, 8), torch.nan)
    with mock.patch.object(EdmSampler, "generate", return_value=broken):
        assert cli.main([*command, "--seeds", "0-1", "--batch-size", "2"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/model draws samples that are not finite (seeds 0 to 1)" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").rglob("*.png"))
