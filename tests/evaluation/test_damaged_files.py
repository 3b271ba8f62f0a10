"""Damaged files of evaluation are one line; files of others are not replaced."""

from __future__ import annotations

import errno
import json
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from evaluation import __main__ as cli
from evaluation.detectors.base import load_checked
from evaluation.features.batches import BatchStore, MomentStore
from evaluation.image_sets.image_set import RECORDS, open_images
from evaluation.image_sets.npz import NpzArray, read_npz, write_npz
from evaluation.metrics.statistics import FeatureSet, moments_of
from evaluation.reference.exporters import export
from evaluation.reference.importers import read_statistics
from evaluation.reference.statistics_file import read_reference, write_reference
from evaluation.results.result_file import find_results, read_result
from models.analysis.figures import save_figure
from tests.flaky_files import make_flaky
from tests.slurm.project import make_run

RNG = np.random.default_rng(0)
INCEPTION = {"name": "inception", "pipeline": "tf1"}


def write_images(directory: Path, count: int = 6, size: int = 32) -> Path:
    directory.mkdir(parents=True)
    for number in range(count):
        pixels = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((size, size)).save(directory / f"{number}.png")
    return directory


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with images, their reference, and a result."""
    top = tmp_path_factory.mktemp("evaluated")
    images, reference = write_images(top / "images"), top / "reference.npz"
    assert cli.main(["reference", str(images), str(reference)]) == 0
    assert run(top) == 0
    return top


@pytest.fixture
def copy(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "copy"))


def run(top: Path, out: str = "result.json", *options: str) -> int:
    arguments = [str(top / "images"), "--reference", str(top / "reference.npz")]
    return cli.main(["run", *arguments, "--out", str(top / out), *options])


def snapshot_of(path: Path) -> dict[str, Any]:
    return {
        entry.relative_to(path).as_posix(): entry.read_bytes() if entry.is_file() else None
        for entry in path.rglob("*")
    }


def rejected(arguments: list[str], capsys: pytest.CaptureFixture[str], named: Path) -> str:
    """Check that a command is rejected in one line that names a file; returns the line."""
    capsys.readouterr()
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert str(named) in error
    return error


def change(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(document))


def change_old(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text()) | changes
    del document["checksum"]
    path.write_text(json.dumps(document))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "binary": lambda path: path.write_bytes(b"\xff\x00" * 50),
    "a list": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "deep": lambda path: path.write_text('{"a":' * 20_000),
    "another value": lambda path: change(path, title="other"),
    "an extra field": lambda path: change(path, added=1),
    "metrics": lambda path: change_old(path, metrics=[1]),
    "values": lambda path: change_old(path, metrics={"fd": {"values": {"distance": "x"}}}),
    "images": lambda path: change_old(path, images={"num_images": "x"}),
    "reference": lambda path: change_old(path, reference=None),
    "protocol": lambda path: change_old(path, protocol={"published": 3}),
    "samples": lambda path: change_old(path, samples={"models": [3]}),
    "seconds": lambda path: change_old(path, seconds={}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_results(copy: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = copy / "result.json"
    DAMAGE[damage](result)
    before = snapshot_of(copy)
    arguments = ["run", str(copy / "images"), "--reference", str(copy / "reference.npz")]
    rejected([*arguments, "--out", str(result)], capsys, result)
    rejected(["table", str(result)], capsys, result)
    assert snapshot_of(copy) == before, "left as it is"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_does_not_hide_the_others(
    copy: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(copy / "result.json", copy / "other.json")
    (copy / "notes.json").write_text('{"mine": 1}')
    DAMAGE[damage](copy / "other.json")
    capsys.readouterr()
    found = find_results([copy])
    assert len(found) == 1
    error = capsys.readouterr().err
    known = damage not in ("a list",) or "expected a JSON object" in error
    assert known
    assert str(copy / "other.json") in error
    assert error.count("\n") == 1
    assert cli.main(["table", str(copy)]) == 0
    assert cli.main(["compare", str(copy)]) == 0


def test_results_of_older_versions_have_no_checksum(copy: Path) -> None:
    path = copy / "result.json"
    expected = read_result(path)
    document = json.loads(path.read_text())
    for name in ("checksum", "nfe"):
        del document[name]
    path.write_text(json.dumps(document | {"added": 1}))
    assert read_result(path) == expected | {"added": 1}


def other_arrays(path: Path, **changes: Any) -> None:
    arrays = read_npz(path)
    write_npz(path, {k: v for k, v in {**arrays, **changes}.items() if v is not None})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def with_nan(path: Path, name: str) -> None:
    values = read_npz(path)[name].copy()
    values.flat[0] = np.nan
    other_arrays(path, **{name: values})


REFERENCES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "a bit": flip,
    "no meta": lambda path: other_arrays(path, meta=np.array("{}")),
    "meta is a list": lambda path: other_arrays(path, meta=np.array("[]")),
    "meta is deep": lambda path: other_arrays(path, meta=np.array('{"a":' * 20_000)),
    "no n": lambda path: other_arrays(path, n=None),
    "n is text": lambda path: other_arrays(path, n=np.array("x")),
    "n is a list": lambda path: other_arrays(path, n=np.array([1, 2])),
    "no sigma": lambda path: other_arrays(path, sigma=None),
    "sigma is text": lambda path: other_arrays(path, sigma=np.array("x")),
    "NaN in mu": lambda path: with_nan(path, "mu"),
    "NaN in features": lambda path: with_nan(path, "features_head"),
    "fewer features": lambda path: other_arrays(path, features_head=np.zeros((2, 3), np.float32)),
    "selected": lambda path: other_arrays(path, selected=np.array([0, 0, 1, 2, 3, 4])),
    "labels": lambda path: other_arrays(path, labels=np.zeros(2, np.int64)),
    "objects": lambda path: np.savez(path, mu=np.array([{}], dtype=object), meta=np.array("{}")),
}


@pytest.mark.parametrize("damage", REFERENCES)
def test_references(copy: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    reference = copy / "reference.npz"
    REFERENCES[damage](reference)
    before = snapshot_of(copy)
    arguments = ["run", str(copy / "images"), "--reference", str(reference)]
    rejected([*arguments, "--out", str(copy / "new.json")], capsys, reference)
    rejected(["reference", str(copy / "images"), str(reference)], capsys, reference)
    assert snapshot_of(copy) == before


def test_npz_bombs_are_rejected_before_anything_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    header = header.ljust(117) + b"\n"
    lying = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", lying)
    with pytest.raises(ValueError, match=r"bomb.npz .*has the shape \[1000000, 1000000\]"):
        read_npz(path)
    with pytest.raises(ValueError, match=r"bomb.npz .*has the shape"):
        NpzArray(path, "mu")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"a{number}.npy", bytes(60 << 20))
    with pytest.raises(ValueError, match=r"bomb.npz cannot be read as npz: its members have"):
        read_npz(path)


def test_a_flipped_bit_in_a_batch_of_images_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "batch.npz"
    write_npz(path, {"arr_0": RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)})
    assert len(open_images(path)) == 4
    flip(path)
    assert "CRC" in rejected(["reference", str(path), str(tmp_path / "r.npz")], capsys, path)


def png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header says that it is large; its pixels are a few bytes of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", [load_checked, read_statistics])
@pytest.mark.parametrize("start", [b"\x80\x02cbuiltins\nbytearray\n", b"c__builtin__\nbytearray\n"])
def test_weights_that_ask_for_memory_are_rejected(
    tmp_path: Path, read: Callable[[Path, Any], object], start: bytes
) -> None:
    """A pickle that is 40 bytes long, and a bytearray that is 2 GB."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        archive.writestr("a/data.pkl", start + b"J\xff\xff\xff\x7f\x85R.")
        archive.writestr("a/version", "3\n")
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb.pt .*bytearray"):
        read(tmp_path / "bomb.pt", None if read is load_checked else INCEPTION)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("edge", [9_000, 12_000, 60_000])
@pytest.mark.parametrize("name", ["0.png", "5.png"])
def test_bombs_among_images(
    tmp_path: Path, edge: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images")
    (images / name).write_bytes(png_of(edge, edge))
    arguments = ["reference", str(images), str(tmp_path / "r.npz")]
    assert name in rejected(arguments, capsys, images)
    with open(images / name, "wb") as file:
        file.truncate(1 << 40)
    # the digest of the set is of all files, read first
    assert "more than any image" in rejected(arguments, capsys, images)


def test_bombs_in_zips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for image in write_images(tmp_path / "images").iterdir():
            archive.write(image, image.name)
        archive.writestr("bomb.png", bytes(100 << 20))
    assert "expands from" in rejected(["reference", str(path), str(tmp_path / "r")], capsys, path)


def test_an_image_that_cannot_be_read_for_a_moment_is_read_again(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_images(copy / "images").identity["digest"]
    for number in (errno.EIO, errno.ESTALE):
        with monkeypatch.context() as patch:
            failed = make_flaky(patch, lambda path: path.suffix == ".png", 2, number)
            assert open_images(copy / "images").identity["digest"] == expected
            assert failed.total() == 12
    make_flaky(monkeypatch, lambda path: path.name == "3.png", 10**6)
    with pytest.raises(ValueError, match=r"3.png cannot be read now: Input/output error"):
        assert open_images(copy / "images").identity


def test_arrays_that_cannot_be_read_for_a_moment_are_read_again(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_flaky(monkeypatch, lambda path: path.suffix == ".npz", 3)
    assert read_reference(copy / "reference.npz").n == 6


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("kind", ["thesis", "directory"])
def test_outputs_replace_nothing_of_others(
    copy: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = copy / "mine"
    if kind == "thesis":
        mine.write_bytes(b"%PDF-1.4 chapter 1")
    else:
        (mine / "chapters").mkdir(parents=True)
    images, reference = str(copy / "images"), str(copy / "reference.npz")
    before = snapshot_of(copy)
    commands = [
        ["run", images, "--reference", reference, "--out", str(mine)],
        ["run", images, "--reference", reference, "--out", str(copy / "n"), "--grid", str(mine)],
        ["reference", images, str(mine)],
        ["export", reference, str(mine), "--format", "pytorch_fid"],
        ["export", images, str(mine), "--format", "adm_samples"],
    ]
    for command in commands[:-1] if kind == "thesis" else commands:
        rejected(command, capsys, mine)
        assert snapshot_of(copy) == before, command
    rejected(commands[-1], capsys, mine)
    assert snapshot_of(copy) == before


def test_exports_are_written_once_and_links_are_followed(copy: Path) -> None:
    features = read_reference(copy / "reference.npz")
    target, link = copy / "target.npz", copy / "link.npz"
    link.symlink_to(target)
    for _ in range(2):
        export(features, link, "pytorch_fid")
    assert link.is_symlink()
    assert read_npz(target).keys() == {"mu", "sigma"}


def test_grids_are_bounded_and_replace_grids(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = copy / "grid.png"
    for _ in range(2):
        assert run(copy, "result.json", "--grid", str(grid)) == 0
    assert grid.read_bytes().startswith(PNG)
    capsys.readouterr()
    photograph = copy / "photograph.png"
    Image.new("RGB", (8, 8)).save(photograph)
    content = photograph.read_bytes()
    assert run(copy, "result.json", "--grid", str(photograph)) == 2
    assert "photograph.png is not a grid of ours" in capsys.readouterr().err
    assert photograph.read_bytes() == content
    assert run(copy, "result.json", "--grid", str(grid), "--grid-upscale", "9999") == 2
    assert "lower them" in capsys.readouterr().err


def test_samples_go_only_where_samples_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = make_run(tmp_path / "run") / "snapshots" / f"{8:012d}"
    out = write_images(tmp_path / "photos", 2)
    (out / "dataset.json").write_text("mine")
    before = snapshot_of(out)
    command = ["sample", str(snapshot), "--out", str(out), "--seeds", "0-1", "sampling.steps=2"]
    rejected(command, capsys, out)
    assert {k: v for k, v in snapshot_of(out).items() if k != ".lock"} == before
    command[3] = str(tmp_path / "samples")
    assert cli.main(command) == 0
    record = tmp_path / "samples" / "samples.json"
    content = record.read_text()
    forged = {k: v for k, v in json.loads(content).items() if k != "checksum"}
    forged["identity"]["seeds"] = "0.1"
    documents = [RECORDS.to_bytes(forged).decode(), content.replace('"seconds": ', '"seconds": 1')]
    for damaged in ("", "[]", "null", content[:50], *documents):
        record.write_text(damaged)
        rejected(command, capsys, record)
        rejected(["reference", str(record.parent), str(tmp_path / "r.npz")], capsys, record)
        assert record.read_text() == damaged
    record.write_text(content)
    assert cli.main(command) == 0


def test_plots_replace_plots_only(tmp_path: Path) -> None:
    for _ in range(2):
        written = save_figure(Figure(), tmp_path / "fd")
    for path in written:
        path.write_bytes(PNG + b"a photograph")
        with pytest.raises(ValueError, match=rf"{path.name} is not a plot of ours"):
            save_figure(Figure(), tmp_path / "fd")
        assert path.read_bytes() == PNG + b"a photograph"
        path.unlink()


@pytest.mark.parametrize("kind", ["batches", "moments"])
def test_files_that_a_listing_lacks_are_counted_and_damaged_ones_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rows = RNG.normal(size=(6, 2)).astype(np.float32)
    stores = [
        BatchStore(tmp_path, 2)
        if kind == "batches"
        else MomentStore(tmp_path, 2, range(6), every=1)
        for _ in range(2)
    ]
    for start, store in zip((0, 3), stores, strict=True):
        store.write(start, range(start, start + 3), rows[start : start + 3])
    names = sorted(stores[0].written | stores[1].written)
    assert stores[0].names() == names
    with monkeypatch.context() as patch:
        patch.setattr("os.listdir", lambda path: [])
        assert len(stores[0].collect(6, names)[1]) == 6
    path = tmp_path / names[0]
    nan = np.full((3, 2), np.nan, np.float32)
    name = "values" if kind == "batches" else "features"
    for changes in ({name: nan}, {name: nan[:2]}, {"indices": np.array([0, 1, 9])}, {name: None}):
        content = path.read_bytes()
        other_arrays(path, **changes)
        with pytest.raises(ValueError, match=path.name):
            stores[0].collect(6, names)
        path.write_bytes(content)


def test_references_round_trip(tmp_path: Path) -> None:
    rows = RNG.normal(size=(6, 2)).astype(np.float32)
    meta = {"images": {"path": "x"}, "detector": {"name": "a", "pipeline": "b"}}
    features = FeatureSet(meta, 6, {"t": moments_of(rows).gaussian()}, {"t": rows}, range(6))
    write_reference(tmp_path / "r.npz", features)
    np.testing.assert_array_equal(read_reference(tmp_path / "r.npz").rows("t"), rows)
