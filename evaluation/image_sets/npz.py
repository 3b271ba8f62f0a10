"""Arrays inside .npz files: read without pickles, streamed row by row, written atomically."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from models.safe_files.archives import check_member

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
        try:
            archive = zipfile.ZipFile(path)
            member = archive.getinfo(f"{name}.npy")
            self._file = cast(BinaryIO, archive.open(member))
        except KeyError:
            raise ValueError(f"{path} has no array {name}") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read as npz: {error}") from None
        self.shape, self.dtype = self._read_header()
        self._start = self._file.tell()
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        needed = self._start + math.prod(self.shape) * self.dtype.itemsize
        if needed > member.file_size:
            raise ValueError(
                f"{path}: {name} has the shape {list(self.shape)}, but only {member.file_size}"
                " bytes; the file is truncated"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        with open(self._path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def rows(self, indices: Sequence[int]) -> AnyArray:
        """Return these rows, [len(indices), *shape[1:]]."""
        rows = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for row, index in zip(rows, indices, strict=True):
            self._file.seek(self._start + index * self._row_bytes)
            data = self._file.read(self._row_bytes)
            if len(data) != self._row_bytes:
                raise ValueError(
                    f"{self._path}: {self._name} ends before row {index}; the file is truncated"
                )
            row[...] = np.frombuffer(data, self.dtype).reshape(self.shape[1:])
        return rows

    def _read_header(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        version = npy_format.read_magic(self._file)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else _read_header_2_0
        shape, column_major, dtype = read(self._file)
        if dtype.hasobject:
            raise ValueError(
                f"{self._path}: {self._name} holds pickled objects, which are never read"
            )
        if column_major and len(shape) > 1:
            raise ValueError(f"{self._path}: {self._name} is in Fortran order; save it in C order")
        return shape, dtype


def _read_header_2_0(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return npy_format.read_array_header_2_0(file)


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, AnyArray]:
    """Read arrays of an .npz file (all, or those of `names` that are there), never a pickle.

    Raises:
        ValueError: The file is missing or damaged, or an array holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if names is None or member.filename.removesuffix(".npy") in names:
                    check_member(member)
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if names is None or key in names}
    except (OSError, EOFError, zipfile.BadZipFile, MemoryError, RuntimeError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as npz: {error}") from None
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(f"{path} holds pickled objects, which are never read") from None
        raise ValueError(f"{path} cannot be read as npz: {error}") from None


def write_npz(
    path: Path,
    arrays: Mapping[str, AnyArray],
    streams: Mapping[str, Stream] | None = None,
) -> None:
    """Write an uncompressed .npz atomically: temporary name, fsync, rename.

    Args:
        path: The file.
        arrays: Arrays by name.
        streams: Arrays that are too large for memory: dtype, shape, and blocks of rows in order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        npy_format.write_array(member, np.asanyarray(array), allow_pickle=False)
                for name, stream in (streams or {}).items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        _write_stream(cast(BinaryIO, member), *stream)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_stream(
    file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...], blocks: Iterable[AnyArray]
) -> None:
    header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype).tobytes())


def npz_names(path: Path) -> set[str]:
    """Return the names of the arrays in an .npz file. Raises ValueError if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as npz: {error}") from None
