from __future__ import annotations

import dataclasses
import errno
import fcntl
import io
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile

from data_pipelines.__main__ import main
from data_pipelines.images import BadImage, centre_square, decode_rgb
from data_pipelines.pack import worker
from data_pipelines.pack.options import PackError, PackOptions, stratified
from data_pipelines.pack.packer import Packer, Task
from data_pipelines.pack.shard_writer import ShardWriter
from data_pipelines.pack.work_dir import WorkDir
from data_pipelines.packed.manifest import (
    DatasetError,
    atomic_file,
    read_manifest,
    write_manifest,
)
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.sources.base import Entry, SourceError
from data_pipelines.sources.kinds import make_source
from data_pipelines.sources.lister.archives import tar_files
from models.command_line import EXIT_STORAGE
from tests.data_sets import encoded, pack, packed_set, smooth_pixels, write_class_dirs
from tests.paths import ROOT

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_dirs(tmp_path_factory.mktemp("images"))


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def skips(path: Path) -> dict[str, str]:
    lines = (path / "skipped.jsonl").read_text().splitlines()
    return {skip["name"]: skip["reason"] for skip in map(json.loads, lines)}


def square(pixels: np.ndarray, resolution: int) -> np.ndarray:
    return np.asarray(centre_square(Image.fromarray(pixels), resolution))


def test_packed_pixels_are_the_centre_crop(image_dir: Path, tmp_path: Path) -> None:
    manifest = packed_set(image_dir, tmp_path / "set")
    images = ShardedImages(tmp_path / "set")
    assert (len(images), images.info.resolution) == (60, 32)
    assert images.info.class_names == ("class0", "class1", "class2")
    assert manifest.class_counts == (20, 20, 20)
    for index in (0, 17, 59):
        expected = square(smooth_pixels(index), 32).transpose(2, 0, 1)
        assert np.array_equal(images.decode(index).numpy(), expected)
        assert images.read(index)[1] == images.label(index) == index // 20
    images.close()


def test_crop_offset_rounds_down() -> None:
    pixels = np.arange(7 * 4 * 3, dtype=np.uint8).reshape(7, 4, 3)
    assert np.array_equal(square(pixels, 4), pixels[1:5])


def test_shards_are_webdataset_tars(image_dir: Path, tmp_path: Path) -> None:
    packed_set(image_dir, tmp_path / "set")
    with tarfile.open(tmp_path / "set/shards/000001.tar") as archive:
        names = archive.getnames()
        cls = archive.extractfile("000000016.cls")
        assert cls is not None
        assert cls.read() == b"0"
    assert names[:4] == ["000000016.png", "000000016.cls", "000000017.png", "000000017.cls"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_give_the_same_set_as_the_directory(
    image_dir: Path, tmp_path: Path, kind: str
) -> None:
    archive = tmp_path / f"images.{kind}"
    files = sorted(file for file in image_dir.rglob("*") if file.is_file())
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as out:
            for file in files:
                out.write(file, f"some/where/{file.relative_to(image_dir)}")
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as out:
            for file in reversed(files):
                out.add(file, f"./{file.relative_to(image_dir)}")
    pack(make_source("images", archive), tmp_path / "a", PackOptions(resolution=16))
    pack(make_source("images", image_dir), tmp_path / "b", PackOptions(resolution=16))
    assert read_manifest(tmp_path / "a").info == read_manifest(tmp_path / "b").info


def test_bytes_do_not_depend_on_workers(
    image_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipelines.pack.worker.SMALL", 0)
    options = PackOptions(resolution=16, shard_images=7)
    for workers in (1, 2):
        pack(make_source("folder", image_dir), tmp_path / str(workers), options, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_digest_does_not_depend_on_the_shard_size(image_dir: Path, tmp_path: Path) -> None:
    digests = {
        packed_set(image_dir, tmp_path / str(size), shard_images=size).digest for size in (7, 60)
    }
    assert len(digests) == 1


def test_photographs_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", None)
    source = make_source("photographs", None)
    (manifest,) = pack(source, tmp_path / "set", PackOptions(resolution=64, limit=24)).values()
    assert manifest.class_counts == (3,) * 8
    (again,) = pack(source, tmp_path / "again", PackOptions(resolution=64, limit=24)).values()
    assert manifest.digest == again.digest
    assert len(source.list_items().entries) == 4096


def test_same_command_reuses_the_set(
    image_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = packed_set(image_dir, tmp_path / "set")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "set").rglob("*")}
    monkeypatch.setattr("data_pipelines.pack.packer.converted", None)
    assert packed_set(image_dir, tmp_path / "set") == first
    assert {file: file.stat().st_mtime_ns for file in before if file.is_file()} == {
        file: stamp for file, stamp in before.items() if file.is_file()
    }


def test_another_set_is_rejected(image_dir: Path, tmp_path: Path) -> None:
    packed_set(image_dir, tmp_path / "set")
    with pytest.raises(PackError, match=r"another set: resolution=\[32\], not \[16\]"):
        packed_set(image_dir, tmp_path / "set", resolution=16)
    other = write_class_dirs(tmp_path / "other", per_class=2)
    with pytest.raises(PackError, match=r"another set: 60 items from .* not the 6 now in"):
        packed_set(other, tmp_path / "set")
    with pytest.raises(PackError, match="holds other files"):
        packed_set(image_dir, other)


def test_interrupted_pack_goes_on(
    image_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed_set(image_dir, tmp_path / "complete")
    convert = worker.ChunkConverter._convert
    seen: list[str] = []

    def failing(self: worker.ChunkConverter, entry: worker.Entry) -> object:
        seen.append(entry.name)
        if len(seen) == 40:
            raise KeyboardInterrupt
        return convert(self, entry)

    monkeypatch.setattr(worker.ChunkConverter, "_convert", failing)
    with pytest.raises(KeyboardInterrupt):
        packed_set(image_dir, tmp_path / "set")
    with pytest.raises(DatasetError, match="unfinished pack"):
        read_manifest(tmp_path / "set")
    with pytest.raises(PackError, match=r"unfinished pack of another set: resolution=\[32\]"):
        packed_set(image_dir, tmp_path / "set", resolution=16)
    packed_set(image_dir, tmp_path / "set")
    assert len(seen) == 40 + 60 - 32  # two of four shards were finished
    assert contents(tmp_path / "set") == contents(tmp_path / "complete")


def test_killed_pack_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_pipelines", "pack", "photographs", str(tmp_path / "set")]
    options = ["--resolution", "64", "--shard-images", "100", "--workers", "2", "--limit", "1000"]
    process = subprocess.Popen(command + options, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("set/.packing/all-*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(running(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(int(child)) for child in children)
    subprocess.run(command + options, cwd=ROOT, check=True, capture_output=True)
    assert read_manifest(tmp_path / "set").num_images == 1000


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_unusable_items_are_listed_and_the_others_kept(tmp_path: Path) -> None:
    source = tmp_path / "mixed"
    source.mkdir()
    pixels = smooth_pixels(1)
    image = Image.fromarray(pixels)
    (source / "good.png").write_bytes(encoded(pixels))
    intact = encoded(smooth_pixels(2, 90, 90), "JPEG")
    (source / "cut.jpg").write_bytes(intact[: len(intact) // 2])
    Image.fromarray(pixels[:5, :3]).save(source / "tiny.png")
    image.convert("CMYK").save(source / "cmyk.jpg")
    image.convert("L").save(source / "grey.png")
    image.convert("P").save(source / "palette.png", transparency=0)
    Image.fromarray(np.full((30, 30), 0x8000, np.uint16)).save(source / "grey16.png")
    (source / "page.jpg").write_text("<html>")
    (source / "link.png").symlink_to("/nowhere")
    (source / "notes.txt").write_text("no image")
    manifest = packed_set(source, tmp_path / "set")
    assert manifest.num_images == 5
    reasons = skips(tmp_path / "set")
    assert set(reasons) == {"cut.jpg", "tiny.png", "page.jpg", "link.png", "notes.txt"}
    assert reasons["notes.txt"] == "not an image"
    assert reasons["tiny.png"] == "too small: 3x5 pixels, fewer than 16"
    assert reasons["link.png"] == "unreadable: No such file or directory"
    assert sum(manifest.skipped.values()) == 5


def test_modes_are_converted() -> None:
    grey16 = np.array([[0, 128, 256, 65535]], np.uint16)
    image = Image.fromarray(grey16)
    assert decode_rgb(png(image))[0, :, 0].tolist() == [0, 0, 1, 255]
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    assert decode_rgb(png(clear))[0, 0].tolist() == [255, 255, 255]
    with pytest.raises(BadImage, match="known format"):
        decode_rgb(b"<html>")


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_profiles_are_left_behind(tmp_path: Path, image_format: str) -> None:
    (tmp_path / "source").mkdir()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(smooth_pixels(1)).save(tmp_path / "source/a.png", icc_profile=profile)
    packed_set(tmp_path / "source", tmp_path / "set", image_format=image_format)
    images = ShardedImages(tmp_path / "set")
    with Image.open(io.BytesIO(images.read(0)[0])) as stored:
        assert "icc_profile" not in stored.info
    images.close()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_images_next_to_class_directories_are_listed(image_dir: Path, tmp_path: Path) -> None:
    source = write_class_dirs(tmp_path / "source", per_class=2)
    (source / "stray.png").write_bytes(encoded(smooth_pixels(0)))
    manifest = packed_set(source, tmp_path / "set")
    assert manifest.num_images == 6
    assert skips(tmp_path / "set") == {"stray.png": "no class directory"}


def test_too_many_skips_stop(tmp_path: Path) -> None:
    source = write_class_dirs(tmp_path / "source", per_class=2)
    (source / "class0" / "bad.png").write_bytes(b"bad")
    with pytest.raises(PackError, match="more than max_skips=0"):
        pack(make_source("folder", source), tmp_path / "s", PackOptions(resolution=16), max_skips=0)
    with pytest.raises(DatasetError, match="unfinished"):
        read_manifest(tmp_path / "s")


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.png").write_bytes(b"bad")
    with pytest.raises(PackError, match=r"no image of .*/source can be used; .*a\.png"):
        packed_set(source, tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.mkdir(), "holds no image"),
        (lambda p: (p.mkdir(), (p / "a.txt").write_text("x")), "holds no image"),
        (lambda p: p.write_text("text"), "neither a directory nor a zip or tar"),
        (lambda p: p.write_bytes(b"PK\3\4 and so on"), "a zip archive that is cut short; download"),
        (lambda p: None, "does not exist"),
    ],
)
def test_sources_without_images_are_rejected(tmp_path: Path, make: object, message: str) -> None:
    source = tmp_path / "source"
    make(source)
    with pytest.raises(SourceError, match=message):
        pack_images(source, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def pack_images(source: Path, destination: Path) -> None:
    pack(make_source("images", source), destination, PackOptions(resolution=16))


def test_cut_tar_is_rejected(image_dir: Path, tmp_path: Path) -> None:
    complete = tmp_path / "complete.tar"
    with tarfile.open(complete, "w") as out:
        out.add(image_dir, ".")
    cut = tmp_path / "cut.tar"
    cut.write_bytes(complete.read_bytes()[:30_000])
    with pytest.raises(SourceError, match="cannot be read as a tar archive: unexpected end"):
        pack(make_source("tar", cut), tmp_path / "set", PackOptions(resolution=16))


def test_full_disk_loses_nothing(
    image_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    packed_set(image_dir, tmp_path / "complete", resolution=16)
    arguments = ["pack", "folder", str(image_dir), str(tmp_path / "set"), "--resolution", "16"]
    arguments += ["--shard-images", "16", "--workers", "1"]
    writes = 0

    def full(self: object, content: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, content)

    write = ShardWriter._write
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "_write", full)
        assert main(arguments) == EXIT_STORAGE
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(contents(tmp_path / "set/shards")) == ["000000.tar"]
    assert main(arguments) == 0
    assert contents(tmp_path / "set") == contents(tmp_path / "complete")


def test_two_packers_on_one_destination(image_dir: Path, tmp_path: Path) -> None:
    lock = tmp_path / "set/.packing/lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is packing into"):
            packed_set(image_dir, tmp_path / "set")
    packed_set(image_dir, tmp_path / "set")


def test_edited_manifest_and_missing_shard_are_found(image_dir: Path, tmp_path: Path) -> None:
    packed_set(image_dir, tmp_path / "set")
    manifest = tmp_path / "set/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"num_images": 60', '"num_images": 61'))
    with pytest.raises(DatasetError, match="changed after packing"):
        read_manifest(tmp_path / "set")
    manifest.write_text(text)
    (tmp_path / "set/shards/000002.tar").unlink()
    with pytest.raises(DatasetError, match=r"000002\.tar cannot be read: No such file"):
        ShardedImages(tmp_path / "set")


def test_missing_sets_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is no directory; first: relaywave data pack"):
        read_manifest(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="holds no packed set"):
        read_manifest(tmp_path)


def test_atomic_file_keeps_the_old_content_on_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "file")
    assert contents(tmp_path) == {"file": b"old"}


def write_half(target: Path) -> None:
    with atomic_file(target) as file:
        file.write(b"new")
        raise RuntimeError


def test_several_resolutions_in_one_pass(image_dir: Path, tmp_path: Path) -> None:
    options = PackOptions(resolution=(32, 16), shard_images=16)
    manifests = pack(make_source("folder", image_dir), tmp_path / "sets", options)
    assert {path.name: m.resolution for path, m in manifests.items()} == {"16": 16, "32": 32}
    packed_set(image_dir, tmp_path / "one", resolution=16)
    for name in ("index.npy", "shards/000002.tar"):
        assert (tmp_path / "sets/16" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    with pytest.raises(DatasetError, match="holds several sets; take one of them: 16, 32"):
        read_manifest(tmp_path / "sets")
    assert pack(make_source("folder", image_dir), tmp_path / "sets", options) == manifests


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [((50, 33), (48, 32), (8, 0)), ((35, 64), (32, 58), (0, 13)), ((47, 40), (37, 32), (2, 0))],
)
def test_bilinear_filter_resizes_before_it_cuts(
    tmp_path: Path, size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    """(37 - 32) / 2 is rounded to the even 2, as torchvision's CenterCrop does."""
    (tmp_path / "source").mkdir()
    image = Image.fromarray(smooth_pixels(1, *size))
    image.save(tmp_path / "source/a.png")
    options = PackOptions(resolution=32, filter="bilinear")
    pack(make_source("folder", tmp_path / "source"), tmp_path / "set", options)
    left, top = corner
    want = image.resize(resized, Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
    images = ShardedImages(tmp_path / "set")
    assert np.array_equal(decode_rgb(images.read(0)[0]), np.asarray(want))
    assert images.manifest.options["filter"] == "bilinear"
    images.close()
    before = sorted((tmp_path / "set").rglob("*"))
    with pytest.raises(PackError, match="holds another set: filter=bilinear, not lanczos"):
        packed_set(tmp_path / "source", tmp_path / "set")
    assert sorted((tmp_path / "set").rglob("*")) == before


def test_sets_older_than_an_option_had_its_default(image_dir: Path, tmp_path: Path) -> None:
    manifest = packed_set(image_dir, tmp_path / "set")
    options = {name: value for name, value in manifest.options.items() if name != "filter"}
    older = dataclasses.replace(manifest, options=options)
    write_manifest(tmp_path / "set", older)
    assert packed_set(image_dir, tmp_path / "set") == older


def test_holdout_and_subset_are_stratified(image_dir: Path, tmp_path: Path) -> None:
    options = PackOptions(resolution=16, subset=31, holdout=7)
    manifests = pack(make_source("folder", image_dir), tmp_path / "sets", options)
    train, held = manifests[tmp_path / "sets/train"], manifests[tmp_path / "sets/holdout"]
    assert (train.num_images, held.num_images) == (24, 7)
    assert max(held.class_counts) - min(held.class_counts) <= 1
    assert max(train.class_counts) - min(train.class_counts) <= 1
    assert train.class_names == held.class_names


def test_stratified_choice_does_not_depend_on_the_order() -> None:
    entries = [Entry(f"{n}", n % 4, 1) for n in range(40)]
    chosen = {entries[n].name for n in stratified(entries, 8, "holdout")}
    backwards = entries[::-1]
    assert {backwards[n].name for n in stratified(backwards, 8, "holdout")} == chosen
    assert {entries[n].name for n in stratified(entries, 8, "subset")} != chosen
    with pytest.raises(PackError, match="holdout=40 of 40 items leaves none"):
        stratified(entries, 40, "holdout")


def test_duplicates_are_skipped_unless_the_set_is_published(tmp_path: Path) -> None:
    source = write_class_dirs(tmp_path / "source", classes=2, per_class=3)
    again = (source / "class0/000.png").read_bytes()
    (source / "class0/again.png").write_bytes(again)
    (source / "class1/again.png").write_bytes(again)
    manifest = packed_set(source, tmp_path / "set")
    assert manifest.class_counts == (3, 3)
    assert skips(tmp_path / "set") == {
        "class0/again.png": "duplicate: equals class0/000.png",
        "class1/again.png": "duplicate of another class: equals class0/000.png of 'class0'",
    }
    images = ShardedImages(tmp_path / "set")
    assert [images.label(index) for index in range(6)] == [0, 0, 0, 1, 1, 1]
    images.close()
    options = PackOptions(resolution=16, keep_duplicates=True)
    (kept,) = pack(make_source("folder", source), tmp_path / "kept", options).values()
    assert kept.num_images == 8


def write_copies(path: Path, copies: Sequence[int]) -> Path:
    """Write pictures, each under as many names as said."""
    path.mkdir()
    for number, times in enumerate(copies):
        for copy in range(times):
            (path / f"{copy}_{number:03d}.png").write_bytes(encoded(smooth_pixels(number)))
    return path


def pixels_of(path: Path) -> list[bytes]:
    images = ShardedImages(path)
    found = [images.decode(index).numpy().tobytes() for index in range(len(images))]
    images.close()
    return found


@pytest.mark.parametrize("resolution", [16, 0])
@pytest.mark.parametrize(
    ("copies", "holdout", "keep", "sizes"),
    [
        ([2] * 20, 20, True, (20, 20)),
        ([2] * 20, 10, False, (10, 10)),
        ([2] * 20, 19, False, (1, 19)),
        ([1] * 10 + [3] * 5, 7, True, (18, 7)),
        ([1] * 10 + [3] * 5, 7, False, (8, 7)),
        ([4, 3, 2, 2, 5], 9, True, (7, 9)),
        ([5, 5, 4, 4, 3], 12, True, (9, 12)),
    ],
)
def test_a_holdout_has_no_image_in_training(
    tmp_path: Path,
    copies: list[int],
    holdout: int,
    keep: bool,
    sizes: tuple[int, int],
    resolution: int,
) -> None:
    source = write_copies(tmp_path / "source", copies)
    options = PackOptions(
        resolution=resolution, holdout=holdout, keep_duplicates=keep, shard_images=6
    )
    pack(make_source("folder", source), tmp_path / "sets", options)
    sets = [tmp_path / "sets/train", tmp_path / "sets/holdout"]
    train, held = map(pixels_of, sets) if resolution else map(contents_of_originals, sets)
    assert (len(train), len(held)) == sizes
    assert not set(train) & set(held)
    shards = [shard for path in sets for shard in (path / "shards").iterdir()]
    written = sum(len(tar_files(shard)) for shard in shards)
    assert written == sum(copies)  # none in a shard of the other, not even unlisted


def contents_of_originals(path: Path) -> list[bytes]:
    images = ShardedImages(path)
    found = [images.read(index)[0] for index in range(len(images))]
    images.close()
    return found


def test_originals_of_equal_pixels_are_duplicates_whatever_their_metadata(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(6):
        image = Image.fromarray(smooth_pixels(number))
        exif = Image.Exif()
        exif[0x010E] = "another description"
        image.save(source / f"{number}.jpg", quality=90)
        image.save(source / f"{number}_copy.jpg", quality=90, exif=exif)
    options = PackOptions(resolution=0, holdout=3)
    pack(make_source("folder", source), tmp_path / "sets", options)
    sets = [tmp_path / "sets/train", tmp_path / "sets/holdout"]
    assert [read_manifest(path).num_images for path in sets] == [3, 3]
    names = [set(skips(path)) for path in sets]
    assert sum(map(len, names)) == 6


@pytest.mark.parametrize(
    ("copies", "holdout", "keep", "message"),
    [
        ([2] * 20, 20, False, "holdout=20 of 20 usable different images leaves none; take fewer"),
        ([2] * 20, 19, True, "holdout=19 cannot be met, .*; take 18 or 20, or --duplicates skip"),
        ([3, 3], 1, True, "holdout=1 cannot be met, .*; take 3, or --duplicates skip"),
    ],
)
def test_a_holdout_that_cannot_be_met_is_rejected(
    tmp_path: Path, copies: list[int], holdout: int, keep: bool, message: str
) -> None:
    source = write_copies(tmp_path / "source", copies)
    options = PackOptions(resolution=16, holdout=holdout, keep_duplicates=keep)
    with pytest.raises(PackError, match=message):
        pack(make_source("folder", source), tmp_path / "sets", options)
    assert not (tmp_path / "sets").exists()
    one = dataclasses.replace(options, holdout=None)
    assert pack(make_source("folder", source), tmp_path / "sets", one)


def test_unusable_items_do_not_shrink_a_holdout(tmp_path: Path) -> None:
    source = write_copies(tmp_path / "source", [1] * 12)
    for number in range(8):
        (source / f"bad{number}.png").write_bytes(b"bad")
    options = PackOptions(resolution=16, holdout=6, shard_images=5)
    sets = pack(make_source("folder", source), tmp_path / "sets", options)
    assert [manifest.num_images for manifest in sets.values()] == [6, 6]
    assert sum(sum(manifest.skipped.values()) for manifest in sets.values()) == 8


def test_array_tasks_and_interruptions_give_the_same_holdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source("folder", write_copies(tmp_path / "source", [2] * 15))
    options = PackOptions(resolution=(16, 8), holdout=7, shard_images=4)
    pack(source, tmp_path / "one", options)

    def packer() -> Packer:
        return Packer(source, tmp_path / "many", options)

    for number in (1, 0):
        packer().pack_share(Task(number, 2))
    with monkeypatch.context() as patch:
        patch.setattr("data_pipelines.pack.finish.write_manifest", None)
        with pytest.raises(TypeError):
            packer().finish()
    packer().finish()
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert packer().finish() == packer().pack()


def test_images_that_were_enlarged_are_counted(tmp_path: Path, capsys: Capture) -> None:
    source = write_class_dirs(tmp_path / "source", classes=2, per_class=3)  # 40 x 36 pixels
    Image.fromarray(smooth_pixels(9, 300, 200)).save(source / "class0/large.png")
    arguments = ["pack", "images", str(source), str(tmp_path / "sets"), "--resolution", "32,64"]
    assert main(arguments) == 0
    small, large = capsys.readouterr().out.splitlines()
    assert "were enlarged" not in small
    assert large.endswith(
        "; classes: class0, class1; warning: 6 images are smaller than 64 pixels and were enlarged"
        " (--min-edge 64 skips them)"
    )
    assert read_manifest(tmp_path / "sets/64").enlarged == 6
    assert (
        main([*arguments[:3], str(tmp_path / "a"), "--resolution", "64", "--min-edge", "64"]) == 0
    )
    out = capsys.readouterr().out
    assert ": 1 images of 64x64" in out
    assert "were enlarged" not in out
    assert main([*arguments[:3], str(tmp_path / "o"), "--resolution", "original"]) == 0
    assert "were enlarged" not in capsys.readouterr().out


def test_summaries_name_classes(tmp_path: Path, capsys: Capture) -> None:
    source = tmp_path / "source"
    for name in (*map(str, range(1, 14)), "15"):
        (source / name).mkdir(parents=True)
        (source / name / "0.png").write_bytes(encoded(smooth_pixels(int(name))))
    assert main(["pack", "images", str(source), str(tmp_path / "s"), "--resolution", "16"]) == 0
    line = capsys.readouterr().out
    assert "16 classes" in line
    assert "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (6 more); 2 without images (0, 14)" in line


ODD_EXIF = {
    "a resolution that is text": [(0x0112, 3, 1, b"\6\0\0\0"), (0x011A, 2, 2, b"7\0\0\0")],
    "an orientation of 4 bytes": [(0x0112, 4, 1, b"\6\0\0\0")],
    "an orientation out of range": [(0x0112, 3, 1, b"\x63\0\0\0")],
    "an orientation that is text": [(0x0112, 2, 2, b"6\0\0\0")],
    "offsets out of the file": [(0x0112, 3, 1, b"\6\0\0\0"), (0x010F, 2, 99, b"\xff" * 4)],
    "an unknown type": [(0x0112, 3, 1, b"\6\0\0\0"), (0x9999, 77, 1, b"\0" * 4)],
    "nothing": [],
}


def jpeg_with_exif(tags: Sequence[tuple[int, int, int, bytes]], cut: int = 0) -> bytes:
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags))
    tiff += b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in tags) + bytes(4)
    payload = b"Exif\0\0" + tiff[: len(tiff) - cut]
    jpeg = encoded(smooth_pixels(1), "JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
@pytest.mark.parametrize("resolution", [32, 0])
def test_odd_exif_costs_no_image(tmp_path: Path, resolution: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, tags in ODD_EXIF.items():
        (source / f"{name}.jpg").write_bytes(jpeg_with_exif(tags))
    (source / "cut.jpg").write_bytes(jpeg_with_exif(ODD_EXIF["an unknown type"], cut=20))
    (source / "junk.jpg").write_bytes(jpeg_with_exif([], cut=14))
    options = PackOptions(resolution=resolution, keep_duplicates=True)
    (manifest,) = pack(make_source("images", source), tmp_path / "set", options).values()
    assert (manifest.num_images, manifest.skipped) == (9, {})
    upright = decode_rgb(jpeg_with_exif([]))
    for name in ("a resolution that is text", "offsets out of the file"):
        turned = decode_rgb(jpeg_with_exif(ODD_EXIF[name]), upright=True)
        assert np.array_equal(turned, np.rot90(upright, -1))


def test_whatever_a_decoder_raises_costs_one_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_copies(tmp_path / "source", [1] * 4)
    raised = [TypeError("bad\noperand"), ZeroDivisionError(), MemoryError()]
    errors = itertools.chain(raised, itertools.repeat(None))

    def load(self: object) -> object:
        if error := next(errors):
            raise error
        return real(self)

    real = PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", load)
    (manifest,) = pack(
        make_source("images", source), tmp_path / "set", PackOptions(resolution=16)
    ).values()
    assert manifest.num_images == 1
    assert list(skips(tmp_path / "set").values()) == [
        "undecodable: bad operand",
        "undecodable: ZeroDivisionError",
        "undecodable: MemoryError",
    ]


def test_array_tasks_write_the_same_set(image_dir: Path, tmp_path: Path) -> None:
    packed_set(image_dir, tmp_path / "complete", shard_images=8)
    options = PackOptions(resolution=32, shard_images=8)

    def packer() -> Packer:
        return Packer(make_source("folder", image_dir), tmp_path / "set", options)

    packer().pack_share(Task(2, 3))
    packer().pack_share(Task(0, 3))
    with pytest.raises(PackError, match=r"3 of 8 shards .*the first: 1, 4, 7"):
        packer().finish()
    packer().pack_share(Task(1, 3))
    packer().finish()
    assert contents(tmp_path / "set") == contents(tmp_path / "complete")
    assert packer().finish() == packer().pack()


def test_array_tasks_keep_out_of_each_others_way(image_dir: Path, tmp_path: Path) -> None:
    work = WorkDir(tmp_path)
    with work.share("0-of-2"):
        with work.share("1-of-2"):
            pass
        for other in (work.alone(), WorkDir(tmp_path).share("0-of-2")):
            with pytest.raises(PackError, match="another process is packing into"), other:
                pass


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        *(
            (f"--shard={text}", f"'{text}' is not a task I/N")
            for text in ("3/3", "-1/2", "one/2", "5")
        ),
        ("--resolution=0", "'0' is neither a positive edge nor `original`"),
        ("--resolution=64,x", "'x' is neither a positive edge nor `original`; write several as"),
        ("--format=gif", "argument --format: invalid choice: 'gif'"),
        ("--colour", "unrecognized arguments: --colour"),
    ],
)
def test_arguments_that_do_not_parse_are_rejected_in_one_line(
    tmp_path: Path, argument: str, message: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["pack", "photographs", str(tmp_path / "set"), "--resolution", "16", argument])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": -1}, "resolution=-1 must be positive"),
        ({"resolution": (8, 8)}, "names one size twice"),
        ({"quality": 96}, "quality=96 must be in"),
        ({"limit": 0}, "limit=0 must be positive"),
    ],
)
def test_impossible_options_are_rejected(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PackError, match=message):
        PackOptions(**{"resolution": 16, **settings})


def test_commands(image_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["pack", "images", str(image_dir), str(tmp_path / "set"), "--resolution", "16"]
    assert main(arguments) == 0
    assert "60 images of 16x16, 3 classes, 1 shards" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "set")]) == 0
    assert "20  class1" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "nothing")]) == 2
    assert main([*arguments, "--quality", "0"]) == 2
    assert main(["pack", "photographs", str(image_dir), str(tmp_path), "--resolution", "16"]) == 2
    assert main(["pack", "zip", str(image_dir), str(tmp_path / "x"), "--resolution", "16"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-4:]
    assert main([*arguments[:-1], "16", "--unlabelled", "--limit", "5"]) == 2
    arguments[3] = str(tmp_path / "flat")
    assert main([*arguments, "--unlabelled", "--limit", "5"]) == 0
    assert "5 images of 16x16, unlabelled" in capsys.readouterr().out
