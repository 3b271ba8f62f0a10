"""What a packed set is on disk: a manifest, an index, and tar shards.

    manifest.json    counts, class table, shards with SHA-256, source, options; written last
    index.npy        one row per sample (INDEX_ROW): where its bytes are, its label, its checksum
    shards/*.tar     WebDataset shards: <number>.<png|webp|jpg> and <number>.cls per sample
    skipped.jsonl    items of the source that were skipped, with the reason
    set.beton        FFCV's file, next to the shards or instead of them, with an index of its own

A directory with a manifest is complete; one without is an unfinished pack, or no set at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.npy"
SKIPPED = "skipped.jsonl"
BETON = "set.beton"
BETON_INDEX = "set.beton.npy"

INDEX_ROW = np.dtype(
    [
        ("offset", "<u8"),  # of the image's bytes within its shard
        ("shard", "<u4"),
        ("length", "<u4"),  # of the image's bytes
        ("label", "<i4"),  # class index, -1 in unlabelled sets
        ("crc32", "<u4"),  # of the image's bytes
    ]
)
Index = NDArray[np.void]


class DatasetError(ValueError):
    """A packed set that is missing, unfinished, damaged or of another format."""


@dataclass(frozen=True)
class Shard:
    """One tar file: its path within the set, its size, its checksum, its samples."""

    name: str
    num_bytes: int
    sha256: str
    num_images: int


@dataclass(frozen=True)
class DatasetInfo:
    """What consumers of a packed set need to know.

    Attributes:
        num_images: Images per epoch.
        resolution: Edge of the stored images, in pixels; 0 (ORIGINAL) if they are of any size.
        class_names: Names by class index; empty for unlabelled sets.
        digest: SHA-256 that identifies the content, order and labels of the set.
    """

    num_images: int
    resolution: int
    class_names: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The description of a packed set.

    Attributes:
        kind: The kind of the source.
        source: What was packed: path, number and digest of the items' names and sizes.
        options: The exact options that determine the content.
        num_images: Images in the set.
        resolution: Edge of the stored images, in pixels; 0 (ORIGINAL) if they are of any size.
        class_names: Names by class index; empty for unlabelled sets.
        class_counts: Images by class index.
        shards: The tar files, in order.
        index_sha256: Checksum of the index file (see `index_name`).
        skipped: Number of skipped items, by reason.
        digest: SHA-256 over the resolution, class names, and each sample's bytes and label in
            order; does not depend on the shard size.
        shuffle_window: Images within which remote sets are shuffled (see sample_order.py); 0 if
            the set was packed before this was recorded.
        enlarged: Images whose shorter side in the source has fewer pixels than the resolution.
    """

    kind: str
    source: dict[str, Any]
    options: dict[str, Any]
    num_images: int
    resolution: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    shards: tuple[Shard, ...]
    index_sha256: str
    skipped: dict[str, int]
    digest: str
    shuffle_window: int = 0
    enlarged: int = 0

    @property
    def only_beton(self) -> bool:
        """Whether the set's one "shard" is FFCV's file, whose samples are pixels [H, W, 3]."""
        return self.shards[0].name == BETON

    @property
    def index_name(self) -> str:
        """The file that records where the samples are stored."""
        return BETON_INDEX if self.only_beton else INDEX

    @property
    def info(self) -> DatasetInfo:
        """What consumers of the set need to know."""
        return DatasetInfo(
            num_images=self.num_images,
            resolution=self.resolution,
            class_names=self.class_names,
            digest=self.digest,
        )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `path/manifest.json` atomically, with a checksum over its own content."""
    document: dict[str, Any] = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    document["checksum"] = _checksum(document)
    with atomic_file(path / MANIFEST) as file:
        file.write(json.dumps(document, indent=1).encode() + b"\n")


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest of the set at `path`.

    Raises:
        DatasetError: There is none, it was written by a newer version, or it was changed by hand.
    """
    try:
        document = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise DatasetError(_why_no_manifest(path)) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path / MANIFEST} cannot be read: {error}") from None
    version = document.pop("format_version", None) if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise DatasetError(
            f"{path / MANIFEST} has format {version}, this relaywave reads {FORMAT_VERSION};"
            " use the relaywave that wrote it, or pack the set again"
        )
    checksum = document.pop("checksum", None)
    if checksum != _checksum({"format_version": version, **document}):
        raise DatasetError(
            f"{path / MANIFEST} was changed after packing (its checksum does not match);"
            " restore it, or pack the set again"
        )
    document["shards"] = tuple(Shard(**shard) for shard in document["shards"])
    for name in ("class_names", "class_counts"):
        document[name] = tuple(document[name])
    return Manifest(**document)


def _why_no_manifest(path: Path) -> str:
    if not path.is_dir():
        return f"{path} is no directory; first: relaywave data pack KIND SOURCE {path}"
    sets = [*path.glob(f"*/{MANIFEST}"), *path.glob(f"*/*/{MANIFEST}")]
    inner = sorted(child.parent.relative_to(path).as_posix() for child in sets)
    if inner:
        return f"{path} holds several sets; take one of them: {', '.join(inner)}"
    if (path / ".packing").is_dir():
        return f"{path} is an unfinished pack; run the same pack command again to finish it"
    return f"{path} holds no packed set (no {MANIFEST}); see: relaywave data pack --help"


def write_index(path: Path, index: Index, name: str = INDEX) -> str:
    """Write an index file atomically and return its SHA-256."""
    with atomic_file(path / name) as file:
        np.save(file, index)
    return file_sha256(path / name)


def read_index(path: Path, manifest: Manifest) -> Index:
    """Map the set's index into memory; rows that are not used are not read.

    Raises:
        DatasetError: The file is missing, damaged, or does not match the manifest.
    """
    file = path / manifest.index_name
    try:
        index: Index = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{file} cannot be read: {error}; pack the set again") from None
    if index.dtype != INDEX_ROW or index.shape != (manifest.num_images,):
        raise DatasetError(
            f"{file} has {index.size} rows, the manifest says {manifest.num_images};"
            " pack the set again"
        )
    return index


def check_shard_sizes(path: Path, manifest: Manifest) -> None:
    """Raise DatasetError if a shard is missing or not of the size that the manifest says."""
    for shard in manifest.shards:
        try:
            size = (path / shard.name).stat().st_size
        except OSError as error:
            raise DatasetError(f"{path / shard.name} cannot be read: {error.strerror}") from None
        if size != shard.num_bytes:
            raise DatasetError(
                f"{path / shard.name} has {size} bytes, the manifest says {shard.num_bytes}:"
                " the shard is damaged; copy it again, or remove the set and pack it again"
            )


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the canonical JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()
