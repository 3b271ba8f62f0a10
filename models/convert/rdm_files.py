"""Official files of RDM, EDM and NVIDIA: pickled modules with source (docs/reference/rdm.md#4.2).

The source is never executed and torch.load never called. Tensors stay on disk (or in the pickle's
bytes) until they are asked for, so that a training state's optimizer moments cost nothing.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.convert.pickle_reader import NUMPY_GLOBALS, PickleReadError, count_copy, read_pickle
from models.safe_files.archives import ArchiveError, check_uncompressed, read_member
from models.safe_files.regular import open_file

LEAST_STORAGE = 4096
"""Bytes that reading a storage within a pickle counts, however short it is."""

MAX_EDGE = 1 << 62
"""Above it, torch cannot take an edge, a stride or an offset at all."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """A flat array in a container: its dtype, its length, and a function that reads its bytes."""

    dtype: torch.dtype
    count: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class StoredTensor:
    """A strided view of a storage, not yet read."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size, under the name that tensors have for it."""
        return self.size

    def load(self) -> Tensor:
        """Return the tensor, contiguous, on the CPU.

        Raises:
            PickleReadError: The storage is shorter than announced, or than the view needs.
        """
        raw = self.storage.read()
        width = self.storage.dtype.itemsize
        if len(raw) != self.storage.count * width or math.prod(self.size) > self.storage.count:
            raise PickleReadError(
                f"a storage holds {len(raw)} bytes, its tensor of shape {list(self.size)} announces"
                f" {self.storage.count} values: the file is damaged or truncated"
            )
        if not math.prod(self.size):
            return torch.empty(self.size, dtype=self.storage.dtype)
        flat = torch.frombuffer(bytearray(raw), dtype=self.storage.dtype)
        try:
            return flat.as_strided(self.size, self.stride, self.offset).clone()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise PickleReadError(f"a tensor of shape {list(self.size)}: {reason}") from None


class ModuleObject:
    """What is left of a pickled module: its attributes, and no behaviour."""

    class_name = "ModuleDict"


def read_container(path: Path) -> dict[str, Any]:
    """Return the dict of an official `.pkl` or `.pt` file, with ModuleObjects and StoredTensors.

    Raises:
        PickleReadError: The file is damaged, truncated or no container, or its pickle asks for a
            global that is not allowed.
    """
    content = _read(path)
    if not isinstance(content, dict) or not isinstance(content.get("ema"), ModuleObject):
        raise PickleReadError(
            f"{path} is no official RDM or EDM checkpoint: it has no network 'ema'"
        )
    return content


def read_module(path: Path) -> ModuleObject:
    """Return the module of a `.pkl` that holds nothing else, e.g. NVIDIA's Inception detector.

    Raises:
        PickleReadError: The file is damaged or truncated, holds something else, or its pickle asks
            for a global that is not allowed.
    """
    content = _read(path)
    if not isinstance(content, ModuleObject):
        raise PickleReadError(f"{path} holds a {type(content).__name__}, expected a network")
    return content


def _read(path: Path) -> Any:
    try:
        with open_file(path) as file:
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            return _read_zip(path) if is_zip else read_pickle(file, _ALLOWED)
    except PickleReadError as error:
        raise PickleReadError(f"{path}: {error}") from None
    except OSError as error:
        raise PickleReadError(f"{path} cannot be read: {error.strerror}") from None


def module_tensors(module: ModuleObject, prefix: str = "") -> Iterator[tuple[str, StoredTensor]]:
    """Yield the parameters and buffers of a module and its children under state_dict names."""
    attributes = vars(module)
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _entries(attributes, kind):
            if isinstance(tensor, StoredTensor):
                yield f"{prefix}{name}", tensor
    for name, child in _entries(attributes, "_modules"):
        if isinstance(child, ModuleObject):
            yield from module_tensors(child, f"{prefix}{name}.")


def _entries(attributes: dict[str, Any], kind: str) -> Iterator[tuple[Any, Any]]:
    """Yield the entries of a module's dict. Raises PickleReadError if it is something else."""
    entries = attributes.get(kind, {})
    if not isinstance(entries, dict):
        raise PickleReadError(f"a module's {kind} is a {type(entries).__name__}, not a dict")
    yield from entries.items()


def _read_zip(path: Path) -> Any:
    """Read torch's zip format; storages are members `<prefix>/data/<key>`, little endian."""
    try:
        check_uncompressed(path)
        with zipfile.ZipFile(path) as archive:
            indices = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(indices) != 1:
                raise ArchiveError(f"it has {len(indices)} members data.pkl, expected 1")
            index = indices[0]
            pickled = read_member(archive, index)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise PickleReadError(f"the archive is damaged or truncated: {error}") from None
    prefix = index.removesuffix("data.pkl") + "data/"

    def storage(pid: Any) -> Storage:
        _, dtype, key, _, count = pid
        return _checked(dtype, count, lambda: _read_member(path, f"{prefix}{key}"))

    return read_pickle(pickled, _ALLOWED, storage)


def _read_member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return read_member(archive, name)
    except (zipfile.BadZipFile, ArchiveError, EOFError) as error:
        raise PickleReadError(f"{path}: {error}") from None


def _checked(dtype: Any, count: Any, read: Callable[[], bytes]) -> Storage:
    """Return a storage of a known dtype and a possible length."""
    if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or count < 0:
        raise PickleReadError("a storage's dtype or length is damaged")
    return Storage(dtype, count, read)


def _load_from_bytes(raw: bytes) -> Storage:
    """Stand in for torch.storage._load_from_bytes: one storage in torch's old stream format."""
    count_copy(LEAST_STORAGE + len(raw))
    stream = io.BytesIO(raw)
    if read_pickle(stream, {}) != LEGACY_MAGIC or read_pickle(stream, {}) != 1001:
        raise PickleReadError("a storage is not in torch's old stream format")
    read_pickle(stream, {})  # sizes of the writer's C types

    def storage(pid: Any) -> tuple[torch.dtype, int]:
        _, dtype, _, _, count, _ = pid
        return dtype, count

    content = read_pickle(stream, _STORAGE_GLOBALS, storage)
    if not isinstance(content, tuple) or len(content) != 2:
        raise PickleReadError("a storage is not in torch's old stream format")
    dtype, count = content
    read_pickle(stream, {})  # keys: one storage
    start = stream.tell() + 8  # after the count, which the id has already announced
    return _checked(dtype, count, lambda: raw[start:])


def _module(meta: dict[str, Any]) -> ModuleObject:
    """Stand in for the official constructor of pickled objects; leaves module_src alone."""
    module = ModuleObject()
    vars(module).update(meta["state"])
    module.class_name = meta["class_name"]
    return module


def _tensor(storage: Storage, offset: int, size: Any, stride: Any, *_: Any) -> StoredTensor:
    tensor = StoredTensor(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))
    edges = (tensor.offset, *tensor.size, *tensor.stride)
    possible = min(edges) >= 0 and max(edges) < MAX_EDGE and len(edges) <= 20
    if not isinstance(storage, Storage) or not possible:
        raise PickleReadError(f"a tensor of shape {list(tensor.size)[:8]} is damaged")
    return tensor


def _parameter(tensor: StoredTensor, *_: Any) -> StoredTensor:
    return tensor


_STORAGE_GLOBALS: dict[str, Any] = {
    f"torch.{name}Storage": dtype for name, dtype in STORAGE_DTYPES.items()
}
_ALLOWED: dict[str, Any] = {
    **NUMPY_GLOBALS,
    **_STORAGE_GLOBALS,
    "torch_utils.persistence._reconstruct_persistent_obj": _module,
    **{
        f"torch.nn.modules.container.{name}": ModuleObject
        for name in ("ModuleDict", "ModuleList", "Sequential")
    },
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _load_from_bytes,
    "dnnlib.util.EasyDict": dict,
}
