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
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.safe_files.atomic import atomic_file
from models.safe_files.documents import DocumentError, Format, canonical_json
from models.safe_files.regular import check_file
from models.safe_files.transient import file_sha256, retried

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
ROWS = 1 << 14
"""Rows of an index that are compared with the manifest at a time."""

SHARD_NAME = re.compile(r"shards/[0-9]{6,}\.tar")
SHA256 = re.compile("[0-9a-f]{64}")
MAX_SIZE = 1 << 62


class DatasetError(ValueError):
    """A packed set that is missing, unfinished, damaged or of another format."""


@dataclass(frozen=True)
class Shard:
    """One tar file: its path within the set, its size, its checksum, its samples.

    The path leads nowhere else, wherever the manifest comes from.
    """

    IGNORES_UNKNOWN: ClassVar[bool] = True
    name: str
    num_bytes: int
    sha256: str
    num_images: int

    def __post_init__(self) -> None:
        if self.name != BETON and not SHARD_NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name[:80]!r} is no name of a shard, such as shards/000000.tar or {BETON}"
            )
        _check_sizes(self, "num_bytes", "num_images")
        _check_sha256(self, "sha256")


@dataclass(frozen=True)
class DatasetInfo:
    """What consumers of a packed set need to know.

    Attributes:
        num_images: Images per epoch.
        resolution: Edge of the stored images, in pixels; 0 (ORIGINAL) if they are of any size.
        class_names: Names by class index; empty for unlabelled sets.
        digest: SHA-256 that identifies the content, order and labels of the set.
        order: SHA-256 of what else the order of visits depends on: the windows within which images
            are shuffled, and the shards; "" if all images are shuffled with each other.
        class_counts: Images by class index, of those that an epoch visits.
    """

    num_images: int
    resolution: int
    class_names: tuple[str, ...]
    digest: str
    order: str = ""
    class_counts: tuple[int, ...] = ()

    @property
    def identity(self) -> str:
        """SHA-256 that identifies what training sees, and when: content and order."""
        if not self.order:
            return self.digest
        return hashlib.sha256(canonical_json([self.digest, self.order])).hexdigest()


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

    IGNORES_UNKNOWN: ClassVar[bool] = True
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

    def __post_init__(self) -> None:
        _check_sizes(self, "num_images", "resolution", "shuffle_window")
        _check_sha256(self, "index_sha256", "digest")
        names = [shard.name for shard in self.shards]
        if not names or len(set(names)) < len(names) or (BETON in names and len(names) > 1):
            raise ValueError(f"shards={names[:3]} are not one {BETON}, or tar files named once")
        if len(self.class_counts) != len(self.class_names) or min(self.class_counts, default=0) < 0:
            raise ValueError(
                f"class_counts has {len(self.class_counts)} entries, class_names"
                f" {len(self.class_names)}; each class has one count, which is not negative"
            )
        if sum(self.class_counts) > self.num_images:
            raise ValueError(f"class_counts are of more images than num_images={self.num_images}")

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
            class_counts=self.class_counts,
        )


def _check_sizes(described: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(described, name) < MAX_SIZE:
            raise ValueError(f"{name}={getattr(described, name)} is negative or too large")


def _check_sha256(described: object, *names: str) -> None:
    for name in names:
        if not SHA256.fullmatch(getattr(described, name)):
            raise ValueError(f"{name}={getattr(described, name)[:80]!r} is no SHA-256")


_FORMAT = Format(
    schema=Manifest,
    version=FORMAT_VERSION,
    needs_checksum=True,
    made="packing",
    remedy="restore it, or pack the set again",
)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `path/manifest.json` atomically, with a checksum over its own content."""
    _FORMAT.write(path / MANIFEST, asdict(manifest))


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest of the set at `path`.

    Raises:
        DatasetError: There is none, it was written by a newer version, or it was changed by hand.
    """
    try:
        return _FORMAT.read(path / MANIFEST)
    except FileNotFoundError:
        raise DatasetError(_why_no_manifest(path)) from None
    except DocumentError as error:
        raise DatasetError(str(error)) from None


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Return the manifest of a text; `where` names it in messages. Raises DatasetError."""
    try:
        return _FORMAT.parse(content, where)
    except DocumentError as error:
        raise DatasetError(str(error)) from None


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


def read_index(path: Path, manifest: Manifest, *, verify: bool = True) -> Index:
    """Map the set's index into memory, after comparing it with the manifest.

    A flipped bit in it would train on another label. Comparing reads it once, which takes a tenth
    of a second for a million samples; pages that are not used later need no memory.

    Args:
        path: Directory of the set.
        manifest: Its manifest.
        verify: Compare the content with the manifest, not only the number of rows.

    Raises:
        DatasetError: The file is missing, damaged, or does not match the manifest.
    """
    index = map_index(path / manifest.index_name)
    if index.dtype != INDEX_ROW or index.shape != (manifest.num_images,):
        raise DatasetError(
            f"{path / manifest.index_name} has {index.size} rows, the manifest says"
            f" {manifest.num_images}; pack the set again"
        )
    problem = index_problem(path, manifest, index) if verify else None
    if problem:
        raise DatasetError(
            f"{path / manifest.index_name}: {problem}; copy it again, or pack the set again"
        )
    return index


def index_problem(path: Path, manifest: Manifest, index: Index) -> str | None:
    """Return how an index differs from what the manifest says, None if it does not."""
    if file_sha256(path / manifest.index_name) != manifest.index_sha256:
        return "its sha256 is not the one in the manifest"
    sizes = np.array([shard.num_bytes for shard in manifest.shards], np.uint64)
    num_classes, last_shard = len(manifest.class_names), 0
    for start in range(0, len(index), ROWS):
        rows = index[start : start + ROWS]
        shards, labels = rows["shard"].astype(np.int64), rows["label"]
        if (np.diff(shards, prepend=last_shard) < 0).any() or shards[-1] >= len(sizes):
            return f"its shards are not in the order 0 to {len(sizes) - 1}"
        last_shard = shards[-1]
        space = sizes[shards] - np.minimum(rows["offset"], sizes[shards])
        if (rows["length"] > space).any():
            return "it names bytes behind the end of a shard"
        if num_classes and (labels.min() < 0 or labels.max() >= num_classes):
            odd = labels[(labels < 0) | (labels >= num_classes)][0]
            return f"it has the label {odd}, the classes are 0 to {num_classes - 1}"
    return None


def map_index(file: Path) -> Index:
    """Map an index file. Raises DatasetError if it is no array of rows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on headers that numpy finds odd
            check_file(file)
            index: Index = retried(
                lambda: np.lib.format.open_memmap(file, mode="r"), f"reading {file}"
            )
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}; pack the set again") from None
    except Exception as error:  # parsing a damaged header raises many kinds
        reason = str(error).partition("\n")[0]
        raise DatasetError(f"{file} is no index: {reason}; pack the set again") from None
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
