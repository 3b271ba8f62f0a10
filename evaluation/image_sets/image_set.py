"""Image sets to evaluate: directories, zips, tars, packed shards and ADM sample batches.

A set knows its length, its identity (a digest of its content) and how to decode image i; callers
choose which indices a process reads.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.images import ORIGINAL, BadImage
from data_pipelines.packed.manifest import MANIFEST
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.sources.base import (
    BROKEN_LINK,
    Entry,
    Listing,
    Skip,
    Source,
    SourceError,
    count_reasons,
    name_bytes,
    printable,
)
from data_pipelines.sources.edm import LABELS
from data_pipelines.sources.files import ShardsSource
from data_pipelines.sources.kinds import image_files
from data_pipelines.sources.lister.pictures import extension
from data_pipelines.sources.lister.splits import SplitError
from data_pipelines.sources.steady import SteadyReader
from evaluation.image_sets.files import check_size, decode_image
from evaluation.image_sets.npz import NpzArray, npz_names, read_npz
from evaluation.image_sets.seeds import parse_seeds
from evaluation.overlap import ahead
from models.safe_files.documents import DocumentError, Format, read_object
from models.safe_files.nearest import check_there
from models.safe_files.typed_json import from_json

SAMPLES = "samples.json"
SAMPLE_FILES = {SAMPLES, LABELS, ".lock"}
"""Files of a sample directory that are not images."""
READERS = 8
"""Threads that read files to hash them: they wait for the disk, or the network, more than work."""
AHEAD = 2
"""Batches that are decoded ahead of the one that is being used."""
Labels = NDArray[np.int64]
T = TypeVar("T")


class ImageSet(Protocol):
    """A finite, ordered set of images of one size."""

    @property
    def identity(self) -> dict[str, Any]:
        """Kind, path, number and content digest; recorded in every file made from the set."""

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What `relaywave eval sample` recorded of them, None for other images."""

    def __len__(self) -> int: ...

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, int64 [B], or None if they are not known."""

    def name(self, index: int) -> str:
        """Return what an image is called in its set: its file, place, or seed."""

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 RGB [B, 3, H, W] on the CPU.

        Raises:
            ValueError: An image is damaged, not plain RGB or grey, or of another size.
        """

    def batches(self, todo: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Yield `batch(indices)` of each of these batches, worked on ahead of the caller."""


def open_images(path: Path) -> ImageSet:
    """Open a directory, zip, tar, packed set or `.npz` sample batch of images.

    Raises:
        ValueError: Nothing there, no images in it, or `sample` has not finished writing it.
    """
    check_there(path, "a directory, zip, tar or npz of images")
    if path.suffix == ".npz":
        return ArrayImages(path)
    manifest = _finished_manifest(path)
    if os.path.lexists(path / MANIFEST) or (manifest and "shard_images" in manifest["layout"]):
        return PackedImages(path, manifest)
    return EncodedImages(path, manifest)


class EncodedImages:
    """Image files in the order of their names: those that packing would list.

    Args:
        path: The directory or archive, for messages and the identity.
        manifest: What `sample` recorded of them, None for other images.
    """

    def __init__(self, path: Path, manifest: dict[str, Any] | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self._source = image_files(path)
        listing = _list_items(self._source)
        self._entries = [e for e in listing.entries if e.locator != BROKEN_LINK]
        _check_number(path, manifest, len(self._entries))
        broken = [Skip(e.name, "broken link") for e in listing.entries if e.locator == BROKEN_LINK]
        self._skips = [skip for skip in listing.skips if skip.name not in SAMPLE_FILES] + broken
        _note_left_out(path, self._skips)
        labels = np.array([entry.label for entry in self._entries], np.int64)
        self._labels = labels if (labels >= 0).all() else None
        self._size: tuple[int, ...] | None = None
        self._read = SteadyReader(self._source)
        self._read_by_threads = path.is_dir() and not isinstance(self._source, ShardsSource)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Kind, path, number and content digest; reads every file once."""
        digest = hashlib.sha256()
        contents = self._each(
            lambda _, data: hashlib.sha256(data).hexdigest(), self._entries, threads=READERS
        )
        for entry, content in zip(self._entries, contents, strict=True):
            digest.update(name_bytes(f"{entry.name}\0{content}\n"))
        codecs = {extension(entry.name) for entry in self._entries}
        left_out = count_reasons(self._skips)
        identity = {
            "kind": "images",
            "path": str(self.path),
            "num_images": len(self),
            "digest": digest.hexdigest(),
            "codecs": sorted(codecs),
        }
        return identity | ({"left_out": left_out} if left_out else {})

    def __len__(self) -> int:
        return len(self._entries)

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, int64 [B], or None if they are not known."""
        return None if self._labels is None else self._labels[list(indices)]

    def name(self, index: int) -> str:
        """Return the path of an image below the set's."""
        return printable(self._entries[index].name)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 RGB [B, 3, H, W]."""
        return next(self.batches([indices]))

    def batches(self, todo: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the images of each of these batches, decoded ahead of the caller."""
        entries = [self._entries[i] for indices in todo for i in indices]
        if self._size is None and entries:
            self._size = tuple(self._decode(entries[0], self._encoded(entries[0])).shape)
        images = self._each(self._decode, entries, depth=AHEAD * max(map(len, todo), default=1))
        return stacked(images, todo)

    def _each(
        self,
        work: Callable[[Entry, bytes], T],
        entries: Sequence[Entry],
        *,
        threads: int | None = None,
        depth: int = 0,
    ) -> Iterator[T]:
        """Yield what threads make of files, in order.

        They read the files of directories, too; archives are read by the caller's thread, as going
        back and forth in them is slow.
        """
        if self._read_by_threads:
            read_and_work = lambda entry: work(entry, self._encoded(entry))  # noqa: E731
            return ahead(read_and_work, entries, threads=threads, depth=depth)
        contents = ((entry, self._encoded(entry)) for entry in entries)
        return ahead(lambda item: work(*item), contents, depth=depth)

    def _decode(self, entry: Entry, content: bytes) -> Tensor:
        return decode_image(content, f"{self.path}: {printable(entry.name)}", self._size)

    def _encoded(self, entry: Entry) -> bytes:
        try:
            content = self._read(entry)
        except BadImage as error:
            raise ValueError(f"{self.path}: {printable(entry.name)}: {error}") from None
        except SourceError as error:
            raise ValueError(f"{self.path}: {error}") from None
        assert isinstance(content, bytes), "files hold encoded images"
        return content


def _check_number(path: Path, manifest: Mapping[str, Any] | None, found: int) -> None:
    """Raise ValueError unless a directory holds as many images as `sample` has written there."""
    drawn = len(parse_seeds(manifest["identity"]["seeds"])) if manifest else found
    if found != drawn:
        raise ValueError(
            f"{path} holds {found} images, but {SAMPLES} says {drawn}: some were removed, or are"
            " damaged; the same `relaywave eval sample` command draws those that are missing"
        )


def _list_items(source: Source) -> Listing:
    """Return the images of a source. Raises ValueError if there are none, or several splits."""
    try:
        return source.list_items()
    except SplitError as error:
        raise ValueError(f"{error.found}; evaluate one of them (its directory)") from None


def _note_left_out(path: Path, skips: Sequence[Skip]) -> None:
    """Say which files are not evaluated, on the first rank."""
    if skips and os.environ.get("RANK", "0") == "0":
        counts = [f"{n} {reason}" for reason, n in count_reasons(skips).items()]
        listed = f"{', '.join(counts)}; first: {printable(skips[0].name)}"
        print(f"{path}: {len(skips)} files are left out ({listed})", file=sys.stderr)


class PackedImages:
    """A set packed by `relaywave data pack`."""

    def __init__(self, path: Path, manifest: dict[str, Any] | None = None) -> None:
        self.manifest = manifest
        self._images = ShardedImages(path)
        self._size: tuple[int, ...] | None = None
        info = self._images.info
        if info.resolution == ORIGINAL:
            raise ValueError(
                f"{path} holds original images of any size; evaluation needs images of one size"
                " (pack them at a resolution: relaywave data pack)"
            )
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

    def name(self, index: int) -> str:
        """Return where an image is stored."""
        return self._images.locate(index)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 RGB [B, 3, H, W]."""
        return next(self.batches([indices]))

    def batches(self, todo: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the images of each of these batches, decoded ahead of the caller."""
        indices = [i for batch in todo for i in batch]
        if self._size is None and indices:
            self._size = tuple(self._decode(indices[0]).shape)
        depth = AHEAD * max(map(len, todo), default=1)
        return stacked(ahead(self._decode, indices, depth=depth), todo)

    def _decode(self, index: int) -> Tensor:
        try:
            image = self._images.decode(index)
        except BadImage as error:
            where = f"{self._images.path}: {self._images.locate(index)}"
            raise ValueError(f"{where}: {error}") from None
        if self._size is not None:
            check_size(image, self._size, f"{self._images.path}: image {index}")
        return image


class ArrayImages:
    """The `arr_0` uint8 [N, H, W, 3] of an ADM reference or sample batch, streamed."""

    manifest = None

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
        names = npz_names(path)
        classes = read_npz(path, ["arr_1"]).get("arr_1") if "mu" not in names else None
        is_table = classes is not None and classes.shape == shape[:1] and classes.dtype.kind in "iu"
        self._classes = classes if is_table else None

    def __len__(self) -> int:
        return self._array.shape[0]

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, in `arr_1` of a sample batch, or None."""
        if self._classes is None:
            return None
        return np.asarray(self._classes[list(indices)], np.int64)

    def name(self, index: int) -> str:
        """Return the row of an image."""
        return f"arr_0[{index}]"

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 RGB [B, 3, H, W]."""
        return torch.from_numpy(self._array.rows(indices)).permute(0, 3, 1, 2).contiguous()

    def batches(self, todo: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the images of each of these batches, read ahead of the caller, in order."""
        return ahead(self.batch, todo, threads=1, depth=AHEAD)


def stacked(images: Iterator[Tensor], todo: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Yield images [3, H, W] as batches [B, 3, H, W] of these lengths."""
    for indices in todo:
        yield torch.stack(list(itertools.islice(images, len(indices))))


def _finished_manifest(path: Path) -> dict[str, Any] | None:
    """Return what `sample` recorded of a directory, None if it made none; it must be finished."""
    manifest = read_samples_manifest(path)
    if manifest and not manifest["complete"]:
        raise ValueError(
            f"{path} is being written by another job, or that job was interrupted; wait for it,"
            " or finish it with the same `relaywave eval sample` command"
        )
    return manifest


@dataclass(frozen=True)
class SamplesRecord:
    """What `sample` records of a directory: how it was made, and whether it is complete."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    complete: bool
    identity: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    seconds: int | float = 0.0
    nfe: int | float | None = None
    tf32: Any = None
    written: str = ""

    def __post_init__(self) -> None:
        if self.complete or self.identity:
            check_identity(self.identity)
        if not 0 <= self.seconds < MAX_SECONDS:
            raise ValueError(f"seconds={self.seconds} is impossible")


@dataclass(frozen=True)
class _Identity:
    """What is used of an identity of samples."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    seeds: str
    device: str
    models: tuple[_Model, ...]

    def __post_init__(self) -> None:
        parse_seeds(self.seeds)


@dataclass(frozen=True)
class _Model:
    IGNORES_UNKNOWN: ClassVar[bool] = True
    images_seen: int
    objective: Any


def check_identity(identity: dict[str, Any]) -> None:
    """Raise ValueError unless it says what samples were made of."""
    from_json(_Identity, identity, "identity")


MAX_SECONDS = 1e11
RECORDS = Format(
    schema=SamplesRecord, remedy="remove it with its images, and draw the samples again", indent=2
)


def read_samples_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a sample directory, None if there is none.

    Raises:
        ValueError: It is damaged.
    """
    try:
        document = read_object(path / SAMPLES)
    except FileNotFoundError:
        return None
    except DocumentError as error:
        if path.is_dir():
            raise
        del error  # an archive or a file
        return None
    return vars(RECORDS.decode(document, str(path / SAMPLES)))
