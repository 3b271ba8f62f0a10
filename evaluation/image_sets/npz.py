"""Arrays inside .npz files: read without pickles, streamed row by row, written atomically."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from models.safe_files.archives import check_member, check_total
from models.safe_files.atomic import atomic_file
from models.safe_files.regular import check_file
from models.safe_files.transient import file_sha256, retried

CHUNK = 1 << 20

AnyArray = NDArray[Any]
Stream = tuple[np.dtype[Any], tuple[int, ...], Iterable[AnyArray]]


class NpzArray:
    """One array of an .npz file, read row by row in bounded memory.

    Read rows in ascending order: in a compressed file every step back reads again from the start.

    Raises:
        ValueError: The file or the array is missing or damaged, or the array holds Python objects.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        with _one_line(path):
            retried(self._open, f"reading {path}")
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize

    def _open(self) -> None:
        archive = zipfile.ZipFile(self._path)
        self._file = _open_member(archive, self._name)
        self.shape, self.dtype, column_major = _read_header(self._file, self._name)
        if column_major and len(self.shape) > 1:
            raise ValueError(f"{self._name} is in Fortran order; save it in C order")
        self._start = self._file.tell()

    @property
    def digest(self) -> str:
        """SHA-256 of the file. Raises ValueError if the array's own checksum does not match."""
        with _one_line(self._path), zipfile.ZipFile(self._path) as archive:
            with archive.open(f"{self._name}.npy") as member:
                while member.read(CHUNK):  # rows are read by seeking, which does not compare it
                    pass
            return file_sha256(self._path)

    def rows(self, indices: Sequence[int]) -> AnyArray:
        """Return these rows, [len(indices), *shape[1:]]."""
        with _one_line(self._path):
            return retried(lambda: self._read(indices), f"reading {self._path}", recover=self._open)

    def _read(self, indices: Sequence[int]) -> AnyArray:
        rows = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for row, index in zip(rows, indices, strict=True):
            self._file.seek(self._start + index * self._row_bytes)
            data = self._file.read(self._row_bytes)
            if len(data) != self._row_bytes:
                raise ValueError(f"{self._name} ends before row {index}; the file is truncated")
            row[...] = np.frombuffer(data, self.dtype).reshape(self.shape[1:])
        return rows


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn whatever reading an .npz file raises into a ValueError that names it."""
    try:
        check_file(path)
        yield
    except (OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error,
            SyntaxError, TypeError, OverflowError, ValueError) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError):
            reason = error.strerror or reason
        reason = "".join(c if c.isprintable() else "?" for c in reason)[:300]
        raise ValueError(f"{path} cannot be read as npz: {reason}") from None


def _open_member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"it has no array {name}") from None
    file = cast(BinaryIO, archive.open(member))
    file.size = member.file_size  # type: ignore[attr-defined]
    return file


def _read_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Return shape, dtype and whether columns come first; the data must have that size."""
    version = npy_format.read_magic(file)
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name} has the unknown version {version} of npy")
    shape, column_major, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are never read")
    needed = file.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or needed > file.size:  # type: ignore[attr-defined]
        raise ValueError(f"{name} has the shape {list(shape)}, but fewer bytes; it is truncated")
    return shape, dtype, column_major


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, AnyArray]:
    """Read arrays of an .npz file (all, or those of `names` that are there), never a pickle.

    Sizes are checked before anything is read, checksums while it is.

    Raises:
        ValueError: The file is missing or damaged, or an array holds pickled objects.
    """

    def read() -> dict[str, AnyArray]:
        with zipfile.ZipFile(path) as archive:
            check_total(archive, path.stat().st_size)
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            chosen = [name for name in members if names is None or name in names]
            for name in chosen:
                check_member(members[name])
            return {name: _read_array(archive, name) for name in chosen}

    with _one_line(path):
        return retried(read, f"reading {path}")


def _read_array(archive: zipfile.ZipFile, name: str) -> AnyArray:
    with _open_member(archive, name) as file:
        shape, dtype, column_major = _read_header(file, name)
        data = file.read()
    count = math.prod(shape)
    values = np.frombuffer(data, dtype, count) if count else np.empty(0, dtype)
    return values.reshape(shape, order="F" if column_major else "C").copy()


def write_npz(
    path: Path,
    arrays: Mapping[str, AnyArray],
    streams: Mapping[str, Stream] | None = None,
) -> None:
    """Write an uncompressed .npz atomically; a link is followed.

    Args:
        path: The file.
        arrays: Arrays by name.
        streams: Arrays that are too large for memory: dtype, shape, and blocks of rows in order.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy_format.write_array(member, np.asanyarray(array), allow_pickle=False)
        for name, stream in (streams or {}).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_stream(cast(BinaryIO, member), *stream)


def _write_stream(
    file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...], blocks: Iterable[AnyArray]
) -> None:
    header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype).tobytes())


def npz_names(path: Path) -> set[str]:
    """Return the names of the arrays in an .npz file. Raises ValueError if it cannot be read."""
    with _one_line(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}
