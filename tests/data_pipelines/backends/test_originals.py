"""Sets of images of any size, which backends crop and resize as the packer would."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.__main__ import main
from data_pipelines.backends.build import build_pipeline
from data_pipelines.images import ORIGINAL
from data_pipelines.pack.options import PackError, PackOptions
from data_pipelines.packed.check import check
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.pipeline import DataConfig, ImageBatch, Share
from data_pipelines.sources.kinds import make_source
from evaluation.image_sets.image_set import open_images
from tests.data_sets import damage, pack, smooth_pixels

Capture = pytest.CaptureFixture[str]
SIZES = [(48, 48), (70, 48), (48, 101), (33, 40), (64, 64), (51, 50)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same photographs as `sets/original` and as `sets/32`."""
    path = tmp_path_factory.mktemp("originals")
    (path / "source").mkdir()
    for number in range(24):
        width, height = SIZES[number % len(SIZES)]
        image = Image.fromarray(smooth_pixels(number, width, height))
        if number % 6 == 4:
            image = image.convert("L")
        image.save(path / f"source/{number:03d}.{'webp' if number % 6 == 3 else 'jpg'}")
    options = PackOptions(resolution=(ORIGINAL, 32), shard_images=10)
    pack(make_source("images", path / "source"), path / "sets", options)
    return path


def delivered(path: Path, backend: str, start: int, count: int, **settings: object) -> ImageBatch:
    config = DataConfig(
        path=str(path), backend=backend, **{"resolution": 32, "flip": True, **settings}
    )
    pipeline = build_pipeline(config, seed=2, share=Share(0, 1, 8))
    batches = pipeline.batches(start)
    try:
        found = list(itertools.islice(batches, count))
    finally:
        batches.close()
        pipeline.close()
    positions = sum((batch.positions for batch in found), ())
    return ImageBatch(torch.cat([batch.images for batch in found]), None, positions)


def test_files_stay_as_they_are(sets: Path) -> None:
    images = ShardedImages(sets / "sets/original")
    for number, file in enumerate(sorted((sets / "source").iterdir())):
        assert images.read(number) == (file.read_bytes(), None)
    images.close()
    with tarfile.open(sets / "sets/original/shards/000000.tar") as archive:
        assert archive.getnames()[2:5] == ["000000002.jpg", "000000003.webp", "000000004.jpg"]
    assert check(sets / "sets/original").problems == []


def test_pillow_delivers_what_the_packer_would_store(sets: Path) -> None:
    """From position 16 over the end of the epoch; both orders are the same."""
    originals = delivered(sets / "sets/original", "pillow", 16, 4)
    packed = delivered(sets / "sets/32", "pillow", 16, 4)
    assert torch.equal(originals.images, packed.images)
    assert originals.positions == packed.positions


def test_dali_agrees_within_its_arithmetic(sets: Path) -> None:
    ours = delivered(sets / "sets/original", "dali", 16, 4).images.int()
    packed = delivered(sets / "sets/32", "pillow", 16, 4).images.int()
    assert (ours - packed).abs().max() <= 6
    assert (ours - packed).abs().float().mean() < 0.3


def test_torchs_filter_agrees_within_two_levels(sets: Path) -> None:
    settings = {"resize": "torch", "workers": 2}
    ours = delivered(sets / "sets/original", "pillow", 16, 4, **settings).images.int()
    packed = delivered(sets / "sets/32", "pillow", 16, 4).images.int()
    assert (ours - packed).abs().max() <= 2
    assert (ours - packed).abs().float().mean() < 0.05


def test_torchs_filter_is_rejected_where_it_is_unavailable(
    sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="resize='torch' is a setting of backend='pillow'"):
        DataConfig(resolution=32, resize="torch")

    def interpolate(*_: object, **settings: object) -> torch.Tensor:
        raise NotImplementedError(settings["mode"])

    monkeypatch.setattr("torch.nn.functional.interpolate", interpolate)
    with pytest.raises(ValueError, match=r"resize='torch' needs a Lanczos filter, which torch"):
        delivered(sets / "sets/original", "pillow", 0, 1, resize="torch")


def test_what_decoders_read_differently_becomes_png(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    image = Image.fromarray(smooth_pixels(1))
    turned = Image.Exif()
    turned[0x0112] = 6
    image.convert("CMYK").save(tmp_path / "source/a.jpg")
    image.save(tmp_path / "source/b.jpg", exif=turned)
    image.save(tmp_path / "source/c.gif")
    pack(make_source("folder", tmp_path / "source"), tmp_path / "set", PackOptions(resolution=0))
    images = ShardedImages(tmp_path / "set")
    for number in range(3):
        with Image.open(io.BytesIO(images.read(number)[0])) as stored:
            assert (stored.format, stored.mode) == ("PNG", "RGB")
            assert stored.size == ((36, 40) if number == 1 else (40, 36))
    images.close()


def test_published_sets_keep_turned_photographs(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "faces").mkdir()
    Image.fromarray(smooth_pixels(1)).save(tmp_path / "faces/a.jpg", exif=turned)
    pack(make_source("ffhq", tmp_path / "faces"), tmp_path / "set", PackOptions(resolution=0))
    one = delivered(tmp_path / "set", "pillow", 0, 1, flip=False).images
    other = delivered(tmp_path / "set", "dali", 0, 1, flip=False).images
    assert (one.int() - other.int()).abs().max() <= 6


@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_damage_is_replaced(sets: Path, tmp_path: Path, backend: str) -> None:
    options = PackOptions(resolution=ORIGINAL)
    pack(make_source("images", sets / "source"), tmp_path / "set", options)
    settings = {"shuffle": False, "flip": False, "max_corrupt": 0.1}
    intact = delivered(tmp_path / "set", backend, 0, 1, **settings).images
    damage(tmp_path / "set", [2])
    repaired = delivered(tmp_path / "set", backend, 0, 1, **settings).images
    assert torch.equal(repaired, intact[[0, 1, 3, 3, 4, 5, 6, 7]])


def test_commands_on_originals(sets: Path, tmp_path: Path, capsys: Capture) -> None:
    path = str(sets / "sets/original")
    assert main(["info", path]) == 0
    assert "24 images of any size" in capsys.readouterr().out
    assert main(["preview", path, str(tmp_path / "sheet.png"), "--count", "4"]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.asarray(sheet).shape == (260, 260, 3)
    assert main(["bench", path]) == 2
    assert "images of any size; add --resolution" in capsys.readouterr().err
    assert main(["bench", path, "--resolution", "16", "--seconds", "0.02"]) == 0
    assert main(["beton", path]) == 2
    assert "pack it at one resolution" in capsys.readouterr().err


def test_formats_of_originals_are_their_own(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="original images keep their own format"):
        PackOptions(resolution=ORIGINAL, image_format="jpeg")
    with pytest.raises(PackError, match="original images are not resized; leave --filter out"):
        PackOptions(resolution=ORIGINAL, filter="bilinear")


def test_bytes_and_options_are_in_the_manifest(sets: Path) -> None:
    manifest = json.loads((sets / "sets/original/manifest.json").read_text())
    assert manifest["resolution"] == 0
    assert manifest["options"]["resolution"] == [0, 32]


def test_evaluation_rejects_them_at_once(sets: Path) -> None:
    with pytest.raises(ValueError, match="original images of any size"):
        open_images(sets / "sets/original")
    assert len(open_images(sets / "sets/32")) == 24
