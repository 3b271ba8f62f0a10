"""What is a picture, a class, a split: the same for packing and evaluation."""

from __future__ import annotations

import json
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.pack.options import PackError, PackOptions
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.sources.base import Listing, SourceError, printable
from data_pipelines.sources.kinds import SourceDetails, make_source
from data_pipelines.sources.lister.classes import class_table
from data_pipelines.sources.lister.splits import split_name, splits_of
from evaluation.image_sets.image_set import open_images
from tests.data_pipelines.sources.test_sources import (
    WNIDS,
    add,
    images,
    labels,
    pack_kind,
    tar_bytes,
    webp,
    write_files,
    write_lmdb,
    write_parquet,
    write_tar,
    write_zip,
)
from tests.data_sets import encoded, pack, smooth_pixels

PNG = images(24)


def listing(path: Path, kind: str = "images", **details: object) -> Listing:
    return make_source(kind, path, SourceDetails(**details)).list_items()


def classes(found: Listing) -> dict[str, str]:
    """Return the class name by entry."""
    return {e.name: found.class_names[e.label] if e.label >= 0 else "" for e in found.entries}


def reasons(found: Listing) -> dict[str, str]:
    return {skip.name: skip.category for skip in found.skips}


def class_dirs(names: str, each: int = 1) -> dict[str, bytes]:
    """Return files `NAME/0.png`, ..., in order of the names."""
    paths = [f"{name}/{n}.png" for name in names.split() for n in range(each)]
    return dict(zip(paths, PNG, strict=False))


def as_directory(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    return write_files(path, files)


CONTAINERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "directory": as_directory,
    "set.zip": write_zip,
    "set.tar": write_tar,
    "set.tar.gz": write_tar,
}


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    return lambda files: CONTAINERS[request.param](tmp_path / request.param, files)


# Pictures


def test_hidden_and_tool_made_directories_are_no_classes(container: Callable[..., Path]) -> None:
    tools = (
        ".ipynb_checkpoints dog/.ipynb_checkpoints __MACOSX @eaDir dog/@eaDir/0.png .thumbnails"
        " $RECYCLE.BIN .git/objects lost+found .Trash-1000"
    )
    odd = {".DS_Store": b"\0", "cat/Thumbs.db": PNG[0], "dog/._0.png": PNG[1]}
    found = listing(container({**class_dirs("cat dog"), **class_dirs(tools), **odd}))
    assert classes(found) == {"cat/0.png": "cat", "dog/0.png": "dog"}
    assert reasons(found) == dict.fromkeys([*class_dirs(tools), *odd], "hidden or made by a tool")


def test_a_hidden_directory_above_the_source_does_not_matter(tmp_path: Path) -> None:
    path = write_files(tmp_path / ".cache" / "set", class_dirs("cat dog"))
    assert len(listing(path).entries) == 2


def test_files_are_judged_by_content(container: Callable[..., Path]) -> None:
    kinds = {"jfif": "JPEG", "JPG_large": "JPEG", "img": "WEBP", "dat": "GIF", "x": "BMP"}
    files = {f"cat/0.{e}": encoded(smooth_pixels(0), kind) for e, kind in kinds.items()}
    files |= {"cat/plain": PNG[0], "cat/t": encoded(smooth_pixels(0), "TIFF"), "dog/0.png": PNG[1]}
    others = {"dog/movie.mp4": b"\0\0\0\x18ftypisom" + bytes(50), "README": b"text", "e": b""}
    phone = {"dog/IMG_1.HEIC": b"\0\0\0\x18ftypheic" + bytes(50)}
    found = listing(container({**files, **others, **phone}))
    assert set(classes(found)) == set(files)
    expected = dict.fromkeys(others, "not an image") | dict.fromkeys(phone, "unknown image format")
    assert reasons(found) == expected


def test_masks_are_no_faces(tmp_path: Path) -> None:
    faces = {"CelebA-HQ-img/0.jpg": PNG[0], "CelebA-HQ-img/1.jpg": PNG[1]}
    masks = {
        "CelebAMask-HQ-mask-anno/0/00000_hair.png": PNG[2],
        "CelebAMask-HQ-mask-anno/0/00001_l_brow.png": PNG[3],
    }
    flat = {"flat/00002_skin.png": PNG[4], "segmentation/3.png": PNG[5], "masks/4.png": PNG[6]}
    path = write_files(tmp_path / "CelebAMask-HQ", {**faces, **masks, **flat})
    found = listing(path, "celebahq")
    assert set(classes(found)) == set(faces)
    assert reasons(found) == dict.fromkeys([*masks, *flat], "mask")
    own = write_files(tmp_path / "own", {**faces, **masks})
    assert set(classes(listing(own))) == set(faces)  # nor are they classes of their own
    worn = write_files(tmp_path / "worn", class_dirs("with_mask without_mask"))
    assert listing(worn).class_names == ("with_mask", "without_mask")


# Links


def test_linked_directories_are_listed_once(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {**class_dirs("cat dog"), "cat/tom/9.png": PNG[9]})
    write_files(tmp_path / "elsewhere", {"0.png": PNG[3], "deep/1.png": PNG[4]})
    links = {
        "dog/up": "..",
        "dog/self": ".",
        "cat/tom/parent": "..",
        "above": "../..",
        "eel": "../elsewhere",
        "eel2": "../elsewhere",
        "fox": "../elsewhere/deep",
        "again": "cat",
        ".hidden": "../elsewhere",
    }
    for name, target in links.items():
        (path / name).symlink_to(target)
    found = listing(path)
    assert set(classes(found)) == {
        *("cat/0.png", "cat/tom/9.png", "dog/0.png"),
        *("eel/0.png", "eel/deep/1.png"),
    }
    assert reasons(found) == {
        **dict.fromkeys(("dog/up", "dog/self", "cat/tom/parent", "above"), "link loop"),
        **dict.fromkeys(("eel2", "fox", "again"), "linked again"),
        ".hidden": "hidden or made by a tool",
    }
    assert len(open_images(path)) == len(found.entries)


def test_linked_files_are_listed_once(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {**class_dirs("cat dog"), "store/ab12": PNG[5]})
    write_files(tmp_path / "out", {"a.png": PNG[6]})
    (path / "cat/again.png").symlink_to("0.png")
    (path / "cat/blob.png").symlink_to("../store/ab12")  # as downloaders and git-annex keep files
    (path / "cat/out.png").symlink_to(tmp_path / "out/a.png")
    (path / "dog/out.png").symlink_to(tmp_path / "out/a.png")
    os.link(path / "dog/0.png", path / "dog/hard.png")
    found = listing(path)
    names = "cat/0.png cat/blob.png cat/out.png dog/0.png dog/hard.png"
    assert list(classes(found)) == names.split()
    assert reasons(found) == dict.fromkeys(
        ("cat/again.png", "store/ab12", "dog/out.png"), "linked again"
    )


def test_links_in_archives_lose_no_image(tmp_path: Path) -> None:
    tar = tmp_path / "set.tar"
    with tarfile.open(tar, "w") as out:
        add(out, "./store/ab12", PNG[0])
        add(out, "./cat/1.png", PNG[1])
        for name, target, kind in (
            ("./cat/0.png", "../store/ab12", tarfile.SYMTYPE),
            ("./dog/0.png", "../cat/2.png", tarfile.SYMTYPE),
            ("./dog/1.png", "./cat/1.png", tarfile.LNKTYPE),
            ("./dog/gone.png", "../gone", tarfile.SYMTYPE),
            ("./eel", "cat", tarfile.SYMTYPE),
            ("./dog/ring.png", "ring.png", tarfile.SYMTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            out.addfile(info)
        add(out, "./cat/2.png", PNG[2])
    source = make_source("images", tar)
    found = source.list_items()
    names = "cat/0.png cat/1.png cat/2.png dog/1.png"
    assert list(classes(found)) == names.split()
    with source.open() as read:
        assert [read(e) for e in found.entries] == [PNG[0], PNG[1], PNG[2], PNG[1]]
    assert reasons(found) == {
        "store/ab12": "linked again",
        "dog/0.png": "linked again",
        "./dog/gone.png": "unreadable",
        "./eel": "linked again",
        "./dog/ring.png": "unreadable",
    }
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("store/ab12", PNG[0])
        for name, target in (("cat/0.png", "../store/ab12"), ("dog/1.png", "../no")):
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            out.writestr(info, target)
    found = listing(archive)
    assert list(classes(found)) == ["cat/0.png"]
    assert reasons(found) == {"store/ab12": "linked again", "dog/1.png": "unreadable"}


@pytest.mark.parametrize("padding", [0, 10240, 1 << 20])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_concatenated_tars_lose_no_image(tmp_path: Path, padding: int, suffix: str) -> None:
    parts = [tar_bytes({f"{n}{i}.png": PNG[3 * n + i] for i in range(3)}) for n in range(3)]
    path = tmp_path / f"all.tar{suffix}"
    if suffix:
        for n in range(3):
            write_tar(tmp_path / f"{n}.tar.gz", {f"{n}{i}.png": PNG[3 * n + i] for i in range(3)})
        path.write_bytes(b"".join((tmp_path / f"{n}.tar.gz").read_bytes() for n in range(3)))
    else:
        path.write_bytes(b"".join(part + bytes(padding) for part in parts))
    source = make_source("images", path)
    with source.open() as read:
        assert [read(entry) for entry in source.list_items().entries] == PNG[:9]


def test_what_follows_a_tar_is_named_or_rejected(tmp_path: Path) -> None:
    complete = tar_bytes({"0.png": PNG[0]})
    path = tmp_path / "set.tar"
    path.write_bytes(complete + b"signature" * 100)
    found = listing(path)
    assert len(found.entries) == 1
    assert list(reasons(found).values()) == ["no tar archive"]
    path.write_bytes(complete + complete[:1024])
    with pytest.raises(SourceError, match="cannot be read as a tar archive"):
        listing(path)


def test_imagenet_tars_with_links_and_appended_tars(tmp_path: Path) -> None:
    inner = tar_bytes({"a.JPEG": PNG[0]}) + tar_bytes({"b.JPEG": PNG[1], "readme": b"x"})
    tar = write_tar(tmp_path / "train.tar", {f"{WNIDS[0]}.tar": inner, "LICENSE": b"x"})
    found = listing(tar, "imagenet")
    assert list(classes(found)) == [f"{WNIDS[0]}/a.JPEG", f"{WNIDS[0]}/b.JPEG"]
    assert len(found.skips) == 2
    split = as_directory(
        tmp_path / "tars", {f"{w}.tar": tar_bytes({"a.JPEG": PNG[2]}) for w in WNIDS}
    )
    assert listing(split, "imagenet").class_names == WNIDS


# Names


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", class_dirs("cat"))
    for odd, number in ((b"caf\xe9/1.png", 1), (b"caf\xe9/bad\xff.png", -1), (b"cat/\n'.png", 3)):
        file = Path(os.fsdecode(os.fsencode(path) + b"/" + odd))
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(PNG[number] if number >= 0 else b"no image")
    options = PackOptions(resolution=32, holdout=1)
    sets = pack(make_source("images", path), tmp_path / "out", options)
    assert sum(manifest.num_images for manifest in sets.values()) == 3
    manifest = sets[tmp_path / "out/train"]
    assert manifest.class_names == ("caf\\xe9", "cat")
    text = "".join((path / "skipped.jsonl").read_text() for path in sets)
    assert json.loads(text)["name"] == "caf\\xe9/bad\\xff.png"
    images = open_images(path)
    assert len(images) == 4
    assert images.labels(range(4)).tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"caf\\xe9/bad\\xff\.png cannot be decoded"):
        images.batch(range(4))
    assert len(images.identity["digest"]) == 64
    assert printable("a\nb") == r"a\nb"


def test_tar_names_that_are_not_utf8(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "set.tar", {os.fsdecode(b"caf\xe9.png"): PNG[0], "b.png": PNG[1]})
    assert pack_kind("tar", tar, tmp_path / "set").num_images == 2


def test_members_of_one_name_are_all_read(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("0.png", PNG[0])
        with pytest.warns(UserWarning, match="Duplicate name"):
            out.writestr("0.png", PNG[1])
    source = make_source("images", archive)
    with source.open() as read:
        assert [read(entry) for entry in source.list_items().entries] == PNG[:2]


# Classes


@pytest.mark.parametrize(
    ("names", "table"),
    [
        ("0 1 2 9 10 11", {"10": 10, "9": 9}),
        ("1 2 3", {"1": 1, "3": 3}),
        ("0 2 5", {"5": 5}),
        ("00 01 02", {"02": 2}),
        ("3 7", {"3": 3, "7": 7}),
        ("10 9 x", {"10": 0, "9": 1, "x": 2}),
        ("900000000 1 20", {"1": 0, "20": 1, "900000000": 2}),
        ("²  1", {"1": 0, "²": 1}),
    ],
)
def test_numbered_classes_have_their_number(names: str, table: dict[str, int]) -> None:
    made = class_table(names.split())
    assert {name: made.labels[name] for name in table} == table
    assert all(made.names[label] == name for name, label in made.labels.items())


def test_numbered_directories(container: Callable[..., Path]) -> None:
    path = container(class_dirs(" ".join(map(str, (1, 2, 10)))))
    found = listing(path)
    assert [entry.label for entry in found.entries] == [1, 10, 2]
    assert found.class_names == tuple(map(str, range(11)))
    assert open_images(path).labels(range(3)).tolist() == [1, 10, 2]


def test_classes_of_one_number_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="classes '01' and '1' are one number"):
        listing(write_files(tmp_path / "set", class_dirs("1 01")))


@pytest.mark.parametrize(
    "names",
    [
        "00000/00000 01000/01000",
        "000000/000001 001000/001002",
        "00000/img00000007 00001/img00001007",
    ],
)
def test_directories_of_a_thousand_files_are_no_classes(tmp_path: Path, names: str) -> None:
    files = {f"{name}.png": data for name, data in zip(names.split(), PNG, strict=False)}
    path = write_files(tmp_path / "set", files)
    assert listing(path).class_names == ()
    assert open_images(path).labels([0]) is None


def sidecars(kind: str, values: list[str], prefix: str = "") -> dict[str, bytes]:
    files = {}
    for number, value in enumerate(values):
        files[f"{prefix}{number:06d}.jpg"] = PNG[number]
        files[f"{prefix}{number:06d}.{kind}"] = value.encode()
    return files


@pytest.mark.parametrize(
    ("kind", "values", "names", "expected"),
    [
        ("cls", ["0", "2\n", "1"], ("0", "1", "2"), [0, 2, 1]),
        ("cls", ["cat", "dog", "cat"], ("cat", "dog"), [0, 1, 0]),
        ("txt", ["1", "0", "1"], ("0", "1"), [1, 0, 1]),
        ("json", ['{"label": 3}', '{"label": 0}', '{"label": 3}'], ("0", "1", "2", "3"), [3, 0, 3]),
        ("json", ['{"class": "b"}', '{"class": "a"}'] * 2, ("a", "b"), [1, 0, 1, 0]),
        ("json", ['{"caption": "x"}', '{"caption": "y"}'], (), [-1, -1]),
        ("txt", ["a cat", "a dog"], (), [-1, -1]),
        ("json", ["[", '{"label": [1]}'], (), [-1, -1]),
    ],
)
@pytest.mark.parametrize("tars", [1, 2])
def test_webdataset_tars_have_labels(
    tmp_path: Path,
    kind: str,
    values: list[str],
    names: tuple[str, ...],
    expected: list[int],
    tars: int,
) -> None:
    files = {**sidecars(kind, values), "000000.foo": b"x"}
    for number in range(tars):
        write_tar(tmp_path / f"shard-{number:03d}.tar", files)
    found = listing(tmp_path / "shard-000.tar" if tars == 1 else tmp_path)
    assert found.class_names == names
    assert [entry.label for entry in found.entries] == expected * tars
    assert len(found.skips) == (1 if names else 1 + len(values)) * tars
    evaluated = open_images(tmp_path / "shard-000.tar" if tars == 1 else tmp_path)
    assert len(evaluated) == len(found.entries)
    assert np.array_equal(evaluated.batch([0])[0].permute(1, 2, 0), smooth_pixels(0, 32, 32))


def test_a_packed_set_is_a_source(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", class_dirs("0 1 2", each=2))
    first = pack_kind("images", source, tmp_path / "a")
    again = pack_kind("images", tmp_path / "a", tmp_path / "b")
    assert (again.num_images, again.digest) == (6, first.digest)


def test_labels_beside_images_in_directories(container: Callable[..., Path]) -> None:
    found = listing(container({**sidecars("cls", ["1", "0"]), "9.png": PNG[9]}))
    assert found.class_names == ("0", "1")
    assert [e.name for e in found.usable(labelled=True).entries] == ["000000.jpg", "000001.jpg"]
    assert reasons(found.usable(labelled=True)) == {"9.png": "no label in a .cls"}
    assert len(found.usable(labelled=False).entries) == 3


# Splits


def test_names_of_splits() -> None:
    names = {
        "train2017": ("train", "2017"),
        "testA": ("test", "A"),
        "DIV2K_valid_HR": ("val", "DIV2K_HR"),
        "church_outdoor_train_lmdb": ("train", "church_outdoor_lmdb"),
        "Validation": ("val", ""),
        "train-00000-of-00001": ("train", "00000-of-00001"),
        "cat": ("", "cat"),
        "strain": ("", "strain"),
        "train_test": ("", "train_test"),
    }
    assert {name: tuple(split_name(name)) for name in names} == names
    assert splits_of(["train_station", "test_tube", "bus"]) == {}
    assert splits_of(["train", "bus"]) == {}
    assert splits_of(["train2017", "val2017", "x"]) == {"train2017": "train", "val2017": "val"}


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        ("train/cat train/dog val/cat val/dog", "train", "cat dog"),
        ("Training/cat Training/dog Testing/dog", "test", "dog"),
        ("cat/train cat/test dog/train dog/test", "train", "cat dog"),
        ("a/b/train/cat a/b/train/dog a/b/valid/cat", "val", "cat"),
        ("trainA trainB testA testB", "test", "A B"),
        ("train2017/cat train2017/dog val2017/dog", "val", "dog"),
        ("train/cat validation/cat validation/dog test/eel", "train,val", "cat cat dog"),
    ],
)
def test_splits_of_directories(
    container: Callable[..., Path], names: str, wanted: str, expected: str
) -> None:
    path = container(class_dirs(names))
    with pytest.raises(SourceError, match=r"holds the splits .*\(\d images\).*; choose one with"):
        listing(path)
    with pytest.raises(SourceError, match=r"has no split 'extra', but .* \(\d images\)"):
        listing(path, split="extra")
    found = listing(path, split=wanted)
    assert sorted(classes(found).values()) == expected.split()
    parts = {part for name in names.split() for part in name.split("/")}
    every = listing(path, split=",".join({split_name(part).split for part in parts} - {""}))
    assert found.class_names == every.class_names  # one table for all splits
    with pytest.raises(ValueError, match=r"holds the splits .*; evaluate one of them"):
        open_images(path)


@pytest.mark.parametrize("names", ["bus car train", "train_station test_tube", "training_cat dog"])
def test_classes_that_sound_like_splits(tmp_path: Path, names: str) -> None:
    path = write_files(tmp_path / "set", class_dirs(names))
    assert listing(path).class_names == tuple(sorted(names.split()))
    with pytest.raises(SourceError, match=r"has no splits .*; leave --split out"):
        listing(path, split="train")


def test_a_single_split_need_not_be_chosen(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {**class_dirs("train/cat train/dog"), "x.txt": b"x"})
    assert listing(path).class_names == ("cat", "dog")
    assert listing(path, split="train").class_names == ("cat", "dog")
    with pytest.raises(SourceError, match="has no split 'val', but train"):
        listing(path, split="val")


def test_images_outside_of_splits_are_listed(tmp_path: Path) -> None:
    files = {**class_dirs("train/cat train/dog test/cat"), "logo.png": PNG[9], "misc/1.png": PNG[8]}
    found = listing(write_files(tmp_path / "set", files), split="train")
    assert len(found.entries) == 2
    assert reasons(found) == {"logo.png": "in no split", "misc/1.png": "in no split"}


def test_splits_of_imagenet(tmp_path: Path) -> None:
    names = [f"train/{w}" for w in WNIDS] + [f"val/{w}" for w in WNIDS[1:]] + ["test"]
    path = write_files(tmp_path / "CLS-LOC", class_dirs(" ".join(names)))
    with pytest.raises(SourceError, match=r"splits test \(1 images\), train \(3 .*, val \(2"):
        listing(path, "imagenet")
    found = listing(path, "imagenet", split="val")
    assert [entry.label for entry in found.entries] == [1, 2]
    assert found.class_names == WNIDS
    truth = tmp_path / "truth.txt"
    truth.write_text("\n".join(WNIDS))
    flat = {f"val/ILSVRC2012_val_{n:08d}.JPEG": PNG[n] for n in (1, 2, 3)}
    path = write_files(tmp_path / "flat", {**flat, **class_dirs(f"train/{WNIDS[0]}")})
    found = listing(path, "imagenet-val", ground_truth=truth)
    assert [entry.label for entry in found.entries] == [0, 1, 2]


def test_splits_of_lsun(tmp_path: Path) -> None:
    for number, name in enumerate(["bedroom_train", "bedroom_val", "bridge_train", "bridge_val"]):
        write_lmdb(tmp_path / "lsun" / f"{name}_lmdb", {f"{number}": webp(number)})
    (tmp_path / "lsun/notes.txt").write_text("x")
    with pytest.raises(SourceError, match=r"train \(2 databases\), val \(2 databases\); choose"):
        listing(tmp_path / "lsun", "lsun")
    pack_kind("lsun", tmp_path / "lsun", tmp_path / "set", split="val")
    assert labels(tmp_path / "set") == [0, 1]
    images = ShardedImages(tmp_path / "set")
    assert images.info.class_names == ("bedroom_val", "bridge_val")
    images.close()
    assert reasons(listing(tmp_path / "lsun", "lsun", split="train")) == {
        "notes.txt": "no LSUN database"
    }
    one = tmp_path / "lsun/bedroom_train_lmdb"
    with pytest.raises(SourceError, match="has no split 'val', but train"):
        listing(one, "lsun", split="val")
    assert listing(one, "lsun", split="train").class_names == ()
    exported = write_files(tmp_path / "out", {"train/a.webp": webp(0), "val/b.webp": webp(1)})
    assert len(listing(exported, "lsun", split="val").entries) == 1


@pytest.mark.parametrize("kind", ["celebahq", "ffhq"])
def test_splits_of_faces(tmp_path: Path, kind: str) -> None:
    path = write_files(tmp_path / "faces", class_dirs("train/male train/female val/male"))
    with pytest.raises(SourceError, match="choose one with --split"):
        listing(path, kind)
    assert len(listing(path, kind, split="train").entries) == 2


def test_splits_of_shards(tmp_path: Path) -> None:
    for name in ("set-train-000", "set-train-001", "set-val-000", "extras"):
        write_tar(tmp_path / f"{name}.tar", sidecars("cls", ["0", "1"]))
    with pytest.raises(SourceError, match=r"train \(2 tars\), val \(1 tars\); choose one"):
        listing(tmp_path)
    found = listing(tmp_path, split="train")
    assert len(found.entries) == 4
    assert reasons(found) == {"extras.tar": "in no split"}


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00001", "data/test-00000-of-00001"),
        ("train/0000", "test/0000"),
        ("plain_text/cifar10-train", "plain_text/cifar10-test"),
    ],
)
def test_splits_of_parquet(tmp_path: Path, names: tuple[str, str]) -> None:
    for number, name in enumerate(names):
        write_parquet(tmp_path / "set" / f"{name}.parquet", first=5 * number)
    with pytest.raises(SourceError, match=r"test \(1 files\), train \(1 files\); choose one"):
        listing(tmp_path / "set", "parquet")
    found = listing(tmp_path / "set", "parquet", split="train").usable(labelled=True)
    assert len(found.entries) == 3
    both = listing(tmp_path / "set", "parquet", split="train,test")
    assert len({entry.name for entry in both.entries}) == 10
    pack_kind("parquet", tmp_path / "set", tmp_path / "out", split="test")
    assert np.array_equal(
        ShardedImages(tmp_path / "out").decode(0).permute(1, 2, 0).numpy(), smooth_pixels(5, 32, 32)
    )


def test_rows_without_classes_can_be_packed_unlabelled(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": {"bytes": data, "path": None}, "label": -1} for data in PNG[:4]]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    source = make_source("parquet", tmp_path / "test.parquet")
    with pytest.raises(SourceError, match=r"none of the 4 images has a class .*add --unlabelled"):
        pack(source, tmp_path / "set", PackOptions(resolution=32))
    options = PackOptions(resolution=32, labelled=False)
    (manifest,) = pack(source, tmp_path / "set", options).values()
    assert (manifest.num_images, manifest.class_names, manifest.skipped) == (4, (), {})


def test_images_without_a_class_can_be_packed_unlabelled(container: Callable[..., Path]) -> None:
    found = listing(container({**class_dirs("cat dog"), "stray.png": PNG[5]}))
    assert len(found.usable(labelled=False).entries) == 3
    assert reasons(found.usable(labelled=True)) == {"stray.png": "no class directory"}


# Two kinds of source


@pytest.mark.parametrize("where", ["", "deep/er/"])
@pytest.mark.parametrize("archive", ["backup.tar", "backup.tar.gz", "download.zip"])
def test_a_directory_of_two_kinds_is_rejected(tmp_path: Path, where: str, archive: str) -> None:
    path = write_files(tmp_path / "set", {"cat/0.png": PNG[0], f"{where}x.txt": b"x"})
    write = write_zip if archive.endswith("zip") else write_tar
    write(path / f"{where}{archive}", {"1.png": PNG[1]})
    for run in (listing, open_images):
        with pytest.raises(ValueError, match=rf"images \(cat/0\.png\) and .*{archive}\); move"):
            run(path)
    write(path / f"{where}{archive}", {"1.txt": b"no image"})
    assert reasons(listing(path))[f"{where}{archive}"] == "not an image"
    (path / ".old").mkdir()
    write(path / ".old" / archive, {"1.png": PNG[1]})
    assert len(listing(path).entries) == 1
    published = write_files(tmp_path / "in", {f"{WNIDS[0]}/0.JPEG": PNG[0]})
    write(published / archive, {"1.png": PNG[1]})
    assert reasons(listing(published, "imagenet")) == {archive: "not an image"}


# EDM


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0.0, 1.0, 2.0], [0, 1, 2]),
        ([[1, 0, 0], [0, 0, 1.0], [0, 1, 0]], [0, 2, 1]),
        ([1, 0.5, True], [1, -1, -1]),
        ([[0, 0, 0], [0.5, 0.5, 0], 1 << 30], [-1, -1, -1]),
        (["1", None, -1], [-1, -1, -1]),
    ],
)
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_edm_labels(tmp_path: Path, labels: list[object], expected: list[int], slash: str) -> None:
    names = [f"00000/img{n:08d}.png" for n in range(3)]
    files = dict(zip(names, PNG, strict=False))
    pairs = [[n.replace("/", slash), v] for n, v in zip(names, labels, strict=True)]
    table = json.dumps({"labels": pairs}).encode()
    made = write_zip(tmp_path / "set.zip", {**files, "dataset.json": table})
    found = listing(made, "edm")
    assert [entry.label for entry in found.entries] == expected
    assert found.skips == ()
    windows = {name.replace("/", slash): data for name, data in files.items()}
    made = write_zip(tmp_path / "win.zip", {**windows, "dataset.json": table})
    assert [entry.label for entry in listing(made, "edm").entries] == expected
    evaluated = open_images(made)
    assert evaluated.batch([0]).shape == (1, 3, 32, 32)
    known = evaluated.labels(range(3))
    assert (None if known is None else known.tolist()) == (None if -1 in expected else expected)


@pytest.mark.parametrize(
    "labels",
    [
        '[["a/0.png", 1], ["b/1.png", 0], ["a/0.png", 0]]',
        '[["a/0.png", 1], ["b/1.png", 0], ["a\\\\0.png", 2]]',
        '{"a/0.png": 1, "b/1.png": 0, "a/0.png": 0}',
    ],
)
def test_images_that_a_table_gives_two_classes_are_named(tmp_path: Path, labels: str) -> None:
    path = write_files(tmp_path / "set", {"a/0.png": PNG[0], "b/1.png": PNG[1]})
    (path / "dataset.json").write_text(f'{{"labels": {labels}}}')
    with pytest.raises(SourceError, match=r"dataset\.json cannot be read.*'a/0\.png'"):
        listing(path)


def test_packing_images_reads_edm_labels_as_evaluation_does(tmp_path: Path) -> None:
    table = json.dumps({"labels": {"a/0.png": 1, "b/1.png": 0}}).encode()
    path = write_files(tmp_path / "set", {"a/0.png": PNG[0], "b/1.png": PNG[1]})
    (path / "dataset.json").write_bytes(table)
    assert [entry.label for entry in listing(path).entries] == [1, 0]
    assert open_images(path).labels([0, 1]).tolist() == [1, 0]
    (path / "dataset.json").write_text('{"labels": null}')
    assert listing(path).class_names == ("a", "b")


# Decoding


def test_nothing_usable_names_the_first(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {"0.png": b"\x89PNG\r\n\x1a\n" + bytes(20)})
    with pytest.raises(PackError, match=r"no image of .*set can be used; the first: 0\.png"):
        pack(make_source("images", path), tmp_path / "out", PackOptions(resolution=32))


def test_metadata_does_not_count_as_unusable(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {**sidecars("txt", ["a", "b"]), ".DS_Store": b"x"})
    options = PackOptions(resolution=32)
    (manifest,) = pack(make_source("images", path), tmp_path / "out", options, max_skips=0).values()
    assert manifest.skipped == {"hidden or made by a tool": 1, "metadata of an image": 2}
