"""Every kind of source, from archives made in the published layouts, and wrong ones."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images import BadImage, decode_rgb
from data_pipelines.pack.options import PackOptions
from data_pipelines.packed.manifest import Manifest
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.sources import file_parts
from data_pipelines.sources.base import SourceError
from data_pipelines.sources.kinds import SOURCES, SourceDetails, make_source
from tests.data_sets import encoded, extract_tar, pack, smooth_pixels

WNIDS = ("n01440764", "n01443537", "n02012849")


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return path


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return buffer.getvalue()


def write_files(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def images(count: int, edge: int = 32) -> list[bytes]:
    return [encoded(smooth_pixels(n, edge, edge)) for n in range(count)]


def pack_kind(
    kind: str, source: Path, destination: Path, resolution: int = 32, **details: object
) -> Manifest:
    made = make_source(kind, source, SourceDetails(**details))
    return pack(made, destination, PackOptions(resolution=resolution))[destination]


def labels(path: Path) -> list[int | None]:
    packed = ShardedImages(path)
    found = [packed.label(index) for index in range(len(packed))]
    packed.close()
    return found


def first_pixels(path: Path, index: int = 0) -> np.ndarray:
    packed = ShardedImages(path)
    pixels = packed.decode(index).permute(1, 2, 0).numpy()
    packed.close()
    return pixels


# ImageNet


def imagenet_files() -> dict[str, dict[str, bytes]]:
    data = images(6)
    return {
        wnid: {f"{wnid}_{n}.JPEG": data[2 * label + n] for n in range(2)}
        for label, wnid in enumerate(WNIDS)
    }


def test_imagenet_tar_of_tars_equals_directories(tmp_path: Path) -> None:
    files = imagenet_files()
    outer = {f"{wnid}.tar": tar_bytes(inner) for wnid, inner in reversed(files.items())}
    flat = {f"{wnid}/{name}": data for wnid, inner in files.items() for name, data in inner.items()}
    tar = write_tar(tmp_path / "ILSVRC2012_img_train.tar", outer)
    directory = write_files(tmp_path / "train", flat)
    one = pack_kind("imagenet", tar, tmp_path / "a")
    other = pack_kind("imagenet", directory, tmp_path / "b")
    assert one.digest == other.digest
    assert one.class_names == WNIDS
    assert labels(tmp_path / "a") == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(first_pixels(tmp_path / "a", 3), smooth_pixels(3, 32, 32))


def test_imagenet_class_table_gives_the_standard_indices(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "train", {f"{WNIDS[1]}/x.JPEG": images(1)[0]})
    write_files(directory, {"n99999999/y.JPEG": images(1)[0]})
    table = tmp_path / "LOC_synset_mapping.txt"
    table.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\nn02012849 crane\n")
    manifest = pack_kind("imagenet", directory, tmp_path / "set", classes=table)
    assert labels(tmp_path / "set") == [1]
    assert manifest.class_names[0] == "n01440764 tench, Tinca tinca"
    assert manifest.class_counts == (0, 1, 0)
    assert manifest.skipped == {"unknown wnid": 1}


def test_cut_imagenet_tar_is_rejected(tmp_path: Path) -> None:
    outer = {f"{wnid}.tar": tar_bytes(inner) for wnid, inner in imagenet_files().items()}
    tar = write_tar(tmp_path / "train.tar", outer)
    tar.write_bytes(tar.read_bytes()[:-30_000])
    with pytest.raises(SourceError, match=r"cannot be read as a tar"):
        pack_kind("imagenet", tar, tmp_path / "set")


def validation_dir(path: Path) -> Path:
    names = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)]
    return write_files(path, dict(zip(names, images(3), strict=True)))


def test_imagenet_validation_by_devkit(tmp_path: Path) -> None:
    """The devkit numbers classes in an order of its own: 1 is n02012849 here."""
    savemat = pytest.importorskip("scipy.io").savemat
    rows = [(1, WNIDS[2], "crane"), (2, WNIDS[0], "tench"), (3, WNIDS[1], "goldfish")]
    rows.append((1001, "n00000001", "an inner node"))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    devkit = write_tar(
        tmp_path / "ILSVRC2012_devkit_t12.tar.gz",
        {
            "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"3\n1\n2\n",
        },
    )
    directory = validation_dir(tmp_path / "val")
    manifest = pack_kind("imagenet-val", directory, tmp_path / "set", ground_truth=devkit)
    assert labels(tmp_path / "set") == [1, 2, 0]
    assert manifest.class_names == ("n01440764 tench", "n01443537 goldfish", "n02012849 crane")


@pytest.mark.parametrize("form", ["csv", "txt"])
def test_imagenet_validation_by_text(tmp_path: Path, form: str) -> None:
    truth = tmp_path / f"truth.{form}"
    order = [WNIDS[1], WNIDS[2], WNIDS[0]]
    if form == "csv":
        rows = [f"ILSVRC2012_val_{n + 1:08d},{wnid} 1 2 3 4" for n, wnid in enumerate(order)]
        truth.write_text("\n".join(["ImageId,PredictionString", *rows]))
    else:
        truth.write_text("\n".join(order))
    pack_kind("imagenet-val", validation_dir(tmp_path / "v"), tmp_path / "s", ground_truth=truth)
    assert labels(tmp_path / "s") == [1, 2, 0]


def test_devkit_numbers_alone_are_rejected(tmp_path: Path) -> None:
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("490\n361\n171\n")
    directory = validation_dir(tmp_path / "val")
    with pytest.raises(SourceError, match="the devkit's numbers are no class indices"):
        pack_kind("imagenet-val", directory, tmp_path / "set", ground_truth=truth)
    truth.write_text(WNIDS[0])
    with pytest.raises(SourceError, match="has 1 lines for 3 images"):
        pack_kind("imagenet-val", directory, tmp_path / "set", ground_truth=truth)


def test_ground_truth_of_other_images_is_rejected(tmp_path: Path) -> None:
    truth = tmp_path / "LOC_val_solution.csv"
    truth.write_text(f"ImageId,PredictionString\nILSVRC2012_val_00000009,{WNIDS[0]} 1 2 3 4\n")
    with pytest.raises(SourceError, match=r"csv knows none of the images in .*val_00000001\.JPEG"):
        pack_kind(
            "imagenet-val", validation_dir(tmp_path / "v"), tmp_path / "s", ground_truth=truth
        )
    assert not (tmp_path / "s").exists()


# LSUN


def write_lmdb(path: Path, values: dict[str, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 23) as database, database.begin(write=True) as write:
        for key, value in values.items():
            write.put(key.encode(), value)
    return path


def webp(number: int) -> bytes:
    return encoded(smooth_pixels(number, 48, 32), "WEBP")


def test_lsun_database(tmp_path: Path) -> None:
    values = {f"{n:040x}": webp(n) for n in (2, 0, 1)}
    database = write_lmdb(tmp_path / "church_outdoor_train_lmdb", values)
    manifest = pack_kind("lsun", database, tmp_path / "set")
    assert (manifest.num_images, manifest.class_names) == (3, ())
    assert np.array_equal(first_pixels(tmp_path / "set"), decode_rgb(webp(0))[:, 8:40])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_lsun_zip_as_downloaded(
    tmp_path: Path, method: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decompressor's states are kept every few kilobytes, to be used for going back."""
    monkeypatch.setattr(file_parts, "MIN_SPACING", 5000)
    values = {f"{n * 7919 % 97:040x}": webp(n) + bytes(n * 100) for n in range(60)}
    directory = write_lmdb(tmp_path / "church_outdoor_train_lmdb", values)
    archive = tmp_path / "church_outdoor_train_lmdb.zip"
    with zipfile.ZipFile(archive, "w", method) as out:
        out.write(directory / "lock.mdb", "church_outdoor_train_lmdb/lock.mdb")
        out.write(directory / "data.mdb", "church_outdoor_train_lmdb/data.mdb")
    zipped, unzipped = make_source("lsun", archive), make_source("lsun", directory)
    assert zipped.list_items() == unzipped.list_items()
    with zipped.open() as read:
        for entry in reversed(zipped.list_items().entries):
            assert read(entry) == values[entry.name]
    assert pack_kind("lsun", archive, tmp_path / "set").num_images == 60
    content = archive.read_bytes()
    half = len(content) // 2
    damaged = content[:half] + bytes(300) + content[half + 300 :]
    magic = b"\xde\xc0\xef\xbe"
    archive.write_bytes(damaged if method else content.replace(magic, b"none"))
    with pytest.raises(SourceError, match="cannot be read as an LMDB database"):
        zipped.list_items()


def test_lsun_database_equals_the_librarys(tmp_path: Path) -> None:
    """Inline and overflow values, several pages, deleted keys, two transactions."""
    rng = np.random.default_rng(0)
    values = {f"{n:040x}": rng.bytes(int(rng.integers(0, 6000))) for n in range(500)}
    database = write_lmdb(tmp_path / "a_lmdb", values)
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(database), map_size=1 << 23) as opened, opened.begin(write=True) as write:
        for key in list(values)[::3]:
            write.delete(key.encode())
            del values[key]
    with make_source("lsun", database).open() as read:
        entries = make_source("lsun", database).list_items().entries
        assert {entry.name: read(entry) for entry in entries} == values


def test_lsun_categories_are_classes(tmp_path: Path) -> None:
    for number, category in enumerate(["bedroom", "bridge"]):
        write_lmdb(tmp_path / "lsun" / f"{category}_train_lmdb", {"a": webp(number), "b": webp(9)})
    manifest = pack_kind("lsun", tmp_path / "lsun", tmp_path / "set")
    assert manifest.class_names == ("bedroom_train", "bridge_train")
    assert labels(tmp_path / "set") == [0, 0, 1, 1]


def test_lsun_exported_directory_is_unlabelled(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "out", {"a/b/x.webp": webp(0), "c/d/y.webp": webp(1)})
    assert pack_kind("lsun", directory, tmp_path / "set").class_names == ()


def test_wrong_lsun_sources_are_rejected(tmp_path: Path) -> None:
    empty = write_lmdb(tmp_path / "empty_lmdb", {})
    with pytest.raises(SourceError, match="is empty"):
        pack_kind("lsun", empty, tmp_path / "set")
    cifar = write_cifar_binary(tmp_path)
    with pytest.raises(SourceError, match="holds no image"):
        pack_kind("lsun", cifar, tmp_path / "set")
    pictures = write_zip(tmp_path / "cifar.zip", {"cat/0.jpg": images(1)[0]})
    with pytest.raises(SourceError, match=r"is not LSUN: it holds neither a data\.mdb nor WebP"):
        pack_kind("lsun", pictures, tmp_path / "set")
    broken = write_files(tmp_path / "broken_lmdb", {"data.mdb": b"no database"})
    with pytest.raises(SourceError, match="cannot be read as an LMDB database"):
        pack_kind("lsun", broken, tmp_path / "set")


# CIFAR-10 and STL-10

CIFAR = [smooth_pixels(n, 32, 32) for n in range(4)]
CIFAR_NAMES = [f"class{n}" for n in range(10)]


def cifar_rows(pixels: list[np.ndarray]) -> np.ndarray:
    return np.stack([image.transpose(2, 0, 1).reshape(-1) for image in pixels])


def write_cifar_python(path: Path) -> Path:
    def batch(rows: slice, batch_labels: list[int]) -> bytes:
        data = {b"data": cifar_rows(CIFAR[rows]), b"labels": batch_labels, b"filenames": [b"x"]}
        return pickle.dumps(data, protocol=2)

    return write_tar(
        path / "cifar-10-python.tar.gz",
        {
            "cifar-10-batches-py/data_batch_2": batch(slice(2, 3), [7]),
            "cifar-10-batches-py/data_batch_1": batch(slice(0, 2), [6, 9]),
            "cifar-10-batches-py/test_batch": batch(slice(3, 4), [1]),
            "cifar-10-batches-py/batches.meta": pickle.dumps(
                {b"label_names": [name.encode() for name in CIFAR_NAMES]}, protocol=2
            ),
        },
    )


def write_cifar_binary(path: Path) -> Path:
    def batch(rows: slice, batch_labels: list[int]) -> bytes:
        records = cifar_rows(CIFAR[rows])
        pairs = zip(batch_labels, records, strict=True)
        return b"".join(bytes([label]) + row.tobytes() for label, row in pairs)

    return write_tar(
        path / "cifar-10-binary.tar.gz",
        {
            "cifar-10-batches-bin/data_batch_1.bin": batch(slice(0, 2), [6, 9]),
            "cifar-10-batches-bin/data_batch_2.bin": batch(slice(2, 3), [7]),
            "cifar-10-batches-bin/test_batch.bin": batch(slice(3, 4), [1]),
            "cifar-10-batches-bin/batches.meta.txt": "\n".join([*CIFAR_NAMES, ""]).encode(),
        },
    )


def test_cifar10_archives_agree(tmp_path: Path) -> None:
    one = pack_kind("cifar10", write_cifar_python(tmp_path), tmp_path / "a")
    other = pack_kind("cifar10", write_cifar_binary(tmp_path), tmp_path / "b")
    assert one.digest == other.digest
    assert labels(tmp_path / "a") == [6, 9, 7]
    assert one.class_names == tuple(CIFAR_NAMES)
    for index in range(3):
        assert np.array_equal(first_pixels(tmp_path / "a", index), CIFAR[index])


def test_cifar10_test_split_and_directory(tmp_path: Path) -> None:
    extract_tar(write_cifar_python(tmp_path), tmp_path / "out")
    pack_kind("cifar10", tmp_path / "out", tmp_path / "set", split="test")
    assert labels(tmp_path / "set") == [1]
    assert np.array_equal(first_pixels(tmp_path / "set"), CIFAR[3])


def test_pickles_that_name_code_are_rejected(tmp_path: Path) -> None:
    evil = write_tar(tmp_path / "evil.tar.gz", {"data_batch_1": pickle.dumps(print)})
    with pytest.raises(SourceError, match=r"it names builtins\.print"):
        pack_kind("cifar10", evil, tmp_path / "set")


def test_wrong_cifar10_sources_are_rejected(tmp_path: Path) -> None:
    cut = write_tar(tmp_path / "cut.tar", {"data_batch_1.bin": bytes(3000)})
    with pytest.raises(SourceError, match="is cut short"):
        pack_kind("cifar10", cut, tmp_path / "set")
    other = write_tar(tmp_path / "other.tar", {"a.png": images(1)[0]})
    with pytest.raises(SourceError, match="holds no CIFAR-10 batch"):
        pack_kind("cifar10", other, tmp_path / "set")
    with pytest.raises(SourceError, match="split 'val' of CIFAR-10 is unknown"):
        pack_kind("cifar10", other, tmp_path / "set", split="val")


def stl_files() -> dict[str, bytes]:
    pixels = [smooth_pixels(n, 96, 96) for n in range(3)]
    columns = b"".join(image.transpose(2, 1, 0).tobytes() for image in pixels)
    one = pixels[2].transpose(2, 1, 0).tobytes()
    return {
        "stl10_binary/unlabeled_X.bin": columns,
        "stl10_binary/test_X.bin": one,
        "stl10_binary/test_y.bin": bytes([10]),
        "stl10_binary/class_names.txt": "\n".join(CIFAR_NAMES).encode(),
    }


@pytest.mark.parametrize("packed", [True, False])
def test_stl10(tmp_path: Path, packed: bool) -> None:
    files = stl_files()
    source = (
        write_tar(tmp_path / "stl10_binary.tar.gz", files)
        if packed
        else write_files(tmp_path / "stl", files)
    )
    manifest = pack_kind("stl10", source, tmp_path / "set", resolution=96)
    assert (manifest.num_images, manifest.class_names) == (3, ())
    assert np.array_equal(first_pixels(tmp_path / "set", 1), smooth_pixels(1, 96, 96))
    pack_kind("stl10", source, tmp_path / "test", resolution=96, split="test")
    assert labels(tmp_path / "test") == [9]
    assert np.array_equal(first_pixels(tmp_path / "test"), smooth_pixels(2, 96, 96))


def test_wrong_stl10_sources_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no unlabeled_X\.bin"):
        pack_kind("stl10", write_cifar_binary(tmp_path), tmp_path / "set")
    cut = write_files(tmp_path / "cut", {"unlabeled_X.bin": bytes(5)})
    with pytest.raises(SourceError, match="is cut short"):
        pack_kind("stl10", cut, tmp_path / "set")


@pytest.mark.parametrize("name", ["class_names.txt", "test_y.bin"])
def test_tables_of_stl10_that_are_far_too_long_are_not_read(tmp_path: Path, name: str) -> None:
    source = write_files(tmp_path / "stl", stl_files())
    with open(source / "stl10_binary" / name, "r+b") as file:
        file.truncate(1 << 40)  # sparse: it would not fit into memory
    with pytest.raises(SourceError, match=f"{name} in .* has 1099511627776 bytes, more than"):
        pack_kind("stl10", source, tmp_path / "set", split="test")


# Zips with dataset.json, faces, parquet


@pytest.mark.parametrize("members", [3, (1 << 16) + 3])
def test_a_zip_whose_table_lost_members_is_rejected(tmp_path: Path, members: int) -> None:
    """zipfile reads the table as far as it makes sense, without a word."""
    files = {f"a/{n}.txt": b"" for n in range(members - 1)} | {"a/0.png": images(1)[0]}
    source = write_zip(tmp_path / "set.zip", files)
    content = bytearray(source.read_bytes())
    before_last = content.rfind(b"PK\1\2", 0, content.rfind(b"PK\1\2"))
    content[before_last + 33] = 0x7F  # its comment swallows the rest of the table
    source.write_bytes(content)
    message = f"lists {members - 1} members, but ends with a count of {members}"
    with pytest.raises(SourceError, match=message):
        pack_kind("edm", source, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_large_zip_that_counts_modulo_65536_is_complete(tmp_path: Path) -> None:
    """As some tools write them, which do not know zip64."""
    files = {f"a/{n}.txt": b"" for n in range(1 << 16)} | {"a/0.png": images(1)[0]}
    files["dataset.json"] = b'{"labels": null}'
    source = write_zip(tmp_path / "set.zip", files)
    content = source.read_bytes()
    wide, end = content.rfind(b"PK\6\6"), bytearray(content[content.rfind(b"PK\5\6") :])
    size, offset = struct.unpack_from("<QQ", content, wide + 40)
    struct.pack_into("<HHII", end, 8, 2, 2, size, offset)
    source.write_bytes(content[:wide] + end)
    assert pack_kind("edm", source, tmp_path / "set").num_images == 1


def test_edm_zip(tmp_path: Path) -> None:
    names = [f"00000/img{n:08d}.png" for n in range(4)]
    pairs = [[names[0], 2], [names[1], 0], [names[2], -5]]
    files = dict(zip(names, images(4), strict=True))
    files["dataset.json"] = json.dumps({"labels": pairs}).encode()
    source = write_zip(tmp_path / "set.zip", files)
    manifest = pack_kind("edm", source, tmp_path / "set")
    assert labels(tmp_path / "set") == [2, 0]
    assert manifest.class_names == ("0", "1", "2")
    assert manifest.skipped == {"no label": 1, "wrong label": 1}
    directory = pack_kind("edm", write_files(tmp_path / "directory", files), tmp_path / "b")
    assert directory.digest == manifest.digest


def test_edm_zip_without_labels(tmp_path: Path) -> None:
    files = {"a/x.png": images(1)[0], "b/y.png": images(1)[0], "dataset.json": b'{"labels": null}'}
    source = write_zip(tmp_path / "set.zip", files)
    assert pack_kind("edm", source, tmp_path / "set").class_names == ()
    with pytest.raises(SourceError, match=r"holds no dataset\.json"):
        pack_kind("edm", write_zip(tmp_path / "no.zip", {"a.png": b""}), tmp_path / "s")
    with pytest.raises(SourceError, match="has no list of"):
        pack_kind(
            "edm", write_zip(tmp_path / "b.zip", {**files, "dataset.json": b"[]"}), tmp_path / "s"
        )


@pytest.mark.parametrize("kind", ["celebahq", "ffhq"])
def test_face_directories_are_no_classes(tmp_path: Path, kind: str) -> None:
    data = images(2)
    files = {"00000/00000.png": data[0], "01000/01000.png": data[1]}
    directory = pack_kind(kind, write_files(tmp_path / "faces", files), tmp_path / "a")
    zipped = pack_kind(kind, write_zip(tmp_path / "faces.zip", files), tmp_path / "b")
    assert directory.digest == zipped.digest
    assert directory.class_names == ()


def write_parquet(path: Path, labelled: bool = True, first: int = 0) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"bytes": data, "path": None} for data in images(first + 5)[first:]]
    columns = {"image": pa.array(rows)}
    metadata = {}
    if labelled:
        columns["label"] = pa.array([1, 0, 1, 7, None])
        features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(columns).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)
    return path


def test_parquet_with_labels(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "train-00000-of-00001.parquet")
    manifest = pack_kind("parquet", source, tmp_path / "set")
    assert manifest.class_names == ("cat", "dog")
    assert labels(tmp_path / "set") == [1, 0, 1]
    assert manifest.skipped == {"wrong label": 2}
    assert np.array_equal(first_pixels(tmp_path / "set", 2), smooth_pixels(2, 32, 32))


def test_an_empty_parquet_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").touch()
    with pytest.raises(SourceError, match=r"train.parquet cannot be read as a parquet file: .+"):
        pack_kind("parquet", tmp_path / "train.parquet", tmp_path / "set")


def test_parquet_directory_without_labels(tmp_path: Path) -> None:
    for number in range(2):
        path = tmp_path / "data" / f"train-{number}.parquet"
        write_parquet(path, labelled=False, first=5 * number)
    manifest = pack_kind("parquet", tmp_path / "data", tmp_path / "set")
    assert (manifest.num_images, manifest.class_names) == (10, ())
    assert np.array_equal(first_pixels(tmp_path / "set", 8), smooth_pixels(8, 32, 32))


def test_images_of_a_damaged_row_group_are_skipped(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet files need pyarrow")
    source = write_parquet(tmp_path / "train.parquet", labelled=False)
    chunk = parquet.read_metadata(source).row_group(0).column(0)  # of two rows
    with open(source, "r+b") as file:
        file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        file.write(bytes(40))
    manifest = pack_kind("parquet", source, tmp_path / "set")
    assert (manifest.num_images, manifest.skipped) == (3, {"unreadable": 2})
    assert np.array_equal(first_pixels(tmp_path / "set", 2), smooth_pixels(4, 32, 32))


def test_wrong_parquet_sources_are_rejected(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="has no column 'klass', but image, label"):
        pack_kind("parquet", source, tmp_path / "set", label_column="klass")
    with pytest.raises(SourceError, match="choose the column of images with --image-column"):
        pack_kind("parquet", source, tmp_path / "set", image_column="picture")
    (tmp_path / "cut.parquet").write_bytes(source.read_bytes()[:-100])
    with pytest.raises(SourceError, match="cannot be read as a parquet file"):
        pack_kind("parquet", tmp_path / "cut.parquet", tmp_path / "set")


# The table of kinds


def test_details_that_a_kind_does_not_take_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="edm does not take --split"):
        make_source("edm", tmp_path, SourceDetails(split="train"))
    with pytest.raises(SourceError, match="imagenet-val needs --ground-truth"):
        make_source("imagenet-val", tmp_path)
    with pytest.raises(SourceError, match="kind 'jpegs' is unknown; known are photographs"):
        make_source("jpegs", tmp_path)
    with pytest.raises(SourceError, match="does not exist"):
        make_source("cifar10", tmp_path / "nothing")


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "photographs"])
def test_every_kind_rejects_a_text_file(tmp_path: Path, kind: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("no images here")
    details = dict.fromkeys(SOURCES[kind].needs, text)
    with pytest.raises(SourceError) as caught:
        pack_kind(kind, text, tmp_path / "set", **details)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_damaged_zip_member_is_skipped(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", {"a.png": images(2)[0], "b.png": images(2)[1]})
    content = bytearray(source.read_bytes())
    content[200] ^= 1
    source.write_bytes(content)
    manifest = pack_kind("zip", source, tmp_path / "set")
    assert manifest.num_images == 1
    assert manifest.skipped == {"unreadable": 1}


def test_unusual_pixels_are_rejected() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(buffer, "TIFF")
    with pytest.raises(BadImage, match="mode F have no defined range"):
        decode_rgb(buffer.getvalue())
