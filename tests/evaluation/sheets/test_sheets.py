"""Sheets show the images that they say they show, and replace nothing of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.runtime.world import init_world
from evaluation import __main__ as cli
from evaluation.detectors.base import Detector
from evaluation.metrics import nearest_neighbours
from evaluation.metrics.nearest_neighbours import neighbours
from evaluation.metrics.realism import realism
from evaluation.metrics.statistics import stratified
from evaluation.sheets.sheet import GAP, WIDE_GAP
from models.snapshot import write_snapshot
from models.wavediff.config import WaveDiffConfig
from models.wavediff.generator_config import GeneratorConfig
from tests.ranks import run_ranks

EDGE = 32


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))


def write_images(directory: Path, count: int, seed: int = 0) -> Path:
    """Write smooth images in two classes (subdirectories)."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        path = directory / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((EDGE, EDGE)).save(path)
    return directory


def sheet(kind: str, *arguments: str | Path, out: Path, code: int = 0) -> dict[str, Any]:
    command = ["sheet", kind, *map(str, arguments), "--out", str(out)]
    assert cli.main(command) == code
    if code:
        return {}
    record: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    assert record["sheet"] == kind
    return record


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def cell(out: Path, row: int, column: int, *, set_apart: bool = False) -> np.ndarray:
    left = column * (EDGE + GAP) + (WIDE_GAP - GAP if set_apart and column else 0)
    top = row * (EDGE + GAP)
    return pixels_of(out)[top : top + EDGE, left : left + EDGE]


def file_of(directory: Path, image: dict[str, Any]) -> np.ndarray:
    return pixels_of(directory / image["name"])


def test_samples_stand_beside_their_nearest_neighbours(tmp_path: Path) -> None:
    train, samples = write_images(tmp_path / "train", 20), tmp_path / "samples"
    samples.mkdir()
    sources = ("b/003.png", "a/016.png", "a/008.png")
    for number, source in enumerate(sources):  # memorised
        (samples / f"{number}.png").write_bytes((train / source).read_bytes())
    out = tmp_path / "sheet.png"
    options = ["--rows", "2", "--columns", "4"]
    record = sheet("neighbours", samples, "--reference", train, *options, out=out)
    assert len(record["rows"]) == 2
    for number, (row, chosen) in enumerate(zip(record["rows"], stratified(3, 2), strict=True)):
        sample, *near = row["images"]
        assert (sample["set"], sample["name"]) == (0, f"{chosen}.png")
        assert (near[0]["set"], near[0]["name"]) == (1, sources[chosen])
        assert near[0]["distance"] < 1e-3  # features round by what else is in their batch
        distances = [image["distance"] for image in near]
        assert distances == sorted(distances)
        assert len(near) == 3
        assert distances[1] > 1
        np.testing.assert_array_equal(
            cell(out, number, 0, set_apart=True), file_of(samples, sample)
        )
        for column, image in enumerate(near, 1):
            np.testing.assert_array_equal(
                cell(out, number, column, set_apart=True), file_of(train, image)
            )
    assert record["sets"][1]["path"] == str(train)
    assert record["settings"]["tap"] == "head"


def test_neighbours_are_those_of_all_pairs_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=(n, 5)).astype(np.float32) for n in (70, 331))
    y[300:310] = y[:10]  # equal points: the first comes first
    x[:10] = y[:10]
    squares = np.square(x[:, None].astype(np.float64) - y[None]).sum(2)
    order = np.argsort(squares, 1, kind="stable")[:, :6]
    for block in (16, 48, 2048):
        monkeypatch.setattr(nearest_neighbours, "BLOCK", block)
        distances, indices = neighbours(x, y, 6)
        np.testing.assert_array_equal(indices, order)
        expected = np.sqrt(np.take_along_axis(squares, order, 1))
        np.testing.assert_allclose(distances, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="dimensions"):
        realism(x, y[:, :4])


def test_realism_is_the_papers_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    gen, ref = (generator.normal(size=(n, 4)).astype(np.float32) for n in (60, 205))
    gen[7] = 40  # far away
    between = np.sqrt(np.square(ref[:, None].astype(np.float64) - ref[None]).sum(2))
    radii = np.sort(between, 1)[:, 3]  # itself is the first
    across = np.sqrt(np.square(gen[:, None].astype(np.float64) - ref[None]).sum(2))
    ratios = np.where(radii <= np.median(radii), radii / across, 0)
    for block in (64, 2048):
        monkeypatch.setattr(nearest_neighbours, "BLOCK", block)
        values, balls = realism(gen, ref)
        np.testing.assert_allclose(values, ratios.max(1), rtol=1e-9)
        np.testing.assert_array_equal(balls, ratios.argmax(1))
    assert values.argmin() == 7
    gen[3] = ref[int(radii.argmin())]
    assert realism(gen, ref)[0][3] == np.inf


def save_realism(gen: np.ndarray, ref: np.ndarray, path: Path) -> None:
    world = init_world()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest_neighbours, "BLOCK", 32)
        np.savez(path.with_suffix(f".{world.rank}.npz"), *realism(gen, ref, world=world))


@pytest.mark.distributed
def test_realism_is_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    gen, ref = (generator.normal(size=(n, 4)).astype(np.float32) for n in (110, 205))
    expected = realism(gen, ref)
    run_ranks(3, save_realism, gen, ref, tmp_path / "found")
    for rank in range(3):
        with np.load(tmp_path / f"found.{rank}.npz") as found:
            for name, values in zip(("arr_0", "arr_1"), expected, strict=True):
                np.testing.assert_array_equal(found[name], values)


def test_best_and_worst_samples_by_realism(tmp_path: Path) -> None:
    train, samples = write_images(tmp_path / "train", 24), write_images(tmp_path / "samples", 9, 5)
    out = tmp_path / "sheet.png"
    options = ["--reference", train, "--rows", "4", "--columns", "2"]
    record = sheet("realism", samples, *options, out=out)
    assert [row["part"] for row in record["rows"]] == ["best", "best", "worst", "worst"]
    shown = [image for row in record["rows"] for image in row["images"]]
    values = [image["realism"] for image in shown]
    assert values == sorted(values, reverse=True)
    assert len({image["index"] for image in shown}) == 8  # of nine: the middle one is left out
    np.testing.assert_array_equal(cell(out, 0, 1), file_of(samples, shown[1]))


def test_a_class_in_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = write_images(tmp_path / "images", 7), tmp_path / "sheet.png"
    record = sheet("classes", images, "--columns", "3", out=out)
    assert [row["class"] for row in record["rows"]] == [0, 1]
    names = [[image["name"] for image in row["images"]] for row in record["rows"]]
    expected = [["a/000.png", "a/002.png", "a/004.png"], ["b/001.png", "b/003.png", "b/005.png"]]
    assert names == expected
    np.testing.assert_array_equal(cell(out, 1, 2), pixels_of(images / "b/005.png"))
    record = sheet("classes", images, "--classes", "1", "--columns", "9", out=out)  # replaced
    assert [len(row["images"]) for row in record["rows"]] == [3]
    sheet("classes", images, "--classes", "1,5", out=out, code=2)
    assert "class 5 has no images; the classes are 0..1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two untrained WaveDiff generators of 32x32 images."""
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        generator = GeneratorConfig(
            base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, embedding_dim=16
        )
        config = WaveDiffConfig(resolution=EDGE, generator=generator)
        objective = config.build()
        name = objective.sampled_network
        paths.append(tmp_path_factory.mktemp("run") / "snapshot")
        write_snapshot(
            paths[-1], objective.build_networks()[name].state_dict(), objective=config,
            network=name, images_seen=0, ema="none", provenance={},
        )  # fmt: skip
    return paths


@pytest.mark.parametrize("layout", [[], ["--shard-images", "4"]])
def test_models_side_by_side_on_equal_seeds(
    models: list[Path], tmp_path: Path, layout: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (model, seeds) in enumerate(zip(models, ("3-9", "6-12"), strict=True)):
        out = str(tmp_path / f"{number}")
        assert cli.main(["sample", str(model), "--out", out, "--seeds", seeds, *layout]) == 0
    record = sheet("seeds", tmp_path / "0", tmp_path / "1", "--rows", "3", out=tmp_path / "s.png")
    assert [row["seed"] for row in record["rows"]] == ["000006", "000007", "000008"]
    assert [[i["index"] for i in row["images"]] for row in record["rows"]] == [
        [3, 0],
        [4, 1],
        [5, 2],
    ]
    assert [identity["seeds"] for identity in record["sets"]] == ["3-9", "6-12"]
    assert cli.main(["sample", str(models[0]), "--out", str(tmp_path / "2"), "--seeds", "50"]) == 0
    capsys.readouterr()
    sheet("seeds", tmp_path / "1", tmp_path / "2", out=tmp_path / "s.png", code=2)
    assert "no seed in common (their first images are 000006 and 000050)" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_sets_one_below_the_other_show_a_class_in_a_column(tmp_path: Path, columns: int) -> None:
    sets = [write_images(tmp_path / name, 12, seed) for seed, name in enumerate("xyz")]
    out = tmp_path / "sheet.png"
    options = ["--columns", f"{columns}", "--rows", "2"]
    record = sheet("sets", *sets, *options, out=out)
    assert [row["set"] for row in record["rows"]] == [0, 1, 2, 2]
    for row in record["rows"]:
        assert [image["class"] for image in row["images"]] == [0, 1, 0, 1][:columns]
        assert len({image["name"] for image in row["images"]}) == columns
    assert len({image["name"] for row in record["rows"][2:] for image in row["images"]}) == (
        2 * columns
    )
    top = 2 * (EDGE + WIDE_GAP) + EDGE + GAP
    last = record["rows"][3]["images"][1]
    left = EDGE + GAP
    np.testing.assert_array_equal(
        pixels_of(out)[top : top + EDGE, left : left + EDGE], file_of(sets[2], last)
    )
    record = sheet("sets", *sets, *options, "--classes", "1", out=out)
    assert {image["class"] for row in record["rows"] for image in row["images"]} == {1}


def test_sets_without_classes_are_shown_beside_those_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, samples = write_images(tmp_path / "real", 6), tmp_path / "samples"
    samples.mkdir()
    for number, file in enumerate(sorted((real / "a").iterdir())):
        (samples / f"{number}.png").write_bytes(file.read_bytes())
    out = tmp_path / "sheet.png"
    record = sheet("sets", real, samples, "--columns", "2", "--rows", "3", out=out)
    rows = [[image["name"] for image in row["images"]] for row in record["rows"]]
    assert rows[1:] == [["0.png", "1.png"], ["2.png"]]  # all that there are
    assert [image["class"] for image in record["rows"][0]["images"]] == [0, 1]
    sheet("sets", real, samples, "--classes", "2", out=out, code=2)
    assert "class 2 has no images in one of the sets" in capsys.readouterr().err


def test_features_that_run_has_stored_are_reused(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sampling and no pass of the detector, for samples and reference alike."""
    train = write_images(tmp_path / "train", 12)
    samples, result = tmp_path / "samples", tmp_path / "result.json"
    run = ["run", str(models[0]), "--seeds", "0-8", "--keep-images", str(samples)]
    run += ["--reference", str(train), "--metrics", "pr:head", "--out", str(result)]
    assert cli.main(run) == 0

    def never(self: Detector, images: torch.Tensor) -> dict[str, torch.Tensor]:
        raise AssertionError("computed again")

    monkeypatch.setattr(Detector, "__call__", never)
    for kind in ("neighbours", "realism"):
        sheet(kind, samples, "--reference", train, out=tmp_path / f"{kind}.png")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("neighbours", [], "needs --reference"),
        ("realism", [], "needs --reference"),
        ("classes", ["--reference", "IMAGES"], "leave out --reference"),
        ("seeds", [], "shows two or more sets of images, not 1"),
        ("sets", [], "shows two or more sets of images, not 1"),
        ("classes", ["IMAGES"], "shows one set of images, not 2"),
        ("classes", ["--rows", "0"], "--rows=0 must be at least 1"),
        ("classes", ["--upscale", "600"], "lower --rows, --columns or --upscale"),
        ("neighbours", ["--reference", "IMAGES", "--columns", "1"], "--columns=1 leaves no place"),
        ("neighbours", ["--reference", "IMAGES", "--tap", "no"], "has the taps"),
        ("classes", ["MODEL"], "is a model; draw its samples first"),
        ("classes", ["missing"], "missing does not exist"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(
    models: list[Path], tmp_path: Path, kind: str, options: list[str], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    images = write_images(tmp_path / "images", 6)
    names = {"IMAGES": str(images), "MODEL": str(models[0])}
    sheet(kind, images, *[names.get(o, o) for o in options], out=tmp_path / "s.png", code=2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "s.png").exists()
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize("name", ["s.png", "s.json"])
@pytest.mark.parametrize("content", [b"%PDF-1.4", b"{}", b'{"sheet": "mine"}', "photo"])
def test_only_sheets_of_ours_are_replaced(
    tmp_path: Path, name: str, content: bytes | str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 6)
    if content == "photo":
        content = (images / "a" / "000.png").read_bytes()
    assert isinstance(content, bytes)
    (tmp_path / name).write_bytes(content)
    sheet("classes", images, out=tmp_path / "s.png", code=2)
    assert name in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == content
    sheet("classes", images, out=tmp_path / "s.jpg", code=2)
    assert "name the sheet, e.g. sheet.png" in capsys.readouterr().err
