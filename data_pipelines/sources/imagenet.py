"""ImageNet (ILSVRC2012) as downloaded or extracted; the class index is the rank of the wnid.

Training images: `ILSVRC2012_img_train.tar` (a tar of one tar per wnid), or wnid directories.
Validation images: `ILSVRC2012_img_val.tar` or its directory, with their ground truth.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from data_pipelines.sources.base import (
    MAX_ITEM_BYTES,
    Entry,
    Listing,
    ReadItem,
    Skip,
    SourceError,
    reading,
)
from data_pipelines.sources.file_parts import Window
from data_pipelines.sources.files import FileSource, TarSource, detect
from data_pipelines.sources.lister.archives import (
    TarMembers,
    as_found,
    open_maybe_compressed,
    read_at,
    tar_files,
    tar_members,
)
from data_pipelines.sources.lister.classes import Taken, take_split
from data_pipelines.sources.lister.pictures import Found, Pictures, find_pictures
from models.safe_files.regular import read_file

WNID = re.compile(r"n\d{8}")
MAX_TEXT_BYTES = 1 << 26


@dataclass(frozen=True)
class ImagenetSource:
    """Training images by wnid.

    Args:
        path: The tar of tars, or a directory, zip or tar with wnid directories.
        classes: Text file whose lines start with a wnid (`LOC_synset_mapping.txt`): the complete
            class table. Without it the table is the sorted wnids that occur; a part of ImageNet
            needs the file to get ImageNet's class indices.
        split: Which of `train`, `val`, ... to take, where the wnid directories of several are.
    """

    path: Path
    classes: Path | None = None
    split: str | None = None
    kind: str = "imagenet"
    published: bool = True

    def list_items(self) -> Listing:
        """Return all images, wnid by wnid. Raises SourceError if there is no wnid."""
        taken = self._taken()
        names = [_wnid(file.name) for file in taken.files]
        if not any(names):
            raise SourceError(f"{self.path} holds no wnid directory or tar (such as n01440764)")
        table = read_class_table(self.classes) if self.classes else {w: w for w in names if w}
        labels = {wnid: label for label, wnid in enumerate(sorted(table))}
        entries = [
            Entry(file.name, labels.get(wnid, -1), file.size, file.locator)
            for file, wnid, chosen in zip(taken.files, names, taken.chosen, strict=True)
            if chosen
        ]
        class_names = tuple(table[wnid] for wnid in labels)
        unlabelled = {entry.name: "unknown wnid" for entry in entries if entry.label < 0}
        return Listing(entries, class_names, tuple(taken.skips), unlabelled)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        with detect(self.path).open() as read:  # a tar of tars is read at offsets like any tar
            yield read

    def describe(self) -> dict[str, Any]:
        """Return the path, and the split if one was chosen."""
        return {"path": str(self.path)} | ({"split": self.split} if self.split else {})

    def _taken(self) -> Taken:
        files = _published(self.path)
        inner = tar_of_tars(self.path) if isinstance(files, TarSource) else None
        pictures = inner or files.pictures()
        taken = take_split(pictures, self.split, files.where)
        return taken._replace(skips=[*taken.skips, *pictures.metadata()])


@dataclass(frozen=True)
class ImagenetValidationSource:
    """Validation images, which carry no class in their name.

    Args:
        path: A directory, zip or tar of `ILSVRC2012_val_*.JPEG`.
        ground_truth: `ILSVRC2012_devkit_t12.tar.gz`, `LOC_val_solution.csv`, or a text file with
            one wnid per line in the order of the file names.
        classes: As for ImagenetSource; not needed with the devkit.
        split: Which of several splits to take; `val` if there is one.
    """

    path: Path
    ground_truth: Path
    classes: Path | None = None
    split: str | None = None
    kind: str = "imagenet-val"
    published: bool = True

    def list_items(self) -> Listing:
        """Return all images by name. Raises SourceError if the ground truth does not match."""
        files = _published(self.path)
        taken = take_split(files.pictures(), self.split, files.where, default="val")
        entries = [Entry(f.name, -1, f.size, f.locator) for f in taken.chosen_files()]
        stems = [PurePosixPath(entry.name).stem for entry in entries]
        wnids, table = read_ground_truth(self.ground_truth, stems)
        if self.classes:
            table = read_class_table(self.classes)
        labels = {wnid: label for label, wnid in enumerate(sorted(table))}
        pairs = [(entry, wnids.get(stem)) for entry, stem in zip(entries, stems, strict=True)]
        if not any(wnid for _, wnid in pairs):
            raise SourceError(
                f"{self.ground_truth} knows none of the images in {self.path} (the first:"
                f" {entries[0].name}); give ILSVRC2012_img_val.tar, or its directory"
            )
        found = [entry._replace(label=labels.get(wnid or "", -1)) for entry, wnid in pairs]
        class_names = tuple(table[wnid] for wnid in labels)
        unlabelled = {entry.name: "no ground truth" for entry in found if entry.label < 0}
        return Listing(found, class_names, tuple(taken.skips), unlabelled)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        with detect(self.path).open() as read:
            yield read

    def describe(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": str(self.path)}


def _published(path: Path) -> FileSource:
    return replace(detect(path), published=True, labelled=False)


def tar_of_tars(path: Path) -> Pictures | None:
    """Return the images in the tars of a tar, with their offsets in the outer file.

    Returns:
        None if there are no tars in it.

    Raises:
        SourceError: The tar, or one in it, is cut short.
    """
    outer = tar_files(path)
    inner = [member for member in outer if member.name.endswith(".tar")]
    if not inner:
        return None
    skips = [Skip(m.name, "in no tar of a class") for m in outer if not m.name.endswith(".tar")]
    found = Found([], skips)
    with open_maybe_compressed(path) as file:
        for member in inner:
            wnid = PurePosixPath(member.name).stem
            in_tar = as_found(_inner_members(file, member, path), f"{wnid}/", member.offset_data)
            found.files.extend(in_tar.files)
            found.skips.extend(in_tar.skips)
        return find_pictures(
            found,
            lambda wanted, count: read_at(
                file, Entry(wanted.name, -1, min(wanted.size, count), wanted.locator)
            ),
        )


def _inner_members(file: IO[bytes], member: tarfile.TarInfo, path: Path) -> TarMembers:
    window = io.BufferedReader(Window(file, member.offset_data, member.size), 512)
    try:
        return tar_members(cast(IO[bytes], window))
    except tarfile.TarError as error:
        raise SourceError(f"{member.name} in {path} cannot be read as a tar: {error}") from None


def read_class_table(path: Path) -> dict[str, str]:
    """Return class names by wnid from a file whose lines start with a wnid.

    Raises:
        SourceError: A line does not.
    """
    table = {}
    for line in _read_text(path).splitlines():
        if not WNID.match(line):
            raise SourceError(
                f"{path}: the line {line[:40]!r} does not start with a wnid (n01440764)"
            )
        table[line[:9]] = line.strip()
    return table


def read_ground_truth(path: Path, stems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the wnid of each validation image by its stem, and the class names by wnid.

    Args:
        path: Devkit, csv or text file.
        stems: The images' names without extension, in order.

    Raises:
        SourceError: The file is of no known form, or has another number of lines than images.
    """
    if path.name.endswith(".tar.gz"):
        wnids, table = _devkit(path)
    elif path.suffix == ".csv":
        rows = list(csv.DictReader(_read_text(path).splitlines()))
        if not rows or not {"ImageId", "PredictionString"} <= set(rows[0]):
            raise SourceError(f"{path} has no columns ImageId and PredictionString")
        said = {row["ImageId"]: row["PredictionString"] or "" for row in rows}
        by_stem = {stem: text.strip().partition(" ")[0] for stem, text in said.items()}
        if not all(map(WNID.fullmatch, by_stem.values())):
            raise SourceError(f"{path} has rows whose PredictionString starts with no wnid")
        return by_stem, {wnid: wnid for wnid in by_stem.values()}
    else:
        wnids = _read_text(path).split()
        table = {wnid: wnid for wnid in wnids}
        if not all(WNID.fullmatch(wnid) for wnid in wnids):
            raise SourceError(
                f"{path} is not one wnid per line; the devkit's numbers are no class indices:"
                " give ILSVRC2012_devkit_t12.tar.gz itself"
            )
    if len(wnids) < len(stems):
        raise SourceError(f"{path} has {len(wnids)} lines for {len(stems)} images")
    numbered = [re.fullmatch(r"ILSVRC2012_val_(\d{8})", stem) for stem in stems]
    if not all(numbered):
        raise SourceError("validation images are not named ILSVRC2012_val_00000001.JPEG and so on")
    return {m[0]: wnids[int(m[1]) - 1] for m in numbered if m and int(m[1]) <= len(wnids)}, table


def _devkit(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return the wnid of each validation image in order, and the 1000 class names by wnid."""
    from scipy.io import loadmat

    with reading(path, "the devkit of ImageNet"):
        files = _devkit_files(path)
        meta, truth = files["meta.mat"], files["ILSVRC2012_validation_ground_truth.txt"]
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = [row for row in synsets if int(row["ILSVRC2012_ID"]) <= 1000]
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
        table = {str(row["WNID"]): f"{row['WNID']} {row['words']}" for row in leaves}
        return [wnid_of[int(line)] for line in truth.split()], table


def _devkit_files(path: Path) -> dict[str, bytes]:
    """Return the files of the devkit's `data/` by name."""
    files = {}
    with open_maybe_compressed(path) as file:
        for member in tar_members(file).members:
            if member.size < MAX_ITEM_BYTES and member.name.endswith((".mat", ".txt")):
                file.seek(member.offset_data)
                files[PurePosixPath(member.name).name] = file.read(member.size)
    return files


def _read_text(path: Path) -> str:
    with reading(path, "text in UTF-8"):
        return read_file(path, MAX_TEXT_BYTES).decode()


def _wnid(name: str) -> str:
    """Return the wnid among a path's directories, "" if there is none."""
    return next((part for part in PurePosixPath(name).parts[:-1] if WNID.fullmatch(part)), "")
