"""Every kind of source, packed by the command, from small archives in the published layouts."""

from __future__ import annotations

import bz2
import io
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from data_pipelines.__main__ import main
from data_pipelines.packed.reader import ShardedImages
from tests.data_pipelines.sources import test_sources as layouts
from tests.data_sets import encoded, extract_tar, smooth_pixels
from tests.fuzz.subject import Difference, Result, Subject, digest, run

CLASSES = ("cat", "dog")
WNIDS = layouts.WNIDS


def pictures(number: int, count: int = 6, edge: int = 18) -> list[bytes]:
    """Return PNG images; those of another number are others."""
    return [encoded(smooth_pixels(100 * number + place, edge, edge)) for place in range(count)]


def in_classes(number: int) -> dict[str, bytes]:
    """Return six images of two classes by name."""
    return {f"{CLASSES[n % 2]}/{n}.png": data for n, data in enumerate(pictures(number))}


def make_directory(path: Path, number: int) -> None:
    layouts.write_files(path / "set", in_classes(number))


def make_zip(path: Path, number: int) -> None:
    path.mkdir()
    layouts.write_zip(path / "set.zip", in_classes(number))


def make_tar(path: Path, number: int) -> None:
    path.mkdir()
    layouts.write_tar(path / "set.tar", in_classes(number))


def make_compressed_tar(path: Path, number: int) -> None:
    path.mkdir()
    layouts.write_tar(path / "set.tar.gz", in_classes(number))
    (path / "set.tar.bz2").write_bytes(bz2.compress(layouts.tar_bytes(in_classes(number))))


def make_webdataset(path: Path, number: int) -> None:
    """Write two tars of three samples."""
    (path / "set").mkdir(parents=True)
    for shard in range(2):
        files = {}
        for n, data in enumerate(pictures(number)[shard::2]):
            files |= {f"{shard}{n}.png": data, f"{shard}{n}.cls": str(n % 2).encode()}
        layouts.write_tar(path / "set" / f"{shard:06d}.tar", files)


def make_imagenet(path: Path, number: int) -> None:
    path.mkdir()
    data = pictures(number)
    inner = {
        wnid: {f"{wnid}_{n}.JPEG": data[2 * label + n] for n in range(2)}
        for label, wnid in enumerate(WNIDS)
    }
    outer = {f"{wnid}.tar": layouts.tar_bytes(files) for wnid, files in inner.items()}
    layouts.write_tar(path / "train.tar", outer)
    (path / "classes.txt").write_text("".join(f"{wnid} a name\n" for wnid in WNIDS))


def make_validation(path: Path, number: int) -> None:
    """Write ImageNet's validation images, with their classes in the forms that there are."""
    from scipy.io import savemat

    names = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)]
    layouts.write_files(path / "val", dict(zip(names, pictures(number, 3), strict=True)))
    rows = [(n + 1, wnid, f"name {n}") for n, wnid in enumerate(WNIDS)]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    truth = "ILSVRC2012_validation_ground_truth.txt"
    data = "ILSVRC2012_devkit_t12/data"
    devkit = {f"{data}/meta.mat": meta.getvalue(), f"{data}/{truth}": b"3\n1\n2\n"}
    layouts.write_tar(path / "devkit_t12.tar.gz", devkit)
    lines = [f"{name[:-5]},{wnid} 1 2 3 4" for name, wnid in zip(names, WNIDS, strict=True)]
    (path / "truth.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    (path / "truth.txt").write_text("\n".join(WNIDS))


def make_lsun(path: Path, number: int) -> None:
    values = {f"{n:040x}": encoded(smooth_pixels(9 * number + n, 24, 18), "WEBP") for n in range(5)}
    database = layouts.write_lmdb(path / "church_train_lmdb", values)
    import zipfile

    with zipfile.ZipFile(path / "church_train_lmdb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(database / "data.mdb", "church_train_lmdb/data.mdb")


def make_cifar(path: Path, number: int) -> None:
    (path / "bin").mkdir(parents=True)
    layouts.write_cifar_python(path)
    extract_tar(layouts.write_cifar_binary(path), path)


def make_stl(path: Path, number: int) -> None:
    path.mkdir()
    layouts.write_tar(path / "stl10_binary.tar.gz", layouts.stl_files())
    files = {name.rpartition("/")[2]: data for name, data in layouts.stl_files().items()}
    layouts.write_files(path / "stl", files)


def make_edm(path: Path, number: int) -> None:
    names = [f"00000/img{n:08d}.png" for n in range(6)]
    files = dict(zip(names, pictures(number), strict=True))
    pairs = [[name, n % 2] for n, name in enumerate(names)]
    files["dataset.json"] = json.dumps({"labels": pairs}).encode()
    layouts.write_files(path / "set", files)
    layouts.write_zip(path / "set.zip", files)


def make_parquet(path: Path, number: int) -> None:
    layouts.write_parquet(path / "train.parquet", first=number)


def pack(kind: str, name: str, options: tuple[str, ...], tree: Path) -> Result:
    """Pack a source and return its images by class and pixels, counted, and what was skipped."""
    out = tree.parent / "out"
    arguments = [option.replace("TREE", str(tree)) for option in options]
    run(main, "pack", kind, tree / name, out, "--resolution", "16", "--workers", "1", *arguments)
    images = ShardedImages(out)
    names = images.manifest.class_names
    found = Counter[str]()
    for index in range(len(images)):
        label = images.label(index)
        pixels = digest(images.decode(index).numpy().tobytes())
        found[f"{'' if label is None else names[label]}/{pixels}"] += 1
    skipped = str(sum(images.manifest.skipped.values()))
    return {name: str(count) for name, count in found.items()} | {"skipped": skipped}


def nothing_vanishes(difference: Difference) -> bool:
    """Pixels and labels that no checksum protects may be others, but every item is accounted for.

    As many are packed as before, or fewer by those that the summary counts as skipped.
    """
    before, after = (_count(result) for result in (difference.before, difference.after))
    more_skipped = int(difference.after["skipped"]) - int(difference.before["skipped"])
    said = "skipped" in difference.said or not more_skipped
    return said and after + max(more_skipped, 0) >= before


def one_may_differ(difference: Difference) -> bool:
    """What the mutated file holds is one image: others are as before, with their classes."""
    before, after = Counter(_counts(difference.before)), Counter(_counts(difference.after))
    lost, added = before - after, after - before
    most = (
        2 if "exchanged" in difference.mutation.what or "place" in difference.mutation.what else 1
    )
    return a_file_may_be_gone(difference) and lost.total() <= most and added.total() <= most


def a_file_may_be_gone(difference: Difference) -> bool:
    """No list says which files there are: one that was deleted was never there."""
    if difference.mutation.what in ("deleted", "a directory"):
        return not difference.added
    return nothing_vanishes(difference)


def a_tar_may_end_early(difference: Difference) -> bool:
    """What follows the end mark of a tar is one item, whatever it is, that is skipped and named.

    A tar has no table: members whose blocks are gone were never there.
    """
    rest_is_skipped = "no tar archive" in difference.said and _count(difference.after) > 0
    is_removal = difference.mutation.what == "bytes: remove"
    blocks_are_gone = is_removal and len(difference.added) <= 1  # the one that was cut
    return rest_is_skipped or blocks_are_gone or nothing_vanishes(difference)


def a_shard_may_be_gone(difference: Difference) -> bool:
    """What is no tar in the place of one is counted."""
    is_counted = difference.after["skipped"] != difference.before["skipped"]
    if "bytes" not in difference.mutation.what and is_counted:
        return "skipped" in difference.said and not difference.added
    return a_file_may_be_gone(difference) or a_tar_may_end_early(difference)


def whatever_is_counted(difference: Difference) -> bool:
    """Raw records, or a table of labels, without a mark of their own: another file, another set.

    What is left of it is decided by its size alone.
    """
    return _count(difference.after) > 0


def _count(result: Result) -> int:
    return sum(_counts(result).values())


def _counts(result: Result) -> dict[str, int]:
    return {name: int(count) for name, count in result.items() if name != "skipped"}


def _subject(
    kind: str,
    make: Callable[[Path, int], None],
    name: str,
    legal: Callable[[Difference], bool],
    *options: str,
    of: str = "",
    files: tuple[str, ...] = (),
) -> Subject:
    probe = partial(pack, kind, name, options)
    return Subject(f"source.{of or kind}", make, probe, files or (name, f"{name}/**/*"), legal)


TRUTH = "--ground-truth=TREE/"
SUBJECTS = (
    _subject("images", make_directory, "set", one_may_differ, of="directory"),
    _subject("images", make_zip, "set.zip", nothing_vanishes, of="zip"),
    _subject("images", make_tar, "set.tar", a_tar_may_end_early, of="tar"),
    _subject("images", make_compressed_tar, "set.tar.gz", a_tar_may_end_early, of="tar.gz"),
    _subject("images", make_compressed_tar, "set.tar.bz2", a_tar_may_end_early, of="tar.bz2"),
    _subject("images", make_webdataset, "set", a_shard_may_be_gone, of="webdataset"),
    _subject(
        "imagenet", make_imagenet, "train.tar", a_tar_may_end_early, "--classes=TREE/classes.txt",
        files=("*",),
    ),
    *(
        _subject(
            "imagenet-val", make_validation, "val", a_file_may_be_gone, TRUTH + truth,
            of=f"imagenet-val.{truth}", files=(truth, "val/*"),
        )
        for truth in ("devkit_t12.tar.gz", "truth.csv", "truth.txt")
    ),
    _subject("lsun", make_lsun, "church_train_lmdb", whatever_is_counted, files=("*/data.mdb",)),
    _subject("lsun", make_lsun, "church_train_lmdb.zip", whatever_is_counted, of="lsun.zip"),
    _subject("celebahq", make_directory, "set", one_may_differ),
    _subject("cifar10", make_cifar, "cifar-10-python.tar.gz", nothing_vanishes, of="cifar.python"),
    _subject("cifar10", make_cifar, "cifar-10-binary.tar.gz", nothing_vanishes, of="cifar.binary"),
    _subject("cifar10", make_cifar, "cifar-10-batches-bin", whatever_is_counted, of="cifar.raw"),
    _subject("stl10", make_stl, "stl10_binary.tar.gz", nothing_vanishes, "--split=test"),
    _subject("stl10", make_stl, "stl", whatever_is_counted, "--split=test", of="stl10.raw"),
    _subject("edm", make_edm, "set", nothing_vanishes),
    _subject("edm", make_edm, "set.zip", nothing_vanishes, of="edm.zip"),
    _subject("parquet", make_parquet, "train.parquet", whatever_is_counted),
)  # fmt: skip
