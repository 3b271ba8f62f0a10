from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines import commands
from data_pipelines.__main__ import main
from data_pipelines.bench import measure_all
from data_pipelines.packed.beton import BETON_RECORD
from data_pipelines.packed.check import check
from data_pipelines.packed.manifest import BETON, read_manifest, write_index, write_manifest
from data_pipelines.packed.reader import ShardedImages
from tests.data_sets import damage, encoded, packed_set, smooth_pixels, write_class_dirs
from tests.paths import ROOT

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    packed_set(write_class_dirs(tmp_path / "source"), tmp_path / "set")
    return tmp_path / "set"


def test_intact_set_passes_with_its_moments(dataset: Path, capsys: Capture) -> None:
    report = check(dataset)
    assert report.problems == []
    images = ShardedImages(dataset)
    pixels = np.stack([images.decode(index).numpy() for index in range(60)]).astype(np.float64)
    images.close()
    mean, std = report.mean_and_std()
    assert np.allclose(mean, pixels.mean(axis=(0, 2, 3)))
    assert np.allclose(std, pixels.std(axis=(0, 2, 3)))
    assert main(["check", str(dataset)]) == 0
    printed = capsys.readouterr().out
    assert "intact: every byte is as packed" in printed
    assert "classes have 20 to 20 images" in printed
    assert (
        "a batch of 60 has 3 of 3 classes in a full shuffle (local sets),"
        " 3 in a window of 60 (remote sets)\n" in printed
    )


def test_a_window_that_mixes_classes_badly_is_said(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Sorted by class, and shuffled within windows of one image, batches have one or two."""
    write_manifest(dataset, dataclasses.replace(read_manifest(dataset), shuffle_window=1))
    monkeypatch.setattr(commands, "COUNTED_BATCH", 12)
    assert main(["check", str(dataset), "--no-decode"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "a batch of" in line]
    assert line.startswith("a batch of 12 has 3 of 3 classes in a full shuffle (local sets)")
    assert line.endswith(
        " in a window of 1 (remote sets); warning: to train on it, copy it to local disks, or raise"
        " data.shuffle_window"
    )


@pytest.mark.parametrize("decode", [True, False])
def test_flipped_bits_are_found_with_shard_and_sample(dataset: Path, decode: bool) -> None:
    damage(dataset, [3, 40])
    problems = check(dataset, workers=2, decode=decode).problems
    assert [line.split(" (at byte")[0] for line in problems] == ["sample 3", "sample 40"]
    assert "of shards/000002.tar" in problems[1]


def test_truncation_and_loss_are_found(dataset: Path, capsys: Capture) -> None:
    with open(dataset / "shards/000001.tar", "r+b") as file:
        file.truncate(30_000)
    (dataset / "shards/000003.tar").unlink()
    problems = check(dataset).problems
    assert problems[0].startswith("shards/000001.tar: 30000 bytes, the manifest says")
    assert problems[1].startswith("sample ")
    assert problems[-1] == "shards/000003.tar: the file is missing"
    assert main(["check", str(dataset), "--no-decode"]) == 2
    assert "problems in" in capsys.readouterr().err


def test_damage_outside_the_images_is_found(dataset: Path) -> None:
    with open(dataset / "shards/000000.tar", "r+b") as file:
        file.write(b"9")
    assert check(dataset).problems == [
        "shards/000000.tar: damaged outside the images (tar headers or labels)"
    ]


def test_damaged_index_is_found(dataset: Path) -> None:
    content = bytearray((dataset / "index.npy").read_bytes())
    content[-1] ^= 1
    (dataset / "index.npy").write_bytes(content)
    assert check(dataset).problems[0] == "index.npy: its sha256 is not the one in the manifest"


def test_labels_are_counted_anew(dataset: Path) -> None:
    manifest, index = read_manifest(dataset), np.load(dataset / "index.npy")
    index["label"][7] = 2
    sha256 = write_index(dataset, index)
    write_manifest(dataset, dataclasses.replace(manifest, index_sha256=sha256))
    assert check(dataset).problems == [
        "index.npy: its labels do not match the counts in the manifest"
    ]


def test_contact_sheet(dataset: Path, tmp_path: Path) -> None:
    assert main(["preview", str(dataset), str(tmp_path / "sheet.png"), "--count", "6"]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 34, 2 * 34)


@pytest.mark.parametrize("name", ["notes.png", "photograph.jpg"])
def test_a_contact_sheet_replaces_nothing(
    dataset: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    for content in (b"notes", encoded(smooth_pixels(1), "JPEG")):
        (tmp_path / name).write_bytes(content)
        assert main(["preview", str(dataset), str(tmp_path / name)]) == 2
        assert f"{name} exists, holds something else" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == content
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


def test_a_beton_replaces_only_a_beton(dataset: Path, capsys: Capture) -> None:
    for content in (b"notes", b"PK\3\4" + bytes(5000)):
        (dataset / BETON).write_bytes(content)
        assert main(["beton", str(dataset)]) == 2
        assert f"{BETON} is not a beton of ours and is left as it is" in capsys.readouterr().err
        assert (dataset / BETON).read_bytes() == content
    (dataset / BETON).unlink()
    assert main(["beton", str(dataset)]) == 0
    (dataset / BETON_RECORD).unlink()  # as a kill leaves it
    (dataset / BETON).write_bytes((dataset / BETON).read_bytes()[:2000])
    assert main(["beton", str(dataset)]) == 0


def test_bench_measures_every_backend(dataset: Path, capsys: Capture) -> None:
    assert main(["bench", str(dataset), "--seconds", "0.05", "--batch-size", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bare Pillow")
    assert [line.split()[0].rstrip(":") for line in lines[1:]] == ["dali", "pillow", "ffcv"]
    rates = list(
        measure_all(dataset, resolution=16, batch_size=8, workers=1, seconds=0.05, device="cpu")
    )
    assert len(rates) == 4


def test_bench_streams_from_urls(dataset: Path, tmp_path: Path, capsys: Capture) -> None:
    url = f"pipe:cat {dataset}/{{}}"
    done = subprocess.run(
        [sys.executable, "-m", "data_pipelines", "bench", url, "--seconds", "0.05"],
        cwd=ROOT,
        env={**os.environ, "RELAYWAVE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["bare", "dali", "pillow", "ffcv:"]
    for command in ("info", "check", "beton"):
        with pytest.raises(SystemExit):
            main([command, url])
        assert f"{url} is a URL; copy the set to this machine" in capsys.readouterr().err


def test_bench_rejects_what_it_cannot_measure(dataset: Path, capsys: Capture) -> None:
    assert main(["bench", str(dataset), "--resolution", "24"]) == 2
    assert main(["bench", str(dataset), "--device", "gpu9"]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    first, second = captured.err.splitlines()
    assert "resolution=24 does not divide the 32 pixels" in first
    assert second.startswith("error: device=gpu9: ")


def test_number_of_classes(dataset: Path, capsys: Capture) -> None:
    assert main(["info", str(dataset), "--classes"]) == 0
    assert capsys.readouterr().out == "3\n"
