"""Image files in directories, zips and tars: listing, classes, decoding, encoding."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data_pipelines.sources.base import is_image_name, label_by_directory

DATASET_LABELS = "dataset.json"
PLAIN_MODES = {"RGB", "L", "1"}
NUMBERED_DIRS = re.compile(r"\d{2,}000")
"""Directories of a thousand files each (EDM's layout) are no classes."""
TAR_SUFFIXES = {".tar", ".tgz"}

Classes = dict[str, int]
"""Class indices by the names of members."""


class EncodedMember(Protocol):
    """One image file in a directory or an archive."""

    @property
    def name(self) -> str:
        """Path inside the set."""

    def read(self) -> bytes:
        """Return the encoded bytes."""


@dataclass(frozen=True)
class FileMember:
    """An image file in a directory."""

    name: str
    path: Path

    def read(self) -> bytes:
        """Return the encoded bytes."""
        return self.path.read_bytes()


@dataclass(frozen=True)
class ZipMember:
    """An image file in a zip archive."""

    name: str
    archive: zipfile.ZipFile

    def read(self) -> bytes:
        """Return the encoded bytes."""
        return self.archive.read(self.name)


@dataclass(frozen=True)
class SliceMember:
    """An image file in an uncompressed tar: a range of bytes."""

    name: str
    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the encoded bytes."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def decode_image(data: bytes, name: str) -> Tensor:
    """Decode an image file to uint8 RGB [3, H, W]; grey is tripled.

    Raises:
        ValueError: The file is damaged, or has alpha, a palette, 16 bits or CMYK, for which the
            conversion to RGB would be a choice that changes the metric.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            pixels = np.asarray(image.convert("RGB")) if mode in PLAIN_MODES else None
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise ValueError(f"{name} cannot be decoded: {error}") from None
    if pixels is None:
        raise ValueError(f"{name} has mode {mode}; convert it to 8-bit RGB or grey")
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def encode_image(image: Tensor, codec: str = "png") -> bytes:
    """Encode a uint8 RGB image [3, H, W] as `png`, or as `jpeg` with Pillow's defaults."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    picture.save(buffer, format=codec.upper())
    return buffer.getvalue()


def list_members(path: Path) -> tuple[list[EncodedMember], Classes | None]:
    """Return the image files of a directory, zip or tar, and their classes if these are known."""
    if path.suffix == ".zip":
        return _zip_members(path)
    if path.suffix in TAR_SUFFIXES:
        return _tar_members([path]), None
    if shards := sorted(path.glob("*.tar")):
        return _tar_members(shards), None
    return _dir_members(path)


def _dir_members(path: Path) -> tuple[list[EncodedMember], Classes | None]:
    """Return a directory's image files, at any depth, and their classes if these are known."""
    files = ((file, file.relative_to(path).as_posix()) for file in path.rglob("*"))
    members = [FileMember(name, file) for file, name in files if _is_image(name) and file.is_file()]
    table = path / DATASET_LABELS
    return list(members), _classes(members, table.read_bytes() if table.exists() else None, path)


def _zip_members(path: Path) -> tuple[list[EncodedMember], Classes | None]:
    """Return a zip archive's image files, and their classes if these are known."""
    try:
        archive = zipfile.ZipFile(path)
        names = set(archive.namelist())
        table = archive.read(DATASET_LABELS) if DATASET_LABELS in names else None
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a zip archive: {error}") from None
    members = [ZipMember(name, archive) for name in names if _is_image(name)]
    return list(members), _classes(members, table, path)


def _tar_members(paths: Sequence[Path]) -> list[EncodedMember]:
    """Return the image files of uncompressed tar archives; those of several are taken as shards."""
    members: list[EncodedMember] = []
    for path in paths:
        prefix = f"{path.stem}/" if len(paths) > 1 else ""
        try:
            with tarfile.open(path, "r:") as archive:
                members += [
                    SliceMember(prefix + entry.name, path, entry.offset_data, entry.size)
                    for entry in archive
                    if entry.isfile() and _is_image(entry.name)
                ]
        except (OSError, tarfile.TarError) as error:
            raise ValueError(f"{path} cannot be read as an uncompressed tar: {error}") from None
    return members


def _is_image(name: str) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)
    return is_image_name(name) and not hidden


def _classes(members: Sequence[EncodedMember], table: bytes | None, where: Path) -> Classes | None:
    """Return the classes in `dataset.json`, else those of sub-directories; None if one lacks."""
    names = [member.name for member in members]
    if table is not None:
        try:
            pairs = json.loads(table)["labels"]
            classes = {str(name): int(label) for name, label in pairs or ()}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where}: {DATASET_LABELS} cannot be read: {error!r}") from None
    elif names:
        listing = label_by_directory([(name, 0, 0) for name in names], where=str(where))
        if all(NUMBERED_DIRS.fullmatch(name) for name in listing.class_names):
            return None
        classes = {entry.name: entry.label for entry in listing.entries}
    else:
        return None
    return classes if all(name in classes for name in names) else None
