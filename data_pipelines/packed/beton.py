"""FFCV's file format (`.beton`), written from a packed set's shards.

FFCV's own writer hangs when a worker fails (on a full disk), and its page order depends on timing.
This one writes the same format in one pass and is deterministic.

A beton is stored next to a set's shards, or instead of them. Samples become raw pixels, which FFCV
delivers exactly and fastest. JPEG sets may keep their bytes instead, a fifth of the size; but FFCV
decodes JPEG by the fast DCT, up to 14 of 255 levels off.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipelines.images import ORIGINAL, BadImage, decode_rgb
from data_pipelines.packed.manifest import (
    BETON,
    BETON_INDEX,
    INDEX,
    INDEX_ROW,
    SHARD_NAME,
    DatasetError,
    Index,
    Manifest,
    Shard,
    map_index,
    read_manifest,
    write_index,
    write_manifest,
)
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.progress import Progress
from models.safe_files.atomic import atomic_file, check_replaceable_file
from models.safe_files.documents import DocumentError, Format
from models.safe_files.regular import open_file
from models.safe_files.transient import file_sha256

BETON_RECORD = "set.beton.json"
PAGE = 1 << 23
JPEG, RAW = 0, 1


def write_beton(path: Path, *, keep_jpeg: bool = False) -> None:
    """Write `set.beton` next to the shards of a packed set, unless a complete one is there.

    Args:
        path: Directory of the set.
        keep_jpeg: Copy the JPEG bytes of a JPEG set instead of its pixels.

    Raises:
        DatasetError: The set is damaged.
        ValueError: FFCV is not installed, or another file has the beton's name.
    """
    images = ShardedImages(path)
    if images.info.resolution == ORIGINAL:
        raise DatasetError(
            f"FFCV needs images of one size; {path} has any: pack it at one resolution"
        )
    mode = JPEG if keep_jpeg and images.manifest.options.get("image_format") == "jpeg" else RAW
    if _is_current(path, images.manifest, mode):
        return
    if images.manifest.only_beton:
        raise DatasetError(f"{path} has no shards to write a {BETON} from; pack it again")
    check_replaceable_file(path / BETON, _is_beton, "a beton of ours")
    (path / BETON_RECORD).unlink(missing_ok=True)
    with atomic_file(path / BETON) as file, Progress("beton", total=len(images)) as progress:
        rows = _write(file, images, mode, progress.advance)
    write_index(path, rows, BETON_INDEX)
    num_bytes = (path / BETON).stat().st_size
    record = BetonRecord(
        digest=images.info.digest,
        mode=mode,
        num_bytes=num_bytes,
        sha256=file_sha256(path / BETON),
        index_sha256=file_sha256(path / BETON_INDEX),
    )
    _RECORD.write(path / BETON_RECORD, asdict(record))
    images.close()


def _is_beton(start: bytes) -> bool:
    """Tell by a file's beginning whether it is a beton of the fields that are written here."""
    types = import_ffcv()
    header = np.frombuffer(start.ljust(types.HeaderType.itemsize, b"\0"), types.HeaderType, 1)[0]
    return bool(header["version"] == types.CURRENT_VERSION and header["num_fields"] == 2)


def keep_only_beton(path: Path) -> None:
    """Replace a set's shards by its beton, and remove them. Raises as write_beton."""
    write_beton(path)
    manifest = read_manifest(path)
    if not manifest.only_beton:
        record, _ = check_beton(path, manifest)
        beton = Shard(BETON, record.num_bytes, record.sha256, manifest.num_images)
        index_sha256 = file_sha256(path / BETON_INDEX)
        write_manifest(path, replace(manifest, shards=(beton,), index_sha256=index_sha256))
    for shard in (path / "shards").glob("*.tar"):
        if SHARD_NAME.fullmatch(shard.relative_to(path).as_posix()):
            shard.unlink()
    with suppress(OSError):  # something of the user's is in it, and stays
        (path / "shards").rmdir()
    (path / INDEX).unlink(missing_ok=True)


def beton_problem(path: Path, manifest: Manifest) -> str | None:
    """Return what is wrong with a set's beton after reading all of it; None if it is intact."""
    if not (path / BETON).exists():
        return None
    try:
        record, rows = check_beton(path, manifest)
    except DatasetError as error:
        return str(error)
    if file_sha256(path / BETON) != record.sha256:
        return f"{BETON}: damaged; remove it and write it again"
    if record.index_sha256 is None and not _has_all(path / BETON, rows):
        return f"{BETON_INDEX}: damaged; remove {BETON} and write it again"
    return None


def _has_all(beton: Path, rows: Index) -> bool:
    """Tell whether a beton has the samples that an index says, where the index has no checksum."""
    with open_file(beton) as file:
        for row in rows:
            file.seek(int(row["offset"]))
            if zlib.crc32(file.read(int(row["length"]))) != int(row["crc32"]):
                return False
    return True


def _is_current(path: Path, manifest: Manifest, mode: int) -> bool:
    try:
        record, _ = check_beton(path, manifest)
    except DatasetError:
        return False
    return record.mode == mode


@dataclass(frozen=True)
class BetonRecord:
    """What a complete beton is; `set.beton.json`, written last.

    Attributes:
        digest: Digest of the set that it was written from.
        mode: What it holds of each image: JPEG or RAW.
        num_bytes: Size of the file.
        sha256: Checksum of the file.
        index_sha256: Checksum of its index; None if it was written before this was recorded.
    """

    IGNORES_UNKNOWN: ClassVar[bool] = True
    digest: str
    mode: int
    num_bytes: int
    sha256: str
    index_sha256: str | None = None


_RECORD = Format(schema=BetonRecord)


def check_beton(path: Path, manifest: Manifest) -> tuple[BetonRecord, Index]:
    """Return what a beton is, and its index.

    Raises:
        DatasetError: It was not written from this very set, or its index is damaged.
    """
    advice = f"write it with `relaywave data beton {path}`"
    try:
        record = _RECORD.read(path / BETON_RECORD)
        size = (path / BETON).stat().st_size
        rows = map_index(path / BETON_INDEX)
    except (OSError, DocumentError, DatasetError):
        raise DatasetError(f"{path} holds no complete {BETON}; {advice}") from None
    if record.digest != manifest.digest or rows.dtype != INDEX_ROW:
        raise DatasetError(f"{path / BETON} was written from another set; {advice}")
    if record.num_bytes != size:
        raise DatasetError(f"{path / BETON} has {size} bytes, not {record.num_bytes}; {advice}")
    if not _is_index(path / BETON_INDEX, rows, record, manifest):
        raise DatasetError(f"{path / BETON_INDEX} is damaged; {advice}")
    return record, rows


def _is_index(file: Path, rows: Index, record: BetonRecord, manifest: Manifest) -> bool:
    """Tell whether an index is a beton's: by its checksum, or else as far as its values tell."""
    if rows.shape != (manifest.num_images,) or record.mode not in (JPEG, RAW):
        return False
    if record.index_sha256 is not None:
        return file_sha256(file) == record.index_sha256
    space = record.num_bytes - np.minimum(rows["offset"], np.uint64(record.num_bytes))
    return bool((rows["length"] <= space).all())


def _write(
    file: IO[bytes], images: ShardedImages, mode: int, advance: Callable[[int], None]
) -> Index:
    """Write the file and return where each sample is."""
    types = import_ffcv()
    fields = {"image": types.RGBImageField(), "label": types.IntField()}
    metadata = np.zeros(len(images), types.get_metadata_type(list(fields.values())))
    table = np.zeros(len(images), types.ALLOC_TABLE_TYPE)
    rows = np.zeros(len(images), INDEX_ROW)
    header = np.zeros(1, types.HeaderType)
    descriptors = _descriptors(types, fields)
    start = header.nbytes + descriptors.nbytes
    pages = _Pages(file, start + metadata.nbytes, page_size(images.info.resolution))
    for index in range(len(images)):
        content, label = _content(images, index, mode)
        offset = pages.append(content)
        edge = images.info.resolution
        class_index = -1 if label is None else label
        metadata[index] = ((mode, edge, edge, offset), class_index)
        table[index] = (index, offset, len(content))
        rows[index] = (offset, 0, len(content), class_index, zlib.crc32(content))
        advance(1)
    end = pages.finish()
    file.write(table.tobytes())
    file.seek(0)
    header[0] = (types.CURRENT_VERSION, len(fields), pages.size, len(images), end)
    for part in (header, descriptors, metadata):
        file.write(part.tobytes())
    return rows


def _content(images: ShardedImages, index: int, mode: int) -> tuple[bytes, int | None]:
    try:
        encoded, label = images.read(index)
        return (encoded if mode == JPEG else decode_rgb(encoded).tobytes()), label
    except BadImage as error:
        raise DatasetError(f"{images.locate(index)} of {images.path}: {error}") from None


def _descriptors(types: Any, fields: dict[str, Any]) -> NDArray[np.void]:
    """Return FFCV's description of the fields."""
    ids = {kind: number for number, kind in types.TYPE_ID_HANDLER.items()}
    descriptors = np.zeros(len(fields), types.FieldDescType)
    for descriptor, (name, kind) in zip(descriptors, fields.items(), strict=True):
        descriptor["type_id"] = ids[type(kind)]
        descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    return descriptors


def page_size(resolution: int) -> int:
    """Return the size of a page: a power of two that holds any sample."""
    return max(PAGE, 1 << (3 * resolution**2 - 1).bit_length())


@dataclass
class _Pages:
    """The data region: samples one after the other, none across a page boundary."""

    file: IO[bytes]
    minimum: int
    size: int

    def __post_init__(self) -> None:
        self._place = -(-self.minimum // self.size) * self.size
        self.file.seek(self._place)

    def append(self, content: bytes) -> int:
        """Write a sample and return its offset in the file."""
        if self._place % self.size + len(content) > self.size:
            self._fill_page()
        offset = self._place
        self.file.write(content)
        self._place += len(content)
        return offset

    def finish(self) -> int:
        """Fill the last page and return the offset after it."""
        if self._place % self.size:
            self._fill_page()
        return self._place

    def _fill_page(self) -> None:
        missing = -self._place % self.size
        self.file.write(bytes(missing))
        self._place += missing


def import_ffcv() -> Any:
    """Return FFCV's `types` module.

    Raises:
        ValueError: FFCV cannot be imported; names what is missing.
    """
    try:
        with _side_effects_undone():
            from ffcv import types
    except ImportError as error:
        raise ValueError(
            f"backend='ffcv' cannot be imported ({error}); apt-get install libturbojpeg0-dev"
            " libopencv-dev pkg-config, then pip install 'relaywave[ffcv]',"
            " or set data.backend=dali"
        ) from None
    return types


@contextmanager
def _side_effects_undone() -> Iterator[None]:
    """Import FFCV without its side effects: compiling a dictionary, and setting one torch thread.

    It keeps the numbers of its two image modes in a compiled dictionary, which takes numba several
    seconds, though only Python code looks them up.
    """
    typed = importlib.import_module("numba.typed")
    import torch

    compiled, threads = typed.Dict, torch.get_num_threads()
    typed.Dict = dict  # type: ignore[attr-defined]
    try:
        yield
    finally:
        typed.Dict = compiled  # type: ignore[attr-defined]
        torch.set_num_threads(threads)
