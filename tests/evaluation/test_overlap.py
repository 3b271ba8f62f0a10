"""Threads work ahead of the caller: in order, in bounded memory, and errors reach it."""

from __future__ import annotations

import io
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import __main__ as cli
from evaluation.detectors.base import DetectorConfig
from evaluation.detectors.registry import build_detector
from evaluation.features.batches import BatchStore
from evaluation.image_sets.image_set import READERS, open_images
from evaluation.overlap import ahead, cores_of_rank

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("evaluation.overlap.cores_of_rank", lambda: 3)


def png(seed: int, edge: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def write_set(path: Path, kind: str, count: int = 11) -> Path:
    """Write images as a directory, a zip, a tar (also compressed), an array or tars."""
    files = {f"{number:03d}.png": png(number) for number in range(count)}
    if kind == "directory":
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
        return path
    if kind == "zip":
        path = path.with_suffix(".zip")
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    if kind == "npz":
        pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in files.values()]
        path = path.with_suffix(".npz")
        np.savez_compressed(path, arr_0=np.stack(pixels))
        return path
    if kind == "tars":
        path.mkdir()
        names = sorted(files)
        write_tar(path / "000.tar", {name: files[name] for name in names[:5]}, "w")
        write_tar(path / "001.tar", {name: files[name] for name in names[5:]}, "w")
        return path
    path = path.with_suffix(f".{kind}")
    write_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str) -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_results_come_in_order_whatever_takes_longest() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number**2

    assert list(ahead(slow_first, range(20), threads=4)) == [n**2 for n in range(20)]
    assert list(ahead(slow_first, [], threads=4)) == []


def test_an_item_is_worked_on_while_the_caller_uses_another() -> None:
    """The caller holds the first result until the next one is being worked on: no deadlock."""
    started = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            started.set()
        return number

    for number in ahead(work, range(3), threads=1):
        assert number or started.wait(PATIENCE)


@pytest.mark.parametrize(("threads", "depth"), [(1, 0), (1, 5), (3, 0), (3, 7)])
def test_items_in_work_are_bounded(threads: int, depth: int) -> None:
    taken = used = most = 0

    def items() -> Iterator[int]:
        nonlocal taken, most
        for number in range(40):
            taken += 1
            most = max(most, taken - used)
            yield number

    for _ in ahead(lambda number: number, items(), threads=threads, depth=depth):
        used += 1
    assert used == 40
    assert most <= max(threads, depth) + 1


@pytest.mark.parametrize("of_items", [False, True])
def test_an_error_reaches_the_caller_and_what_is_in_work_is_finished(of_items: bool) -> None:
    def items() -> Iterator[int]:
        for number in range(10):
            if of_items and number == 4:
                raise ValueError("item 4 is bad")
            yield number

    def work(number: int) -> int:
        if not of_items and number == 4:
            raise ValueError("item 4 is bad")
        done.append(number)
        return number

    done: list[int] = []
    before = threading.active_count()
    seen: list[int] = []
    with pytest.raises(ValueError, match="item 4 is bad"):
        seen.extend(ahead(work, items(), threads=3))
    assert seen == [0, 1, 2, 3][: len(seen)]
    assert of_items or len(seen) == 4  # in its turn
    assert {*done} >= {0, 1, 2, 3}
    assert threading.active_count() == before


def test_cores_are_shared_by_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    for ranks, cores in (("", 8), ("1", 8), ("4", 4), ("16", 1), ("64", 1), ("x", 8)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert cores_of_rank() == cores


KINDS = ["directory", "zip", "tar", "tar.gz", "tars", "npz"]


@pytest.mark.parametrize("kind", KINDS)
def test_sets_are_read_ahead_in_order(tmp_path: Path, kind: str) -> None:
    images = open_images(write_set(tmp_path / "set", kind))
    expected = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(io.BytesIO(png(n))))).permute(2, 0, 1)
            for n in range(11)
        ]
    )
    todo: list[Sequence[int]] = [range(0, 4), range(4, 8), [10, 9], [8]]
    for indices, batch in zip(todo, images.batches(todo), strict=True):
        assert torch.equal(batch, expected[list(indices)])
    assert torch.equal(images.batch(range(11)), expected)


@pytest.mark.parametrize("kind", ["directory", "zip", "tar.gz", "tars"])
def test_digests_do_not_depend_on_threads(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_set(tmp_path / "set", kind)
    digests = []
    for cores in (1, 7):
        monkeypatch.setattr("evaluation.overlap.cores_of_rank", lambda cores=cores: cores)
        digests.append(open_images(path).identity["digest"])
    assert digests[0] == digests[1]


def test_files_are_hashed_by_several_threads_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(write_set(tmp_path / "set", "directory"))
    together = threading.Barrier(READERS)  # broken, and an error, unless all read at once
    read, met = images._read, threading.local()  # type: ignore[attr-defined]

    def reads(entry: object) -> bytes:
        if not hasattr(met, "others"):
            met.others = together.wait(PATIENCE)
        content: bytes = read(entry)
        return content

    monkeypatch.setattr(images, "_read", reads)
    assert len(images.identity["digest"]) == 64


@pytest.mark.parametrize("kind", ["directory", "zip", "tars"])
@pytest.mark.parametrize("bad", [b"no image", png(0, edge=16)])
def test_a_bad_image_is_named_in_one_line(
    tmp_path: Path, kind: str, bad: bytes, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(globals(), "png", lambda number: bad if number == 7 else _png(number))
    path = write_set(tmp_path / "set", kind)
    monkeypatch.undo()
    monkeypatch.setenv("RELAYWAVE_CACHE", str(tmp_path / "cache"))
    command = ["reference", str(path), str(tmp_path / "ref.npz"), "--batch-size", "2"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "007.png" in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "ref.npz").exists()


_png = png


def test_an_error_of_the_writer_ends_the_command_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_set(tmp_path / "set", "directory")
    write = BatchStore.write

    def full(self: BatchStore, start: int, *rest: object) -> None:
        if start == 4:
            raise OSError(28, "No space left on device", "batch")
        write(self, start, *rest)  # type: ignore[arg-type]

    command = ["reference", str(path), str(tmp_path / "ref.npz"), "--batch-size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(BatchStore, "write", full)
        assert cli.main(command) != 0
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1, error
    done = {file.name for file in (tmp_path / "cache").rglob("0*.npz")}
    assert {"000000000.npz", "000000002.npz"} <= done  # and is not computed again
    assert cli.main(command) == 0


def test_the_detector_runs_while_features_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is not written before the next one was computed: only threads can do that."""
    from evaluation.detectors.base import Detector

    computed = threading.Semaphore(0)
    call, write = Detector.__call__, BatchStore.write

    def counted(self: Detector, images: torch.Tensor) -> dict[str, torch.Tensor]:
        computed.release()
        return call(self, images)

    def waiting(self: BatchStore, start: int, *rest: object) -> None:
        if start == 0:
            assert computed.acquire(timeout=PATIENCE)  # the first batch itself
            assert computed.acquire(timeout=PATIENCE)
        write(self, start, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Detector, "__call__", counted)
    monkeypatch.setattr(BatchStore, "write", waiting)
    path = write_set(tmp_path / "set", "directory")
    command = ["reference", str(path), str(tmp_path / "ref.npz"), "--batch-size", "4"]
    assert cli.main([*command, "--taps", "block4"]) == 0


def test_images_of_one_size_are_checked_before_threads_start(tmp_path: Path) -> None:
    """The first image says which size is right, whichever thread is fastest."""
    path = write_set(tmp_path / "set", "directory")
    (path / "000.png").write_bytes(png(0, edge=16))
    images = open_images(path)
    with pytest.raises(ValueError, match=r"001.png is 32x32 pixels, others are 16x16"):
        list(images.batches([range(6), range(6, 11)]))


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_does_and_the_loop_does_not_wait_for_it(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", "directory", count=40)
    config, features = DetectorConfig(), []
    for name in ("cpu", "cuda"):
        detector = build_detector(config, torch.device(name)).with_taps(["block4"])
        pinned = open_images(path).batch(range(40))
        if name == "cuda":
            detector(pinned)  # loads the network
            pinned = pinned.pin_memory()
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            computed = detector(pinned)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        features.append(computed["block4"].cpu())
    torch.testing.assert_close(features[1], features[0], rtol=1e-4, atol=1e-4)
