from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipelines.backends.batches import box_reduce, read_ahead
from data_pipelines.backends.build import build_pipeline
from data_pipelines.backends.sample_reader import TooManyCorrupt
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.pipeline import DataConfig, ImageBatch, MixedSet, Share
from data_pipelines.sample_order import SampleOrder
from tests.data_sets import damage, packed_set, write_class_dirs

BACKENDS = ["dali", "pillow"]
SEED = 11


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dataset")
    packed_set(write_class_dirs(path / "source"), path / "set")
    return path / "set"


def config(dataset: Path, backend: str, **settings: object) -> DataConfig:
    return DataConfig(
        backend=backend, **{"path": str(dataset), "resolution": 32, "flip": True, **settings}
    )


def delivered(data: DataConfig, share: Share, start: int, count: int) -> list[ImageBatch]:
    pipeline = build_pipeline(data, seed=SEED, share=share)
    batches = pipeline.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()
        pipeline.close()


def joined(batches: list[ImageBatch]) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
    labels = [batch.labels for batch in batches if batch.labels is not None]
    positions = sum((batch.positions for batch in batches), ())
    images = torch.cat([batch.images for batch in batches])
    return images, torch.cat(labels) if labels else None, positions


def by_ranks(data: DataConfig, world_size: int, start: int) -> tuple[Tensor, Tensor | None, object]:
    """Deliver 5 global batches of 8 from a number of ranks, put together in global order."""
    shares = [Share(rank, world_size, 8 // world_size) for rank in range(world_size)]
    ranks = [delivered(data, share, start, 5) for share in shares]
    return joined([batch for step in zip(*ranks, strict=True) for batch in step])


def expected(dataset: Path, positions: range, flip: bool = True) -> tuple[Tensor, Tensor]:
    """What a plain loop over the files gives."""
    images = ShardedImages(dataset)
    order = SampleOrder(len(images), SEED, flip=flip)
    places = np.asarray(positions)
    samples = order.samples(places)
    flips = order.flips(places)
    pixels = [images.decode(int(index)) for index in samples]
    labels = [images.label(int(index)) for index in samples]
    images.close()
    flipped = [x.flip(2) if flip else x for x, flip in zip(pixels, flips, strict=True)]
    return torch.stack(flipped), torch.tensor(labels)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_world_size_delivers_the_order(dataset: Path, backend: str, world_size: int) -> None:
    """Starts 50: the batches cross the end of the first epoch (60 images)."""
    images, labels, positions = by_ranks(config(dataset, backend), world_size, start=50)
    want_images, want_labels = expected(dataset, range(50, 90))
    assert positions == tuple(range(50, 90))
    assert torch.equal(images, want_images)
    assert labels is not None
    assert torch.equal(labels, want_labels)


@pytest.mark.parametrize("backend", [*BACKENDS, "synthetic"])
def test_resume_by_position(dataset: Path, backend: str) -> None:
    data = config(dataset, backend)
    uninterrupted = joined(delivered(data, Share(0, 1, 8), 0, 6))
    first = joined(delivered(data, Share(0, 1, 8), 0, 2))
    rest = joined(delivered(data, Share(0, 1, 4), 16, 8))
    assert torch.equal(uninterrupted[0], torch.cat([first[0], rest[0]]))
    assert uninterrupted[2] == first[2] + rest[2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_smaller_resolution_is_the_exact_box_average(dataset: Path, backend: str) -> None:
    (batch,) = delivered(config(dataset, backend, resolution=8, flip=False), Share(0, 1, 8), 0, 1)
    full, _ = expected(dataset, range(8), flip=False)
    means = full.reshape(8, 3, 8, 4, 8, 4).double().mean(dim=(3, 5))
    assert torch.equal(batch.images, torch.floor(means + 0.5).to(torch.uint8))


def test_box_average_rounds_halves_up() -> None:
    images = torch.tensor([[0, 1], [0, 1], [2, 2], [255, 255]], dtype=torch.uint8)
    reduced = box_reduce(images.reshape(1, 1, 4, 2).expand(1, 3, 4, 2), 2)
    assert reduced[0, 0].flatten().tolist() == [1, 129]


def test_unsuitable_resolution_is_rejected(dataset: Path) -> None:
    with pytest.raises(ValueError, match="resolution=24 does not divide the 32 pixels"):
        build_pipeline(config(dataset, "pillow", resolution=24), seed=0, share=Share(0, 1, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_lossy_shards_agree_within_decoder_tolerance(tmp_path: Path, backend: str) -> None:
    packed_set(write_class_dirs(tmp_path / "s"), tmp_path / "set", image_format="jpeg")
    (batch,) = delivered(config(tmp_path / "set", backend), Share(0, 1, 16), 0, 1)
    want, _ = expected(tmp_path / "set", range(16))
    assert (batch.images.int() - want.int()).abs().max() <= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_webp_shards_are_exact(tmp_path: Path, backend: str) -> None:
    packed_set(write_class_dirs(tmp_path / "s"), tmp_path / "set", image_format="webp")
    (batch,) = delivered(config(tmp_path / "set", backend), Share(0, 1, 16), 0, 1)
    assert torch.equal(batch.images, expected(tmp_path / "set", range(16))[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_unlabelled_sets_have_no_labels(tmp_path: Path, backend: str) -> None:
    packed_set(write_class_dirs(tmp_path / "s", classes=1), tmp_path / "set")
    (batch,) = delivered(config(tmp_path / "set", backend), Share(0, 1, 4), 0, 1)
    assert batch.labels is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_samples_are_replaced_by_the_next_of_the_order(
    tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    packed_set(write_class_dirs(tmp_path / "s"), tmp_path / "set")
    order = SampleOrder(60, SEED)
    third, fourth = order.samples(np.array([3, 4])).tolist()
    damage(tmp_path / "set", [third, fourth])
    data = config(tmp_path / "set", backend, flip=False, max_corrupt=0.1)
    want, _ = expected_of(tmp_path / "set", order, [0, 1, 2, 5, 5, 5, 6, 7])
    with caplog.at_level(logging.WARNING):
        for world_size in (1, 2, 4):
            images, _, positions = by_ranks(data, world_size, start=0)
            assert torch.equal(images[:8], want)
            assert positions == tuple(range(40))
    assert f"sample {third} (at byte" in caplog.text
    assert "checksum does not match" in caplog.text


def expected_of(dataset: Path, order: SampleOrder, places: list[int]) -> tuple[Tensor, list[int]]:
    images = ShardedImages(dataset)
    samples = order.samples(np.array(places)).tolist()
    stacked = torch.stack([images.decode(index) for index in samples])
    images.close()
    return stacked, samples


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_many_damaged_samples_stop_the_run(tmp_path: Path, backend: str) -> None:
    packed_set(write_class_dirs(tmp_path / "s"), tmp_path / "set")
    damage(tmp_path / "set", list(range(0, 60, 5)))
    data = config(tmp_path / "set", backend, max_corrupt=0.05)
    with pytest.raises(TooManyCorrupt, match=r"4 of 60 samples are damaged, more than max_corrupt"):
        delivered(data, Share(0, 1, 8), 0, 8)


def test_a_wholly_damaged_selection_stops(tmp_path: Path) -> None:
    packed_set(write_class_dirs(tmp_path / "s"), tmp_path / "set")
    damage(tmp_path / "set", [7])
    data = config(tmp_path / "set", "pillow", subset=1, shuffle=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_pipelines.datasets.subset", lambda size, count: np.array([7]))
        with pytest.raises(TooManyCorrupt, match="1000 consecutive samples are damaged"):
            delivered(data, Share(0, 1, 1), 0, 1)


def test_truncated_shard_is_found_before_the_run(tmp_path: Path) -> None:
    packed_set(write_class_dirs(tmp_path / "s"), tmp_path / "set")
    with open(tmp_path / "set/shards/000001.tar", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(ValueError, match=r"000001\.tar has 5000 bytes, the manifest says"):
        build_pipeline(config(tmp_path / "set", "pillow"), seed=0, share=Share(0, 1, 1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_shards_cut_and_lost_during_the_run(tmp_path: Path, backend: str, world_size: int) -> None:
    """Of the shards with samples 16 to 31 and 32 to 47 the end is cut off, and all is lost."""
    packed_set(write_class_dirs(tmp_path / "s"), tmp_path / "set")
    intact, _ = expected(tmp_path / "set", range(80), flip=False)
    row = ShardedImages(tmp_path / "set").index[25]
    data = config(tmp_path / "set", backend, flip=False, max_corrupt=0.9)
    shares = [Share(rank, world_size, 8 // world_size) for rank in range(world_size)]
    pipelines = [build_pipeline(data, seed=SEED, share=share) for share in shares]
    os.truncate(tmp_path / "set/shards/000001.tar", int(row["offset"]) + 10)
    (tmp_path / "set/shards/000002.tar").unlink()
    ranks = [pipeline.batches(0) for pipeline in pipelines]
    images = torch.cat([next(rank).images for _ in range(8) for rank in ranks])
    usable = [*range(25), *range(48, 60)]
    order = SampleOrder(60, SEED).samples(np.arange(80)).tolist()
    replacement = [next(p for p in range(place, 80) if order[p] in usable) for place in range(64)]
    assert torch.equal(images, intact[replacement])
    found = [pipeline.corrupt for pipeline in pipelines]
    assert set().union(*found) <= set(range(60)) - set(usable)
    assert {reason.partition(":")[0] for reasons in found for reason in reasons.values()} == {
        "damaged in the shard",
        "unreadable",
    }
    for rank, pipeline in zip(ranks, pipelines, strict=True):
        rank.close()
        pipeline.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_close_leaves_no_threads(dataset: Path, backend: str) -> None:
    gc.collect()
    before = system_threads()
    for _ in range(3):
        delivered(config(dataset, backend, workers=2), Share(0, 1, 8), 0, 2)
    deadline = time.monotonic() + 5
    while system_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)  # a joined thread leaves the system's table a little later
    assert system_threads() <= before
    assert not [t for t in threading.enumerate() if t.name.startswith("data_pipelines")]


def system_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def deliver_digest(dataset: Path, backend: str, rank: int, results: object) -> None:
    batches = delivered(config(dataset, backend), Share(rank, 2, 4), 0, 3)
    results.put((rank, joined(batches)[0].sum().item()))


def test_dali_runs_in_two_processes(dataset: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=deliver_digest, args=(dataset, "dali", rank, results))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    sums = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    for rank in range(2):
        batches = delivered(config(dataset, "pillow"), Share(rank, 2, 4), 0, 3)
        assert sums[rank] == joined(batches)[0].sum().item()


def test_synthetic_images_have_their_class_waves() -> None:
    data = DataConfig(backend="synthetic", resolution=32, shuffle=False)
    (batch,) = delivered(data, Share(0, 1, 8), 0, 1)
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_read_ahead_keeps_the_order_and_passes_errors_on() -> None:
    def produce(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    results = read_ahead(produce, workers=3, depth=2)
    assert list(itertools.islice(results, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 0}, "resolution=0"),
        ({"workers": 0}, "workers=0"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"max_corrupt": 1.0}, "max_corrupt=1.0"),
    ],
)
def test_impossible_settings_are_rejected(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"resolution": 8, **settings})


def test_class_filter_and_subset(dataset: Path) -> None:
    data = config(dataset, "pillow", classes=("class0", "class2"), subset=10)
    _, labels, _ = joined(delivered(data, Share(0, 1, 10), 0, 2))
    assert labels is not None
    assert set(labels.tolist()) <= {0, 2}
    per_epoch = [{image.numpy().tobytes() for image in half} for half in plain_epochs(dataset, 10)]
    assert per_epoch[0] == per_epoch[1]
    assert len(per_epoch[0]) == 10
    assert build_pipeline(data, seed=0, share=Share(0, 1, 1)).info.num_images == 10


def plain_epochs(dataset: Path, count: int) -> list[Tensor]:
    data = config(dataset, "pillow", subset=count, flip=False)
    return [batch.images for batch in delivered(data, Share(0, 1, count), 0, 2)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", [1, 4])
def test_windows_and_mixes_do_not_depend_on_ranks(
    dataset: Path, tmp_path: Path, backend: str, world_size: int
) -> None:
    packed_set(write_class_dirs(tmp_path / "s", per_class=4), tmp_path / "other")
    data = config(
        dataset,
        backend,
        shuffle_window=20,
        weight=3.0,
        mix=(MixedSet(path=str(tmp_path / "other"), weight=1.0),),
    )
    images, labels, positions = by_ranks(data, world_size, start=100)
    reference = by_ranks(data, 2, start=100)
    assert torch.equal(images, reference[0])
    assert torch.equal(labels, reference[1])
    assert positions == reference[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("dog",)}, "has no 'dog'; it has class0, class1, class2"),
        ({"subset": 61}, "subset=61 of 60 images"),
        ({"path": "/nowhere"}, "/nowhere is no directory"),
    ],
)
def test_settings_that_do_not_fit_the_set(
    dataset: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_pipeline(config(dataset, "pillow", **settings), seed=0, share=Share(0, 1, 1))


def test_unlike_sets_are_not_mixed(dataset: Path, tmp_path: Path) -> None:
    source = write_class_dirs(tmp_path / "s", classes=2, per_class=2)
    packed_set(source, tmp_path / "small", resolution=16)
    packed_set(source, tmp_path / "two")
    for name, message in [("small", "has 16 pixels"), ("two", "have other class tables")]:
        data = config(dataset, "pillow", mix=(MixedSet(path=str(tmp_path / name)),))
        with pytest.raises(ValueError, match=message):
            build_pipeline(data, seed=0, share=Share(0, 1, 1))
