"""Reads foreign pickles through an allow-list of harmless stand-ins.

A pickle is a program: it names globals and calls them. Here only names on an allow-list exist, each
bound to a harmless stand-in of ours; any other name is an error that quotes it.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import numpy as np

from models.safe_files.archives import read_member
from models.safe_files.regular import open_file
from models.safe_files.trees import check_tree

NUMERIC_KINDS = frozenset("biufcSU")
MAX_INSTRUCTIONS = 2_000_000
MAX_COPIES = 4
"""How often, on average, each byte of a pickle may be copied."""

FREE_BYTES = 64 << 20
"""Bytes that a pickle may copy in any case."""

ALLOCATING = frozenset(
    f"{module}.{name}"
    for module, name in (
        ("builtins", "bytearray"), ("__builtin__", "bytearray"), ("_codecs", "encode"),
    )
)  # fmt: skip
"""What torch.load(weights_only=True) calls, though it takes memory that the file does not fill."""

TORCH_PICKLES = 5
"""Pickles of a file in PyTorch's format before its archives; storages follow."""

LEAST_COPY = 256
"""Bytes that a copy counts at least, for the time that it takes."""


class PickleReadError(ValueError):
    """A pickle that is damaged, or that asks for a global that is not allowed."""


def unreadable(error: Exception) -> str:
    """Return what torch.load(weights_only=True) found wrong, less its advice to read unsafely."""
    message = str(error)
    if foreign := re.search(r"GLOBAL (\S+)", message):
        return f"it asks for {foreign[1]}, which is neither weights nor settings"
    if unknown := re.search(r"Unsupported operand \d+", message):
        return f"it is another pickle ({unknown[0].lower()})"
    return message.partition("\n")[0].partition(". ")[0] or "it is empty or cut off"


def read_pickle(
    source: bytes | IO[bytes],
    allowed: Mapping[str, Any],
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the object of one pickle; a stream is left after its end.

    Args:
        source: Bytes, or a binary stream.
        allowed: Stand-ins by the global's full name, e.g. `collections.OrderedDict`.
        persistent_load: Maps persistent ids to objects; without it they are rejected.

    Raises:
        PickleReadError: The pickle is damaged or truncated, or names another global.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    start = stream.tell()
    try:
        _check_program(stream)
        budget = _Budget(FREE_BYTES + MAX_COPIES * (stream.tell() - start))
        stream.seek(start)
        content = _with_budget(budget, _Reader(stream, allowed, persistent_load).load)
    except PickleReadError:
        raise
    except Exception as error:  # a damaged program can fail in any instruction
        raise PickleReadError(f"the pickle is damaged or truncated: {error}") from None
    try:
        check_tree(content)
    except ValueError as error:
        raise PickleReadError(f"rejected: the pickle is no real file's: {error}") from None
    return content


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors about what a file holds begin with its name."""
    try:
        yield
    except UnicodeError as error:
        raise PickleReadError(f"{path}: {error}") from None
    except ValueError as error:
        message = str(error)
        raise type(error)(message if str(path) in message else f"{path}: {message}") from None


def check_torch_pickles(path: Path) -> None:
    """Check the pickles of a file before torch.load(weights_only=True) follows them.

    A pickle of 40 bytes can ask for a bytearray of 2 GB, one of 1 MB for thousands of copies of its
    text. Tensors and settings need neither.

    Raises:
        PickleReadError: A pickle is damaged, or calls what takes memory.
        OSError: The file cannot be read.
    """
    with open_file(path) as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # as torch.load decides it
        file.seek(0)
        for stream in _zipped_pickles(file) if is_zip else [file] * TORCH_PICKLES:
            if not stream.read(1):
                return
            stream.seek(-1, os.SEEK_CUR)
            try:
                _check_program(stream, ALLOCATING)
            except PickleReadError:
                raise
            except Exception as error:
                raise PickleReadError(f"the pickle is damaged or truncated: {error}") from None


def _zipped_pickles(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield the pickles of an archive; of what is none, nothing: torch rejects it."""
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.filename.endswith("data.pkl"):
                    yield io.BytesIO(read_member(archive, info))
    except zipfile.BadZipFile:
        return


def _check_program(stream: IO[bytes], forbidden: Collection[str] = ()) -> None:
    """Read a pickle's instructions without following them, up to its end.

    What an instruction announces (a length, a place in the list of objects to refer to) is memory
    that is taken before its content is read; here each must be there.

    Raises:
        PickleReadError: It has too many instructions, refers to a place far behind its objects, or
            names a forbidden global.
    """
    start = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(start)
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MAX_INSTRUCTIONS:
            raise PickleReadError(f"the pickle has more than {MAX_INSTRUCTIONS} instructions")
        if instruction.name == "GLOBAL" and str(argument).replace(" ", ".") in forbidden:
            raise PickleReadError(f"it asks for {argument}, which no weights or settings need")
        if instruction.name == "FRAME":
            largest = size
        elif instruction.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            largest = count
        else:
            continue
        if int(argument or 0) > largest:
            raise PickleReadError(
                f"the pickle is damaged or truncated: {instruction.name} announces {argument}"
            )


class _Budget:
    """How many bytes the stand-ins of one pickle may still copy."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes

    def spend(self, num_bytes: int) -> None:
        """Count a copy. Raises PickleReadError if a small pickle copies its data again and again.

        Each copy costs a few instructions of the pickle, and without a bound any amount of memory.
        """
        self._num_bytes -= num_bytes
        if self._num_bytes < 0:
            raise PickleReadError("rejected: the pickle copies its data too often")


def count_copy(num_bytes: int) -> None:
    """Count bytes that a stand-in copies or reads again. Raises PickleReadError, see _Budget."""
    _budget.get().spend(max(num_bytes, LEAST_COPY))


_budget: ContextVar[_Budget] = ContextVar("_budget")


def _with_budget(budget: _Budget, load: Callable[[], Any]) -> Any:
    token = _budget.set(budget)
    try:
        return load()
    finally:
        _budget.reset(token)


def read_pickled_npy(path: Path, allowed: Mapping[str, Any] | None = None) -> Any:
    """Return the array or object of an .npy file that numpy would need allow_pickle for.

    Args:
        path: The file, e.g. a 0-d object array that holds a dict of statistics.
        allowed: Globals that may occur; null is NUMPY_GLOBALS.

    Raises:
        PickleReadError: The file is no .npy file, damaged, or names a global that is not allowed.
    """
    with open_file(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
            shape, _, dtype = read_header(file)
        except Exception as error:  # parsing a damaged header raises many kinds
            raise PickleReadError(f"it is not an .npy file: {error}") from None
        if not dtype.hasobject:
            _check_size(file, math.prod(shape) * dtype.itemsize)
            file.seek(0)
            return np.load(file, allow_pickle=False)
        array = read_pickle(file, NUMPY_GLOBALS if allowed is None else allowed)
    return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array


def _check_size(file: IO[bytes], num_bytes: int) -> None:
    """Raise PickleReadError if a file has fewer bytes left than an array needs."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    if num_bytes > left:
        raise PickleReadError(f"the array has {num_bytes} bytes, but the file only {left}")


class _Reader(pickle.Unpickler):
    def __init__(
        self,
        stream: IO[bytes],
        allowed: Mapping[str, Any],
        persistent_load: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(stream)
        self._allowed = allowed
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name not in self._allowed:
            raise PickleReadError(
                f"rejected: the pickle asks for the global {full_name}, which is not allowed;"
                " nothing was executed"
            )
        return self._allowed[full_name]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent_load is None:
            raise PickleReadError(f"rejected: the pickle refers to an external object {pid!r}")
        return self._persistent_load(pid)


class _Dtype:
    """Stands in for numpy.dtype: remembers the type code and the byte order, and no more."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        del align, copy
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in NUMERIC_KINDS and self.dtype != np.dtype("O"):
            raise PickleReadError(f"rejected: arrays of dtype {code!r} are not read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">") and self.dtype.kind != "O":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray[Any, Any]):
    """An array being unpickled: checks its state before numpy sees it."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        shape = tuple(int(edge) for edge in shape)
        count = math.prod(shape)
        size = len(raw) if dtype.dtype.kind == "O" else len(raw) // max(dtype.dtype.itemsize, 1)
        if min(shape, default=0) < 0 or size != count:
            raise PickleReadError(f"an array of shape {shape} has data for {size} entries")
        count_copy(size * max(dtype.dtype.itemsize, 1))
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), raw))  # type: ignore[arg-type]


def _empty_array(subtype: Any, shape: Any, code: Any) -> _Array:
    """Stand in for numpy's _reconstruct; the content follows as the array's state."""
    del subtype, shape, code
    return np.empty(0, np.int8).view(_Array)


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    """Stand in for numpy's scalar."""
    if dtype.dtype.kind == "O" or len(raw) != dtype.dtype.itemsize:
        raise PickleReadError(f"rejected: a scalar of dtype {dtype.dtype} with {len(raw)} bytes")
    return np.frombuffer(raw, dtype.dtype)[0]


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> Any:
    """Stand in for numpy's _frombuffer, by which protocol 5 writes arrays."""
    if dtype.dtype.kind == "O":
        raise PickleReadError("rejected: objects in a raw buffer")
    count_copy(len(raw))
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for codecs.encode, by which protocol 2 writes byte strings."""
    if encoding != "latin1":
        raise PickleReadError(f"rejected: text in the encoding {encoding!r}")
    count_copy(len(text))
    return text.encode("latin1")


PLAIN_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "_codecs.encode": _encode,
}
NUMPY_GLOBALS: dict[str, Any] = PLAIN_GLOBALS | {"numpy.dtype": _Dtype, "numpy.ndarray": _Array}
for _package in ("numpy.core", "numpy._core"):
    NUMPY_GLOBALS[f"{_package}.multiarray.scalar"] = _scalar
    NUMPY_GLOBALS[f"{_package}.multiarray._reconstruct"] = _empty_array
    NUMPY_GLOBALS[f"{_package}.numeric._frombuffer"] = _from_buffer
