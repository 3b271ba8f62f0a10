"""Foreign WebDatasets, written by the library itself, streamed through it."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from data_pipelines.backends import webdataset as backend
from data_pipelines.backends.build import build_pipeline, describe_data
from data_pipelines.backends.sample_reader import TooManyCorrupt
from data_pipelines.backends.shard_counts import ShardCounts
from data_pipelines.backends.streams import Stream, StreamOrder
from data_pipelines.images import centre_square, decode
from data_pipelines.packed.manifest import DatasetError
from data_pipelines.pipeline import DataConfig, ImageBatch, MixedSet, Share
from tests.data_sets import encoded, packed_set, smooth_pixels, write_class_dirs

SIZES = (7, 11, 5, 9, 8, 6)
TOTAL = sum(SIZES)


def write_foreign(
    directory: Path, sizes: Sequence[int] = SIZES, ending: str = "png", **members: Any
) -> Path:
    """Write tars of images, whose class is their number, by the library's own writer."""
    directory.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, size in enumerate(sizes):
        with webdataset.TarWriter(str(directory / f"part-{shard:03d}.tar")) as writer:
            for _ in range(size):
                image = encoded(smooth_pixels(number), "JPEG" if ending == "jpg" else "PNG")
                made = {key: make(number) for key, make in members.items()}
                labels = made or {"cls": number}
                writer.write({"__key__": f"photo{number:05d}", ending: image, **labels})
                number += 1
    return directory


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_foreign(tmp_path_factory.mktemp("foreign"))


def config(path: Path | str, **settings: Any) -> DataConfig:
    settings = {"num_classes": TOTAL, "workers": 2, "resolution": 16, **settings}
    return DataConfig(path=str(path), backend="webdataset", **settings)


def delivered(
    data: DataConfig, share: Share, start: int, count: int, records: Path | None = None
) -> list[ImageBatch]:
    pipeline = build_pipeline(data, seed=3, share=share, records=records)
    batches = pipeline.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()
        pipeline.close()


def labels(batches: Sequence[ImageBatch]) -> list[int]:
    assert all(batch.labels is not None for batch in batches)
    return [int(label) for batch in batches for label in batch.labels]  # type: ignore[union-attr]


def by_position(batches: Sequence[ImageBatch]) -> dict[int, tuple[int, bytes]]:
    return {
        position: (int(label), image.numpy().tobytes())
        for batch in batches
        for position, label, image in zip(batch.positions, batch.labels, batch.images, strict=True)
    }


def test_every_sample_comes_once_an_epoch_as_it_is_in_its_tar(foreign: Path) -> None:
    """One stream per shard here: each visits its shard again before others have ended theirs."""
    (one,) = {tuple(sorted(labels(delivered(config(foreign), Share(0, 1, TOTAL), 0, 1))))}
    assert len(one) == TOTAL
    data = config(foreign, shuffle=False)
    batches = delivered(data, Share(0, 1, TOTAL), 0, 2)
    assert [labels([batch]) for batch in batches] == [list(range(TOTAL))] * 2, "in file order"
    for number in (0, 20, TOTAL - 1):
        square = centre_square(decode(encoded(smooth_pixels(number))), 16)
        assert np.array_equal(batches[0].images[number].permute(1, 2, 0), square)


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_epochs_of_each_stream_are_complete(foreign: Path, batch: int) -> None:
    order = StreamOrder(len(SIZES), batch, 3, True, 4096)
    assert batch % order.streams == 0
    assert order.streams <= len(SIZES)
    for epoch in range(3):
        dealt = [order.shards(stream, epoch) for stream in range(order.streams)]
        assert sorted(itertools.chain(*dealt)) == list(range(len(SIZES)))
    assert order.shards(0, 0) != order.shards(0, 1) or order.streams > 2
    seen = {order.place(position) for position in range(5 * batch)}
    width = 5 * batch // order.streams
    assert seen == set(itertools.product(range(order.streams), range(width)))


SHARES = (
    [Share(0, 1, 12)],
    [Share(0, 1, 4, 3)],
    [Share(rank, 2, 6) for rank in range(2)],
    [Share(rank, 2, 2, 3) for rank in range(2)],
    [Share(rank, 4, 3) for rank in range(4)],
    [Share(rank, 12, 1) for rank in range(12)],
)


@pytest.mark.parametrize("start", [0, 12, 60, 12 * 31])
@pytest.mark.parametrize("settings", [{}, {"shuffle": False}, {"shuffle_window": 12}], ids=str)
def test_the_order_is_the_same_on_any_number_of_ranks(
    foreign: Path, tmp_path: Path, start: int, settings: dict[str, Any]
) -> None:
    """More ranks than shards, too, and micro-batches that share a stream."""
    data = config(foreign, flip=True, **settings)
    found = []
    for number, shares in enumerate(SHARES):
        records = tmp_path if number % 2 else None  # with an index, and without
        steps = 4 * shares[0].accumulation_steps
        parts = [by_position(delivered(data, share, start, steps, records)) for share in shares]
        assert sum(map(len, parts)) == 48
        found.append({key: value for part in parts for key, value in part.items()})
    assert all(other == found[0] for other in found)
    assert sorted(found[0]) == list(range(start, start + 48))


def test_resumed_streams_continue_exactly(foreign: Path, tmp_path: Path) -> None:
    data = config(foreign, flip=True, shuffle_window=12)
    share = Share(0, 1, 6)
    uninterrupted = by_position(delivered(data, share, 0, 40))
    for start in (6, 30, 6 * 17, 6 * 33):
        rest = by_position(delivered(data, share, start, 40 - start // 6))
        assert rest == {p: value for p, value in uninterrupted.items() if p >= start}


def test_with_the_index_of_the_first_pass_nothing_is_read_again(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain = backend.read_samples

    def counted(url: str, seconds: float) -> Any:
        read.append(url)
        return plain(url, seconds)

    monkeypatch.setattr(backend, "read_samples", counted)
    data = config(foreign, shuffle=False)
    expected = delivered(data, Share(0, 1, 8), 0, TOTAL)
    delivered(data, Share(0, 1, 8), 0, TOTAL // 4, tmp_path)
    (file,) = tmp_path.iterdir()
    assert ShardCounts(file).get(0) == SIZES[0]
    for thread in threading.enumerate():  # what reads ahead ends after its window
        if thread.name.startswith("webdataset"):
            thread.join()
    read.clear()
    far = delivered(data, Share(0, 1, 8), 8 * 40, 1, tmp_path)
    assert labels(far) == labels(expected[40:41])
    place = 8 * 40 % TOTAL
    shard = next(n for n, end in enumerate(itertools.accumulate(SIZES)) if place < end)
    assert read[0] == str(foreign / f"part-{shard:03d}.tar"), "the shards before it are not opened"


def test_an_index_that_was_written_badly_is_done_without(tmp_path: Path) -> None:
    counts = ShardCounts(tmp_path / "a/index")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ShardCounts(tmp_path / "a/index").record(n, n + 5), range(100)))
    counts.record(100, 7)
    file = tmp_path / "a/index"
    lines = file.read_text().split()
    assert len(lines) == 3 * 101
    file.write_text(file.read_text().replace("\n7 12 ", "\n7 1").replace("\n8 13 ", "\nx\0 13 "))
    read = ShardCounts(file)
    known = {n: read.get(n) for n in range(101)}
    assert known == {n: n + 5 for n in range(100)} | {100: 7, 7: None, 8: None}
    (tmp_path / "file").touch()
    ShardCounts(tmp_path / "file/index").record(1, 1)


@pytest.mark.parametrize(
    ("label", "members"),
    [
        ("cls", {"cls": lambda n: n}),
        ("json:class_id", {"json": lambda n: {"class_id": n, "caption": "a cat"}}),
        ("txt", {"txt": str}),
    ],
)
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_members_that_are_labels(
    tmp_path: Path, label: str, members: dict[str, Callable[[int], Any]], ending: str
) -> None:
    write_foreign(tmp_path, (4, 4), ending, **members)
    data = config(tmp_path / "part-{000..001}.tar", label=label, shuffle=False)
    (batch,) = delivered(data, Share(0, 1, 8), 0, 1)
    assert labels([batch]) == list(range(8))
    (plain,) = delivered(config(tmp_path, num_classes=None), Share(0, 1, 8), 0, 1)
    assert plain.labels is None


def test_what_a_path_may_be(foreign: Path, tmp_path: Path) -> None:
    expected = labels(delivered(config(foreign, shuffle=False), Share(0, 1, 10), 0, 4))
    for path in (
        f"{foreign}/part-{{000..005}}.tar",
        f"{foreign}/part-*.tar",
        f"{foreign}/part-{{000..002}}.tar::{foreign}/part-{{003..005}}.tar",
        f"pipe:cat {foreign}/part-{{000..005}}.tar",
        f"file://{foreign}/part-{{000..005}}.tar",
    ):
        found = labels(delivered(config(path, shuffle=False), Share(0, 1, 10), 0, 4))
        assert found == expected, path


def test_a_set_that_moved_is_the_same_and_another_batch_is_another_order(
    foreign: Path, tmp_path: Path
) -> None:
    write_foreign(tmp_path / "moved")
    here, moved = (describe_data(config(path), 12) for path in (foreign, tmp_path / "moved"))
    assert here.identity == moved.identity
    assert describe_data(config(foreign), 24).identity != here.identity
    assert describe_data(config(foreign, label="txt"), 12).digest != here.digest
    assert describe_data(config(foreign / "part-{000..004}.tar"), 12).digest != here.digest
    pipeline = build_pipeline(config(foreign), seed=0, share=Share(1, 2, 3, 2))
    assert pipeline.info == here


def damage(foreign: Path, tmp_path: Path, names: Sequence[str]) -> Path:
    """Copy the first tars, the images of some names replaced by a text."""
    for tar in sorted(foreign.glob("*.tar"))[:3]:
        with tarfile.open(tar) as source, tarfile.open(tmp_path / tar.name, "w") as copy:
            for member in source:
                content = source.extractfile(member).read()  # type: ignore[union-attr]
                if member.name in names:
                    content = b"no image"
                    member.size = len(content)
                copy.addfile(member, io.BytesIO(content))
    return tmp_path


def test_damaged_samples_are_replaced_alike_on_all_ranks(foreign: Path, tmp_path: Path) -> None:
    damage(foreign, tmp_path, ["photo00002.png", "photo00012.cls"])
    data = config(tmp_path, max_corrupt=0.5)
    one = by_position(delivered(data, Share(0, 1, 8), 0, 6))
    two = [delivered(data, Share(rank, 2, 4), 0, 6) for rank in range(2)]
    assert one == by_position(two[0]) | by_position(two[1])
    assert not {2, 12} & {label for label, _ in one.values()}
    pipeline = build_pipeline(data, seed=0, share=Share(0, 1, 23))
    next(pipeline.batches(0))
    assert sorted(pipeline.corrupt.values()) == [
        "has no class in cls (data.label)",
        "not an image of a known format",
    ]
    with pytest.raises(TooManyCorrupt, match=r"[12] of .* max_corrupt=0\.0 allows .*photo000"):
        delivered(config(tmp_path, max_corrupt=0.0), Share(0, 1, 23), 0, 1)
    (tmp_path / "worse").mkdir()
    damage(foreign, tmp_path / "worse", [f"photo{number:05d}.png" for number in range(12)])
    with pytest.raises(TooManyCorrupt, match=r"1[12] of .* max_corrupt=0\.001 allows"):
        delivered(config(tmp_path / "worse"), Share(0, 1, 23), 0, 1)


def test_what_is_no_webdataset_is_named(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes((foreign / "part-000.tar").read_bytes()[:5000])
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(DatasetError, match=r"cut\.tar is no tar, or damaged .*copy it again"):
        delivered(config(tmp_path / "cut.tar"), Share(0, 1, 8), 0, 1)
    with pytest.raises(DatasetError, match=r"empty\.tar holds no samples"):
        delivered(config(tmp_path / "empty.tar"), Share(0, 1, 8), 0, 1)
    with pytest.raises(DatasetError, match=r"gone\.tar cannot be read: No such file"):
        delivered(config(tmp_path / "gone.tar"), Share(0, 1, 8), 0, 1)
    write_foreign(tmp_path / "texts", (3,), json=lambda n: {"label": n})
    with pytest.raises((DatasetError, TooManyCorrupt), match="has no class in json:class_id"):
        delivered(config(tmp_path / "texts", label="json:class_id"), Share(0, 1, 2), 0, 1)
    with pytest.raises(ValueError, match=r"names .*part-000\.tar more than once"):
        delivered(config(f"{foreign}/part-000.tar::{foreign}/part-000.tar"), Share(0, 1, 1), 0, 1)


def test_settings_of_packed_sets_are_for_packed_sets(foreign: Path, tmp_path: Path) -> None:
    mixed = config(foreign, mix=(MixedSet(path="other"),), subset=3)
    assert {"mix", "subset", "classes", "cache"} <= mixed.unread().keys()
    packed_set(write_class_dirs(tmp_path / "images", 2, 4), tmp_path / "set")
    assert {"num_classes", "label"} <= config(tmp_path / "set").unread().keys()
    for wrong in ("json", "json:", "class"):
        with pytest.raises(ValueError, match="is not cls, txt or json:KEY"):
            config(foreign, label=wrong)


def test_packed_sets_under_the_old_name_continue_as_pillow(tmp_path: Path) -> None:
    packed_set(write_class_dirs(tmp_path / "images"), tmp_path / "set")
    old = DataConfig(path=str(tmp_path / "set"), backend="webdataset", resolution=32, flip=True)
    new = DataConfig(path=str(tmp_path / "set"), backend="pillow", resolution=32, flip=True)
    assert describe_data(old) == describe_data(new)
    pairs = zip(
        delivered(old, Share(0, 1, 8), 40, 9), delivered(new, Share(0, 1, 8), 40, 9), strict=True
    )
    for one, other in pairs:
        assert torch.equal(one.images, other.images)
        assert one.positions == other.positions


def test_our_own_shards_stream_through_the_library(tmp_path: Path) -> None:
    packed_set(write_class_dirs(tmp_path / "images"), tmp_path / "set", resolution=16)
    data = config(tmp_path / "set/shards", num_classes=3, shuffle=False)
    streamed = delivered(data, Share(0, 1, 20), 0, 3)
    assert labels(streamed) == [0] * 20 + [1] * 20 + [2] * 20
    plain = DataConfig(path=str(tmp_path / "set"), backend="pillow", resolution=16, shuffle=False)
    for one, other in zip(streamed, delivered(plain, Share(0, 1, 20), 0, 3), strict=True):
        assert torch.equal(one.images, other.images), "an image of the resolution stays as it is"


def test_streams_read_a_window_ahead_only() -> None:
    read: list[int] = []

    def samples(shard: int, first: int) -> Any:
        for number in range(first, 10):
            read.append(shard * 10 + number)
            yield shard * 10 + number

    order = StreamOrder(3, 4, 0, False, 5)
    with ThreadPoolExecutor(1) as pool:
        stream = Stream(order, 0, 7, samples, lambda _: 10, pool)
        window, place = stream.take(7)
        assert window[place] == 7
        assert [w[p] for w, p in map(stream.take, (8, 13, 29, 30, 67))] == [8, 13, 29, 0, 7]
    assert read[0] == 7
    assert len(read) <= 1 + 67 - 7 + 2 * 5


def test_a_json_label_may_be_a_text_of_a_number(tmp_path: Path) -> None:
    write_foreign(tmp_path, (2,), json=lambda n: json.dumps({"y": str(n)}).encode())
    data = config(tmp_path, label="json:y", shuffle=False)
    assert labels(delivered(data, Share(0, 1, 2), 0, 1)) == [0, 1]
