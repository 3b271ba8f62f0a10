"""Samples that DALI cannot decode: each costs itself alone. With a GPU, the same is asked of it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.backends import dali
from data_pipelines.backends.build import build_pipeline
from data_pipelines.backends.dali import DaliPipeline
from data_pipelines.backends.dali_graph import undecodable
from data_pipelines.backends.sample_reader import TooManyCorrupt
from data_pipelines.images import ORIGINAL
from data_pipelines.pack.options import PackOptions
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.pipeline import DataConfig, ImageBatch, Share
from data_pipelines.sample_order import SampleOrder
from data_pipelines.sources.kinds import make_source
from tests.data_sets import encoded, pack, packed_set, write_class_dirs

SEED = 11
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
Stored = dict[int, bytes]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dataset")
    packed_set(write_class_dirs(path / "source"), path / "set")
    return path / "set"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stored], None]:
    """Let samples have other bytes, as if they had been packed so."""
    read = ShardedImages.read

    def replace(stored: Stored) -> None:
        def other(self: ShardedImages, index: int) -> tuple[bytes, int | None]:
            content, label = read(self, index)
            return stored.get(index, content), label

        monkeypatch.setattr(ShardedImages, "read", other)

    return replace


def gif(dataset: Path, index: int) -> bytes:
    """Return a sample in a format that only Pillow knows."""
    images = ShardedImages(dataset)
    pixels = images.decode(index).permute(1, 2, 0).contiguous().numpy()
    images.close()
    return encoded(pixels, "GIF")


def delivered(
    dataset: Path, share: Share, count: int, device: str = "cpu", **settings: object
) -> list[ImageBatch]:
    values = {"backend": "dali", "resolution": 32, "flip": True, **settings}
    pipeline = build_pipeline(
        DataConfig(path=str(dataset), **values), seed=SEED, share=share, device=device
    )
    batches = pipeline.batches(0)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()
        pipeline.close()


def pixels(batches: list[ImageBatch]) -> torch.Tensor:
    return torch.cat([batch.images.cpu() for batch in batches])


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the graphs that are built for full batches, and the images that Pillow decodes."""
    seen = {"graphs": 0, "by Pillow": 0}
    build, make = dali.build_graph, dali.pixel_decoder

    def counting_build(source: Any, **settings: Any) -> Any:
        seen["graphs"] += settings["prefetch"] > 1
        return build(source, **settings)

    def counting_decoder(*settings: Any) -> Callable[[bytes], Any]:
        decode = make(*settings)

        def counting(content: bytes) -> Any:
            seen["by Pillow"] += 1
            return decode(content)

        return counting

    monkeypatch.setattr(dali, "build_graph", counting_build)
    monkeypatch.setattr(dali, "pixel_decoder", counting_decoder)
    return seen


@pytest.mark.parametrize("device", DEVICES)
def test_a_sample_that_dali_cannot_decode_costs_itself_alone(
    dataset: Path,
    store: Callable[[Stored], None],
    counts: dict[str, int],
    caplog: pytest.LogCaptureFixture,
    device: str,
) -> None:
    """Two such samples, over two epochs: Pillow decodes these, at each visit, and nothing else."""
    odd = SampleOrder(60, SEED).samples(np.array([20, 41])).tolist()
    store({index: gif(dataset, index) for index in odd})
    want = pixels(delivered(dataset, Share(0, 1, 8), 15, backend="pillow"))
    with caplog.at_level(logging.WARNING):
        batches = delivered(dataset, Share(0, 1, 8), 15, device)
    assert torch.equal(pixels(batches), want)
    assert sum((batch.positions for batch in batches), ()) == tuple(range(120))
    assert counts["graphs"] == 3  # two failed
    assert 4 <= counts["by Pillow"] <= 4 + 2 * 2  # and what is read ahead
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    for index, line in zip(odd, lines, strict=True):
        assert line.startswith(f"DALI cannot decode sample {index} (at byte ")
        assert ", so Pillow does: nvImageCodec failure" in line


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_sample_that_nothing_can_decode_is_replaced(
    dataset: Path, store: Callable[[Stored], None], device: str, world_size: int
) -> None:
    """the next in the order, which only Pillow reads, replaces it on any number of ranks."""
    broken, odd = SampleOrder(60, SEED).samples(np.array([3, 4])).tolist()
    content = gif(dataset, odd)
    store({odd: content})
    expected = pixels(delivered(dataset, Share(0, 1, 8), 2, backend="pillow", flip=False))
    store({broken: b"no image", odd: content})
    shares = [Share(rank, world_size, 8 // world_size) for rank in range(world_size)]
    ranks = [pixels(delivered(dataset, share, 2, device, flip=False)) for share in shares]
    steps = [images.split(8 // world_size) for images in ranks]
    images = torch.cat([part for step in zip(*steps, strict=True) for part in step])
    assert torch.equal(images, expected[[0, 1, 2, 4, 4, *range(5, 16)]])


def test_undecodable_samples_count_as_damaged(
    dataset: Path, store: Callable[[Stored], None]
) -> None:
    store(dict.fromkeys(range(0, 60, 5), b"no image"))
    with pytest.raises(TooManyCorrupt, match=r"4 of 60 samples are damaged.*known format"):
        delivered(dataset, Share(0, 1, 8), 8, max_corrupt=0.05)


def test_a_failure_that_no_sample_causes_stops(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a GPU without memory, which decoding by Pillow would only hide."""
    run = DaliPipeline._run

    def failing(self: DaliPipeline, graph: Any, feed: Any) -> Any:
        if 2 in feed.batches and 1 not in feed.batches:
            raise dali._Undecodable("out of memory")
        return run(self, graph, feed)

    monkeypatch.setattr(DaliPipeline, "_run", failing)
    with pytest.raises(RuntimeError, match="can decode each sample on its own: out of memory"):
        delivered(dataset, Share(0, 1, 8), 8)


@pytest.mark.parametrize("device", DEVICES)
def test_original_images_that_dali_cannot_decode(
    tmp_path: Path, store: Callable[[Stored], None], device: str
) -> None:
    source = make_source("folder", write_class_dirs(tmp_path / "s", per_class=4))
    pack(source, tmp_path / "set", PackOptions(resolution=ORIGINAL))
    store({5: gif(tmp_path / "set", 5)})
    settings = {"resolution": 16, "shuffle": False}
    ours = delivered(tmp_path / "set", Share(0, 1, 6), 2, device, **settings)
    by_pillow = delivered(tmp_path / "set", Share(0, 1, 6), 2, backend="pillow", **settings)
    assert torch.equal(pixels(ours)[5], pixels(by_pillow)[5])
    assert (pixels(ours).int() - pixels(by_pillow).int()).abs().max() <= 6


@pytest.mark.parametrize("bad", [set(), {0}, {6}, {2, 3}, {0, 4, 6}, set(range(7))])
def test_halving_finds_all_that_fail(bad: set[int]) -> None:
    class Graph:
        def __init__(self, source: Callable[[], tuple[list[Any], list[Any]]], size: int) -> None:
            self.images = source()[0]
            assert len(self.images) == size

        def run(self) -> None:
            if bad & {int(image[0]) for image in self.images}:
                raise RuntimeError

    images = [np.array([number], np.uint8) for number in range(7)]
    assert undecodable(images, Graph) == sorted(bad)
