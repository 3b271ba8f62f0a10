"""What a set's files say is checked before it is used: names, sizes, labels, checksums."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines import remote_files
from data_pipelines.__main__ import main
from data_pipelines.backends.build import build_pipeline, describe_data
from data_pipelines.datasets import open_data
from data_pipelines.packed.beton import (
    BETON,
    BETON_INDEX,
    BETON_RECORD,
    keep_only_beton,
    write_beton,
)
from data_pipelines.packed.check import check
from data_pipelines.packed.manifest import (
    INDEX,
    MANIFEST,
    DatasetError,
    Manifest,
    read_manifest,
    write_index,
    write_manifest,
)
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.packed.remote import MARK, FileCache
from data_pipelines.pipeline import DataConfig, MixedSet, Share
from models.safe_files import transient
from models.safe_files.documents import checksum
from tests.data_sets import damage, packed_set, write_class_dirs
from tests.flaky_files import make_flaky

BACKENDS = ("dali", "pillow", "ffcv")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage")
    packed_set(write_class_dirs(path / "source"), path / "set")
    write_beton(path / "set")
    return path / "set"


@pytest.fixture
def dataset(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "set"))


def config(path: Path | str, backend: str = "pillow", **settings: Any) -> DataConfig:
    return DataConfig(path=str(path), backend=backend, resolution=32, **settings)


def first_labels(path: Path, backend: str) -> list[int]:
    pipeline = build_pipeline(config(path, backend, shuffle=False), seed=0, share=Share(0, 1, 60))
    batches = pipeline.batches(0)
    labels = next(batches).labels
    batches.close()
    pipeline.close()
    assert labels is not None
    return labels.tolist()


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, and its checksum with it, as whoever means harm would."""
    document = json.loads((path / MANIFEST).read_bytes())
    change(document)
    document.pop("checksum", None)
    document["checksum"] = checksum(document)
    (path / MANIFEST).write_text(json.dumps(document))


def rejected(path: Path, capsys: pytest.CaptureFixture[str], command: str = "info") -> str:
    assert main([command, str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    return error


def test_manifests_of_newer_versions_are_read(dataset: Path) -> None:
    before = read_manifest(dataset)

    def add(document: dict[str, Any]) -> None:
        document["colour_space"] = {"name": "sRGB"}
        document["shards"][0]["compressed"] = False

    edit_manifest(dataset, add)
    assert read_manifest(dataset) == before
    assert main(["check", str(dataset)]) == 0


NAMES = [
    "../victim", "../../victim", "shards/../../victim", "/etc/passwd", "shards/000000.tar/../x",
    "victim", MANIFEST, INDEX, "shards/000000.tar\n", "shards/x.tar", "", "shards\\000000.tar", ".",
    "shards//000000.tar", "./shards/000000.tar", "shards/000000.tar\0", "~/x", "set.beton/x",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_shards_have_the_names_that_packing_gives(
    dataset: Path,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_files, "FIRST_DELAY", 0.01)
    edit_manifest(dataset, lambda document: document["shards"][1].update(name=name))
    assert "is no name of a shard" in rejected(dataset, capsys)
    cache = FileCache(tmp_path / "cache", 10**9)
    with pytest.raises(DatasetError, match=r"set/\{\}/manifest\.json .* is no name of a shard"):
        ShardedImages(f"pipe:cat {dataset}/{{}}", cache=cache)
    assert not cache.path.exists(), "nothing is written before the manifest is checked"


@pytest.mark.parametrize(
    "change",
    [
        {"num_images": -1}, {"num_images": "60"}, {"num_images": 10**30}, {"resolution": -2},
        {"shards": []}, {"shards": None}, {"shards": [3]}, {"class_names": "abc"},
        {"class_names": ["a"]}, {"class_counts": [20, 20, -20]}, {"source": []}, {"options": 3},
        {"index_sha256": "x"}, {"digest": None}, {"skipped": {"a": "b"}}, {"kind": ["folder"]},
    ],
    ids=str,
)  # fmt: skip
def test_values_of_a_manifest_are_checked(
    dataset: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    edit_manifest(dataset, lambda document: document.update(change))
    assert f"{MANIFEST} does not parse" in rejected(dataset, capsys)
    edit_manifest(dataset, lambda document: [document.pop(name) for name in change])
    assert f"{MANIFEST} does not parse" in rejected(dataset, capsys)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"3", b'"x"', b"{}", b"[" * 10**5])
def test_other_documents_are_no_manifest(
    dataset: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (dataset / MANIFEST).write_bytes(content)
    for command in ("info", "check", "beton"):
        assert MANIFEST in rejected(dataset, capsys, command)


@pytest.mark.parametrize("backend", BACKENDS)
def test_flipped_bits_of_the_index_are_found(dataset: Path, backend: str) -> None:
    rng = random.Random(backend)
    content = (dataset / INDEX).read_bytes()
    labels = first_labels(dataset, backend)
    for _ in range(10):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (dataset / INDEX).write_bytes(changed)
        with pytest.raises(DatasetError, match=r"index\.npy"):
            first_labels(dataset, backend)
        with pytest.raises(DatasetError, match=r"index\.npy"):
            describe_data(config(dataset, backend))
    (dataset / INDEX).write_bytes(content)
    assert first_labels(dataset, backend) == labels


def set_rows(path: Path, **columns: object) -> None:
    """Change an index, and its checksum with it."""
    index = np.load(path / INDEX)
    for name, value in columns.items():
        index[name][7] = value
    sha256 = write_index(path, index)
    write_manifest(path, dataclasses.replace(read_manifest(path), index_sha256=sha256))


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"label": 32512}, "the label 32512, the classes are 0 to 2"),
        ({"label": 3}, "the label 3, the classes are 0 to 2"),
        ({"label": -1}, "the label -1, the classes are 0 to 2"),
        ({"shard": 99}, "its shards are not in the order 0 to 3"),
        ({"shard": 3}, "its shards are not in the order 0 to 3"),
        ({"offset": 2**63}, "it names bytes behind the end of a shard"),
        ({"offset": 2**64 - 1, "length": 2}, "it names bytes behind the end of a shard"),
        ({"length": 2**31}, "it names bytes behind the end of a shard"),
    ],
    ids=str,
)
def test_rows_are_within_bounds(
    dataset: Path, columns: dict[str, int], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_rows(dataset, **columns)
    with pytest.raises(DatasetError, match=problem):
        ShardedImages(dataset)
    assert problem in check(dataset).problems[0]
    assert main(["check", str(dataset)]) == 2
    assert f"{INDEX}: it" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"x" * 5000], ids=str)
def test_files_that_are_no_index(dataset: Path, content: bytes) -> None:
    (dataset / INDEX).write_bytes(content)
    for verify in (True, False):
        with pytest.raises(DatasetError, match=r"index\.npy"):
            ShardedImages(dataset, check_index=verify)


def test_shards_are_checked_without_an_index_too(dataset: Path) -> None:
    content = bytearray((dataset / INDEX).read_bytes())
    content[-1] ^= 1
    (dataset / INDEX).write_bytes(content)
    shard = bytearray((dataset / "shards/000001.tar").read_bytes())
    shard[5000] ^= 1
    (dataset / "shards/000001.tar").write_bytes(shard)
    (dataset / "shards/000002.tar").unlink()
    assert check(dataset).problems[1:] == [
        "shards/000001.tar: damaged",
        "shards/000002.tar: the file is missing",
    ]


def test_flipped_bits_of_a_betons_index_are_found(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of old betons, whose record has no checksum of it, are found by reading everything."""
    rng = random.Random(0)
    content = (dataset / BETON_INDEX).read_bytes()
    record = json.loads((dataset / BETON_RECORD).read_bytes())
    old = {
        name: value for name, value in record.items() if name not in ("index_sha256", "checksum")
    }
    for document in (record, old):
        (dataset / BETON_INDEX).write_bytes(content)
        (dataset / BETON_RECORD).write_text(json.dumps(document))
        assert check(dataset).problems == []
        for _ in range(5):
            changed = bytearray(content)
            row = len(content) - 24 * 60 + 24 * rng.randrange(60)
            changed[row + rng.choice([0, 1, 12, 20])] ^= 1 << rng.randrange(8)
            (dataset / BETON_INDEX).write_bytes(changed)
            (problem,) = check(dataset).problems
            assert BETON_INDEX in problem or f"no complete {BETON}" in problem
        if document is record:
            with pytest.raises(DatasetError, match=r"set\.beton\.npy is damaged; write it with"):
                first_labels(dataset, "ffcv")
    assert main(["check", str(dataset)]) == 2
    write_beton(dataset)
    capsys.readouterr()


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b'{"digest": 3}', b'{"mode": []}'])
def test_odd_records_of_a_beton(dataset: Path, content: bytes) -> None:
    (dataset / BETON_RECORD).write_bytes(content)
    with pytest.raises(DatasetError, match=r"no complete set\.beton; write it with"):
        first_labels(dataset, "ffcv")
    assert "no complete" in check(dataset).problems[0]


def test_identities(original: Path, tmp_path: Path) -> None:
    """What is drawn from, and nothing else, decides on the digest."""
    packed_set(write_class_dirs(tmp_path / "s", per_class=8), tmp_path / "other")
    moved = Path(shutil.copytree(original, tmp_path / "moved"))

    def digest(path: Path | str = original, **settings: Any) -> str:
        data = open_data(config(path, **settings), seed=0)
        data.samples.close()
        return data.info.digest

    def mix(path: Path, weight: float = 1.0) -> tuple[MixedSet, ...]:
        return (MixedSet(path=str(path), weight=weight),)

    whole = read_manifest(original).digest
    everything = {
        "moved": digest(moved),
        "remote": digest(f"pipe:cat {original}/{{}}", cache=str(tmp_path / "cache")),
        "order": digest(shuffle=False, flip=True, shuffle_window=10),
        "all classes": digest(classes=("class2", "class0", "class1")),
        "all images": digest(subset=60),
    }
    assert set(everything.values()) == {whole}
    others = tmp_path / "other"
    different = [
        whole,
        digest(others),
        digest(classes=("class0",)),
        digest(classes=("class1", "class0")),
        digest(subset=10),
        digest(subset=11),
        digest(subset=10, classes=("class0",)),
        digest(mix=mix(others)),
        digest(mix=mix(others, 2.0)),
        digest(mix=mix(others), subset=10),
        digest(mix=mix(others), classes=("class0",)),
        digest(others, mix=mix(original)),
        digest(mix=mix(moved)),
    ]
    assert len(set(different)) == len(different)
    assert digest(classes=("class0", "class1")) == digest(classes=("class1", "class0"))
    assert digest(mix=mix(original)) == digest(moved, mix=mix(moved))
    text = json.dumps([[whole, read_manifest(others).digest], [1.0, 1.0]], separators=(",", ":"))
    assert digest(mix=mix(others)) == hashlib.sha256(text.encode()).hexdigest(), "as before"


class Pread:
    """os.pread that fails, or reads too little, a number of times."""

    def __init__(self, times: int, short: bool = False, number: int = errno.EIO) -> None:
        self.times, self.short, self.number = times, short, number
        self.real = os.pread

    def __call__(self, file: int, length: int, offset: int) -> bytes:
        if self.times <= 0:
            return self.real(file, length, offset)
        self.times -= 1
        if self.short:
            return b""
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("backend", ["pillow", "ffcv"])
@pytest.mark.parametrize("failing", [{}, {"number": errno.ESTALE}, {"short": True}], ids=str)
def test_a_moment_of_trouble_is_no_damage(
    dataset: Path, backend: str, failing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transient, "DELAYS", (0.0, 0.0, 0.0))
    settings = config(dataset, backend, shuffle=False)
    for times, damaged in ((1, 0), (3, 0), (4, 1)):
        monkeypatch.setattr(os, "pread", Pread(times, **failing))
        pipeline = build_pipeline(settings, seed=0, share=Share(0, 1, 4))
        batches = pipeline.batches(0)
        list(itertools.islice(batches, 2))
        batches.close()
        pipeline.close()
        assert len(pipeline.corrupt) == damaged, "a lasting error is damage"
        monkeypatch.undo()
        monkeypatch.setattr(transient, "DELAYS", (0.0, 0.0, 0.0))


def test_files_that_cannot_be_opened_for_a_moment_are_opened_again(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest, the index (which numpy maps) and each shard (by a descriptor)."""
    before = ShardedImages(dataset).read(5)
    opened = os.open
    for number in (errno.EIO, errno.ESTALE):
        with monkeypatch.context() as patch:
            failed = make_flaky(patch, lambda path: dataset in path.parents, 3, number)

            def flaky(name: Any, *options: Any, failed: Any = failed, **more: Any) -> int:
                path = Path(os.fsdecode(name))
                if path.suffix == ".tar" and failed[path] < 3:
                    failed[path] += 1
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
                return opened(name, *options, **more)

            patch.setattr(os, "open", flaky)
            assert ShardedImages(dataset).read(5) == before
        assert {path.name for path in failed} == {MANIFEST, INDEX, "000000.tar"}


def test_reads_in_pieces_are_complete(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals and network file systems may deliver fewer bytes than were asked for."""
    images, real = ShardedImages(dataset), os.pread
    before = images.read(5)
    monkeypatch.setattr(
        os, "pread", lambda file, length, offset: real(file, min(length, 7), offset)
    )
    assert images.read(5) == before


def test_files_that_are_cut_are_not_waited_for(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transient, "DELAYS", (1000.0,))
    os.truncate(dataset / "shards/000000.tar", 3000)
    assert len([line for line in check(dataset).problems if "sample" in line]) == 15


def make_foreign(path: Path) -> list[Path]:
    files = [
        path / "imagenet/train.tar", path / "set/shards/000000.tar", path / "000000.tar",
        path / "0123456789abcdef/shards/000000.tar", path / "a/b/c.tar",
    ]  # fmt: skip
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 10**6)
        os.utime(file, (1, 1))
    return files


def test_the_cache_removes_only_what_it_made(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FileCache(tmp_path / "cache", 1)
    foreign = make_foreign(cache.path)
    images = ShardedImages(f"pipe:cat {dataset}/{{}}", cache=cache)
    own = images.path / "shards"
    for name in ("notes.tar", "backup-000000.tar"):
        (images.path / name).touch()
        foreign += [images.path / name, own / name]
        own.mkdir(exist_ok=True)
        (own / name).write_bytes(b"x" * 10**6)
    link = own / "999999.tar"
    link.symlink_to(foreign[0])
    with caplog.at_level("INFO"):
        for index in (0, 20, 40, 59):
            images.read(index)
    images.close()
    assert all(file.exists() for file in [*foreign, link])
    assert [file.name for file in own.glob("0*.tar")] == ["000003.tar"]
    lines = [line for line in caplog.messages if "removed the least recently used shard" in line]
    assert [line.rpartition("/")[2] for line in lines] == [f"00000{n}.tar" for n in range(3)]
    levels = [record.levelname for record in caplog.records if "is full" in record.msg]
    assert levels == ["WARNING", "INFO", "INFO"]
    assert str(dataset) in (images.path / MARK).read_text()


def test_room_is_made_in_all_sets_of_the_cache(dataset: Path, tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 1)
    sets = [ShardedImages(f"pipe:cat {dataset}{tail}/{{}}", cache=cache) for tail in ("", "/.")]
    (sets[0].path / MARK).unlink()  # as of a cache that an older version made
    sets[0] = ShardedImages(f"pipe:cat {dataset}/{{}}", cache=cache)
    for number, images in enumerate(sets):
        images.read(0)
        images.read(59)
        found = [list((other.path / "shards").glob("*.tar")) for other in sets]
        assert [len(files) for files in found] == [int(number == 0), int(number == 1)]
        images.close()


def test_a_manifest_that_arrives_twice_is_no_damaged_transfer(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "FIRST_DELAY", 0.01)
    edit_manifest(dataset, lambda document: document["shards"][1].update(name="../x.tar"))
    log = tmp_path / "log"
    url = f"pipe:sh -c 'echo again >> {log}; cat {dataset}/{{}}'"
    with pytest.raises(DatasetError, match="is no name of a shard"):
        ShardedImages(url, cache=FileCache(tmp_path / "cache", 10**9))
    assert log.read_text().split() == ["again"] * 2


def test_remote_betons_are_rejected(dataset: Path, tmp_path: Path) -> None:
    manifest: Manifest = read_manifest(dataset)
    beton = dataclasses.replace(manifest.shards[0], name=BETON)
    write_manifest(dataset, dataclasses.replace(manifest, shards=(beton,)))
    with pytest.raises(DatasetError, match="is a beton alone"):
        ShardedImages(f"pipe:cat {dataset}/{{}}", cache=FileCache(tmp_path / "cache", 1))


def test_files_of_the_user_stay_where_a_beton_replaces_shards(dataset: Path) -> None:
    (dataset / "shards/notes.tar").write_text("mine")
    keep_only_beton(dataset)
    assert sorted(path.name for path in (dataset / "shards").iterdir()) == ["notes.tar"]
    assert first_labels(dataset, "ffcv") == [0] * 20 + [1] * 20 + [2] * 20
    (dataset / "shards/notes.tar").unlink()
    (dataset / "shards/000002.tar").touch()  # of a run that was killed here
    keep_only_beton(dataset)
    assert not (dataset / "shards").exists()


def test_pictures_are_written_completely_or_not_at_all(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sheet.png", "sheet.JPG", "sheet.webp"):
        assert main(["preview", str(dataset), str(tmp_path / name), "--count", "2"]) == 0
    for name in ("sheet", "sheet.xyz"):
        assert main(["preview", str(dataset), str(tmp_path / name), "--count", "2"]) == 2
        assert f"{name} has no extension of a picture" in capsys.readouterr().err
    damage(dataset, list(range(60)))
    before = (tmp_path / "sheet.png").read_bytes()
    assert main(["preview", str(dataset), str(tmp_path / "sheet.png")]) == 2
    assert (tmp_path / "sheet.png").read_bytes() == before
    assert not list(tmp_path.glob(".*"))
