"""The FFCV backend and its file; compiling takes seconds per pipeline, so there are few of them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.__main__ import main
from data_pipelines.backends.build import build_pipeline
from data_pipelines.pack.options import PackOptions
from data_pipelines.packed.beton import write_beton
from data_pipelines.packed.beton_reader import PageCache
from data_pipelines.packed.check import check
from data_pipelines.packed.manifest import BETON, DatasetError, read_manifest
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.pipeline import DataConfig, ImageBatch, MixedSet, Share
from data_pipelines.sample_order import SampleOrder
from data_pipelines.sources.kinds import make_source
from tests.data_sets import pack, packed_set, write_class_dirs
from tests.paths import ROOT

pytest.importorskip("ffcv", reason="FFCV is optional: it needs libturbojpeg and OpenCV")
pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:numba",
    "ignore::Warning:ffcv",
    "ignore::pytest.PytestUnraisableExceptionWarning",  # of numba's finalisers, now and then
)


def packed(path: Path, image_format: str = "png") -> Path:
    packed_set(write_class_dirs(path / "source"), path / "set", image_format=image_format)
    write_beton(path / "set")
    return path / "set"


def delivered(
    path: Path, backend: str, share: Share, start: int, count: int, **settings: object
) -> list[ImageBatch]:
    edge = read_manifest(path).resolution
    config = DataConfig(
        path=str(path), backend=backend, **{"resolution": edge, "flip": True, **settings}
    )
    pipeline = build_pipeline(config, seed=5, share=share)
    batches = pipeline.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()
        pipeline.close()


def test_lossless_batches_equal_those_of_the_shards(tmp_path: Path) -> None:
    """Two ranks, resumed at 48, over the end of the first epoch, box-averaged to 16 pixels."""
    path = packed(tmp_path)
    for rank in range(2):
        arguments = (Share(rank, 2, 4), 48, 4)
        ours = delivered(path, "ffcv", *arguments, resolution=16)
        theirs = delivered(path, "pillow", *arguments, resolution=16)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert one.positions == other.positions


@pytest.mark.parametrize(("keep_jpeg", "mean_error"), [(False, 0), (True, 4)])
def test_jpeg_batches_agree_and_damage_is_replaced(
    tmp_path: Path, keep_jpeg: bool, mean_error: float
) -> None:
    path = packed(tmp_path, "jpeg")
    write_beton(path, keep_jpeg=keep_jpeg)
    index = int(SampleOrder(60, 5).samples(np.array([2]))[0])
    rows = np.load(path / "set.beton.npy")
    with open(path / BETON, "r+b") as file:
        file.seek(int(rows[index]["offset"]) + 50)
        file.write(b"damage")
    assert check(path).problems == ["set.beton: damaged; remove it and write it again"]
    (batch,) = delivered(path, "ffcv", Share(0, 1, 8), 0, 1, flip=False)
    (intact,) = delivered(path, "pillow", Share(0, 1, 8), 0, 1, flip=False)
    want = intact.images[[0, 1, 3, 3, 4, 5, 6, 7]]
    assert (batch.images.int() - want.int()).abs().float().mean() <= mean_error


def test_beton_is_deterministic_and_readable_by_ffcv(tmp_path: Path) -> None:
    from ffcv.reader import Reader

    path = packed(tmp_path)
    content = (path / BETON).read_bytes()
    assert main(["beton", str(path)]) == 0
    (path / "set.beton.json").unlink()
    write_beton(path)
    assert (path / BETON).read_bytes() == content
    reader = Reader(str(path / BETON))
    assert (reader.num_samples, reader.field_names) == (60, ["image", "label"])
    assert reader.metadata["f1"].tolist() == [n // 20 for n in range(60)]


def test_importing_ffcv_has_no_side_effects() -> None:
    """Its dictionary of two numbers would take numba seconds, and torch be left one thread."""
    code = """
import torch
from data_pipelines.packed.beton import import_ffcv
torch.set_num_threads(3)
import_ffcv()
assert torch.get_num_threads() == 3
from ffcv.fields.rgb_image import IMAGE_MODES
from numba.typed import Dict
assert IMAGE_MODES == {"jpg": 0, "raw": 1}
assert type(IMAGE_MODES) is dict
assert Dict is not dict
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_unsuitable_betons_are_rejected(tmp_path: Path) -> None:
    path = packed(tmp_path / "one")
    config = DataConfig(path=str(path), backend="ffcv", resolution=32)
    other = tmp_path / "other"
    packed_set(write_class_dirs(tmp_path / "s", per_class=5), other, resolution=16)
    write_beton(other)
    for name in (BETON, "set.beton.json", "set.beton.npy"):
        (path / name).write_bytes((other / name).read_bytes())
    with pytest.raises(DatasetError, match="was written from another set"):
        build_pipeline(config, seed=0, share=Share(0, 1, 4))
    (path / "set.beton.json").unlink()
    with pytest.raises(DatasetError, match=r"no complete set\.beton; write it with"):
        build_pipeline(config, seed=0, share=Share(0, 1, 4))


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*") if file.is_file())


def test_packing_to_a_beton_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_class_dirs(tmp_path / "source")
    command = ["pack", "folder", str(source), str(tmp_path / "set"), "--resolution", "32"]
    assert main([*command, "--output", "ffcv"]) == 0
    assert "60 images of 32x32, 3 classes, set.beton" in capsys.readouterr().out
    beton = ["set.beton", "set.beton.json", "set.beton.npy"]
    assert files(tmp_path / "set") == ["manifest.json", *beton, "skipped.jsonl"]
    assert main([*command, "--output", "ffcv"]) == 0
    assert main(["check", str(tmp_path / "set")]) == 0
    assert main([*command, "--output", "both"]) == 2
    assert "was packed with --output ffcv" in capsys.readouterr().err
    packed_set(source, tmp_path / "shards")
    alone, shards = ShardedImages(tmp_path / "set"), ShardedImages(tmp_path / "shards")
    assert alone.info == shards.info
    assert torch.equal(alone.decode(17), shards.decode(17))
    alone.close()
    with pytest.raises(ValueError, match="is a beton alone, without shards, which backend='dali'"):
        delivered(tmp_path / "set", "dali", Share(0, 1, 4), 0, 1)
    (ours,) = delivered(tmp_path / "set", "ffcv", Share(0, 1, 8), 4, 1)
    (theirs,) = delivered(tmp_path / "shards", "pillow", Share(0, 1, 8), 4, 1)
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)
    shards.close()


def test_flipped_bits_of_a_beton_alone_are_found(tmp_path: Path) -> None:
    source = write_class_dirs(tmp_path / "source")
    command = ["pack", "folder", str(source), str(tmp_path / "set"), "--resolution", "16"]
    assert main([*command, "--output", "ffcv"]) == 0
    rows = np.load(tmp_path / "set/set.beton.npy")
    with open(tmp_path / "set/set.beton", "r+b") as file:
        file.seek(int(rows[7]["offset"]) + 5)
        file.write(b"damage")
    (problem,) = check(tmp_path / "set").problems
    assert problem.startswith("sample 7 (at byte ")
    assert "of set.beton): damaged" in problem


def test_shards_and_a_beton_side_by_side(tmp_path: Path) -> None:
    source = write_class_dirs(tmp_path / "source", per_class=2)
    command = ["pack", "folder", str(source), str(tmp_path / "set"), "--resolution", "16,32"]
    assert main([*command, "--output", "both"]) == 0
    for edge in ("16", "32"):
        assert read_manifest(tmp_path / "set" / edge).shards[0].name == "shards/000000.tar"
        assert {"set.beton", "000000.tar"} < set(files(tmp_path / "set" / edge))


def test_pages_kept_in_the_process_give_the_same_batches(tmp_path: Path) -> None:
    path = packed(tmp_path)
    expected = delivered(path, "pillow", Share(0, 1, 8), 50, 4)
    kept = delivered(path, "ffcv", Share(0, 1, 8), 50, 4, ffcv_cache_gb=0.02, workers=3)
    for one, other in zip(kept, expected, strict=True):
        assert torch.equal(one.images, other.images)


def test_page_cache_keeps_the_pages_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(60))
    (tmp_path / "file").write_bytes(content)
    loaded = []
    preadv = os.preadv

    def recorded(file: int, buffers: list[memoryview], offset: int) -> int:
        loaded.append(offset // 10)
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", recorded)
    with open(tmp_path / "file", "rb") as file:
        pages = PageCache(file.fileno(), 10, slots=3)
        for offset in (0, 11, 22, 3, 44, 58, 4, 35):
            assert pages.read(offset, 2) == content[offset : offset + 2]
            assert len(pages) <= 3
        with pytest.raises(OSError, match="the file ends within page 6"):
            pages.read(60, 1)
    assert loaded == [0, 1, 2, 4, 5, 3, 6]  # page 0 stayed, since it was used again


def test_page_cache_is_shared_by_threads(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(64 * 100)
    (tmp_path / "file").write_bytes(content)
    places = np.random.default_rng(1).integers(0, 640, 5000) * 10
    with open(tmp_path / "file", "rb") as file, ThreadPoolExecutor(8) as pool:
        pages = PageCache(file.fileno(), 100, slots=5)
        found = list(pool.map(lambda place: pages.read(place, 10), places.tolist()))
    assert found == [content[place : place + 10] for place in places]


@pytest.mark.parametrize(("image_format", "tolerance"), [("png", 0), ("webp", 0), ("jpeg", 2)])
def test_three_backends_agree_on_photographs(
    tmp_path: Path, image_format: str, tolerance: int
) -> None:
    path = tmp_path / "set"
    options = PackOptions(resolution=64, image_format=image_format, limit=48)
    pack(make_source("photographs", None), path, options)
    write_beton(path)
    arguments = (Share(0, 1, 16), 40, 3)
    by_pillow = delivered(path, "pillow", *arguments)
    for backend in ("dali", "ffcv"):
        for one, other in zip(delivered(path, backend, *arguments), by_pillow, strict=True):
            assert (one.images.int() - other.images.int()).abs().max() <= tolerance
            assert torch.equal(one.labels, other.labels)
            assert one.positions == other.positions


def test_mixes_of_betons_equal_those_of_shards(tmp_path: Path) -> None:
    path = packed(tmp_path)
    packed_set(write_class_dirs(tmp_path / "s", per_class=5), tmp_path / "other")
    write_beton(tmp_path / "other")
    mix = (MixedSet(path=str(tmp_path / "other"), weight=0.5),)
    arguments = (Share(1, 2, 6), 100, 6)
    expected = delivered(path, "pillow", *arguments, mix=mix)
    for settings in ({}, {"ffcv_cache_gb": 0.1}):
        ours = delivered(path, "ffcv", *arguments, mix=mix, **settings)
        for one, other in zip(ours, expected, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
