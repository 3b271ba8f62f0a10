"""Image sets to evaluate: folders, zips, tars, packed shards and ADM sample batches.

A set knows its length, its identity (a digest of its content) and how to decode image i; which
indices a process reads is not its business.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data_pipelines.manifest import MANIFEST
from data_pipelines.shards import ShardedImages
from evaluation.arrays import NpzArray

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
TAR_SUFFIXES = {".tar", ".tgz"}
Labels = NDArray[np.int64]
PLAIN_MODES = {"RGB", "L", "1"}


class ImageSet(Protocol):
    """A finite, ordered set of images of one size."""

    @property
    def identity(self) -> dict[str, Any]:
        """What it is: kind, path, number and digest; goes into every file made from it."""

    def __len__(self) -> int: ...

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, int64 [B], or None if they are not known."""

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 RGB [B, 3, H, W] on the CPU.

        Raises:
            ValueError: An image is damaged, not plain RGB or grey, or of another size.
        """


def open_images(path: Path) -> ImageSet:
    """Open a folder, zip, tar, packed set or `.npz` sample batch of images.

    Raises:
        ValueError: Nothing there, no images in it, or `sample` has not finished writing it.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a folder, zip, tar or npz of images")
    if path.suffix == ".npz":
        return ArrayImages(path)
    if path.suffix == ".zip":
        return EncodedImages(path, _zip_members(path))
    if path.suffix in TAR_SUFFIXES:
        return EncodedImages(path, _tar_members([path]))
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder, zip, tar or npz of images")
    if (path / MANIFEST).exists():
        return PackedImages(path)
    if shards := sorted(path.glob("*.tar")):
        return EncodedImages(path, _tar_members(shards))
    _check_finished(path)
    return EncodedImages(path, _folder_members(path))


class EncodedMember(Protocol):
    """One image file, wherever it lies."""

    @property
    def name(self) -> str:
        """Path inside the set."""

    def read(self) -> bytes:
        """Return the encoded bytes."""


@dataclass(frozen=True)
class FileMember:
    """An image file in a folder."""

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


class EncodedImages:
    """Image files in the order of their names.

    Args:
        path: Where the set lies, for messages and the identity.
        members: The files.
    """

    def __init__(self, path: Path, members: Sequence[EncodedMember]) -> None:
        if not members:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"{path} holds no images (files named *{kinds})")
        self.path = path
        self.members = sorted(members, key=lambda member: member.name)
        self._size: tuple[int, ...] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Kind, path, number and content digest; reads every file once."""
        if not hasattr(self, "_identity"):
            digest = hashlib.sha256()
            for member in self.members:
                content = hashlib.sha256(member.read()).hexdigest()
                digest.update(f"{member.name}\0{content}\n".encode())
            self._identity = {
                "kind": "images",
                "path": str(self.path),
                "num_images": len(self),
                "digest": digest.hexdigest(),
                "codecs": sorted({Path(m.name).suffix.lower()[1:] for m in self.members}),
            }
        return self._identity

    def __len__(self) -> int:
        return len(self.members)

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return None: plain files have no classes that a folder's name would prove."""
        del indices
        return None

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 RGB [B, 3, H, W]."""
        return torch.stack([self._decode(self.members[i]) for i in indices])

    def _decode(self, member: EncodedMember) -> Tensor:
        image = decode_image(member.read(), f"{self.path}: {member.name}")
        self._size = self._size or tuple(image.shape)
        if tuple(image.shape) != self._size:
            raise ValueError(
                f"{self.path}: {member.name} is {image.shape[2]}x{image.shape[1]} pixels,"
                f" others are {self._size[2]}x{self._size[1]}; evaluation needs images of one size"
                " (pack them first: python -m data_pipelines pack)"
            )
        return image


class PackedImages:
    """A set packed by `python -m data_pipelines pack`."""

    def __init__(self, path: Path) -> None:
        self._images = ShardedImages(path)
        info = self._images.info
        self.identity = {
            "kind": "packed",
            "path": str(path),
            "num_images": info.num_images,
            "digest": info.digest,
        }

    def __len__(self) -> int:
        return len(self._images)

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, int64 [B], or None in an unlabelled set."""
        labels = [self._images.label(i) for i in indices]
        return None if None in labels else np.array(labels, np.int64)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 RGB [B, 3, H, W]."""
        return torch.stack([torch.as_tensor(self._images.decode(i)) for i in indices])


class ArrayImages:
    """The `arr_0` uint8 [N, H, W, 3] of an ADM reference or sample batch, streamed."""

    def __init__(self, path: Path) -> None:
        self._array = NpzArray(path, "arr_0")
        shape = self._array.shape
        if self._array.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise ValueError(
                f"{path}: arr_0 is {self._array.dtype} {list(shape)}, expected uint8 [N, H, W, 3]"
            )
        self.identity = {
            "kind": "sample batch",
            "path": str(path),
            "num_images": shape[0],
            "digest": self._array.digest,
        }

    def __len__(self) -> int:
        return self._array.shape[0]

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return None: what `arr_1` means differs from file to file."""
        del indices
        return None

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 RGB [B, 3, H, W]."""
        return torch.from_numpy(self._array.rows(indices)).permute(0, 3, 1, 2).contiguous()


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


def _is_image(name: str) -> bool:
    path = Path(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _folder_members(folder: Path) -> list[EncodedMember]:
    files = ((path, path.relative_to(folder).as_posix()) for path in folder.rglob("*"))
    return [FileMember(name, path) for path, name in files if _is_image(name) and path.is_file()]


def _zip_members(path: Path) -> list[EncodedMember]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a zip archive: {error}") from None
    return [ZipMember(name, archive) for name in archive.namelist() if _is_image(name)]


def _tar_members(paths: Sequence[Path]) -> list[EncodedMember]:
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


def _check_finished(folder: Path) -> None:
    """Refuse a folder that `python -m evaluation sample` is still writing, or left unfinished."""
    manifest = folder / "samples.json"
    if not manifest.exists():
        return
    if not json.loads(manifest.read_text())["complete"]:
        raise ValueError(
            f"{folder} is being written by another job, or that job was interrupted; wait for it,"
            " or finish it with the same `python -m evaluation sample` command"
        )
