"""CIFAR-10 as downloaded: `cifar-10-python.tar.gz` or `cifar-10-binary.tar.gz`, or extracted."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_pipelines.images import Pixels
from data_pipelines.sources.base import Entry, Listing, ReadItem, SourceError, reading
from data_pipelines.sources.lister.archives import open_maybe_compressed, tar_files
from data_pipelines.sources.lister.directory import walk
from data_pipelines.sources.lister.pictures import is_hidden
from models.safe_files.regular import read_file

PIXELS = 3 * 32 * 32
MAX_FILE_BYTES = 100_000_000
"""More than any file of CIFAR-10 has (31 MB)."""
SPLITS = {
    "train": re.compile(r"data_batch_[1-5](\.bin)?"),
    "test": re.compile(r"test_batch(\.bin)?"),
}
META = ("batches.meta", "batches.meta.txt")


@dataclass(frozen=True)
class Cifar10Source:
    """The training batches (50,000 images) or the test batch (10,000), in file order."""

    path: Path
    split: str = "train"
    kind: str = "cifar10"
    published: bool = True

    def list_items(self) -> Listing:
        """Return all images. Raises SourceError if this is not CIFAR-10."""
        if self.split not in SPLITS:
            raise SourceError(f"split {self.split!r} of CIFAR-10 is unknown: train or test")
        files = self._files()
        batches = {name: data for name, data in files.items() if SPLITS[self.split].fullmatch(name)}
        if not batches:
            raise SourceError(f"{self.path} holds no CIFAR-10 batch of the {self.split} split")
        entries = []
        for number, (name, data) in enumerate(sorted(batches.items())):
            labels = _parse(name, data)[0]
            for row, label in enumerate(labels):
                entries.append(Entry(f"{name}/{row:05d}", label, PIXELS, number * 100_000 + row))
        return Listing(entries, _class_names(files))

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading: the pixels are held in memory (150 MB)."""
        files = self._files()
        chosen = sorted(name for name in files if SPLITS[self.split].fullmatch(name))
        images = [_parse(name, files[name])[1] for name in chosen]
        del files
        yield lambda entry: images[entry.locator // 100_000][entry.locator % 100_000]

    def describe(self) -> dict[str, Any]:
        """Return path and split."""
        return {"path": str(self.path), "split": self.split}

    def _files(self) -> dict[str, bytes]:
        """Return the batches and the class table by file name, from archive or directory."""
        if self.path.is_dir():
            found = sorted(f.name for f in walk(self.path).files if not is_hidden(f.name))
            paths = [self.path / name for name in found]
            ours = [path for path in paths if _is_ours(path.name)]
            return {path.name: read_file(path, MAX_FILE_BYTES) for path in ours}
        members = tar_files(self.path)
        files = {}
        with open_maybe_compressed(self.path) as file:
            for member in members:
                name = PurePosixPath(member.name).name
                if _is_ours(name) and member.size <= MAX_FILE_BYTES:
                    file.seek(member.offset_data)
                    files[name] = file.read(member.size)
        return files


def _is_ours(name: str) -> bool:
    return name in META or any(pattern.fullmatch(name) for pattern in SPLITS.values())


def _parse(name: str, data: bytes) -> tuple[list[int], Pixels]:
    """Return a batch's labels and its pixels, uint8 [N, 32, 32, 3]."""
    if name.endswith(".bin"):
        if len(data) % (PIXELS + 1):
            raise SourceError(
                f"{name} is cut short: {len(data)} bytes, which is no multiple of a record"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, PIXELS + 1)
        labels, pixels = records[:, 0].tolist(), records[:, 1:]
    else:
        batch = _unpickle(name, data)
        with reading(name, "a CIFAR-10 batch"):
            labels, pixels = [*map(int, batch[b"labels"])], np.asarray(batch[b"data"], np.uint8)
    if not labels or max(labels) > 9 or pixels.shape != (len(labels), PIXELS):
        raise SourceError(f"{name} is no CIFAR-10 batch (labels 0..9, rows of {PIXELS} bytes)")
    return labels, pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _class_names(files: dict[str, bytes]) -> tuple[str, ...]:
    name = next((name for name in reversed(META) if name in files), None)
    if name is None:
        return tuple(str(label) for label in range(10))
    with reading(name, "the class table of CIFAR-10"):
        if name == "batches.meta":
            names = [n.decode() for n in _unpickle(name, files[name])[b"label_names"]]
        else:
            names = files[name].decode().split()
    if len(names) != 10:
        raise SourceError(f"{name} names {len(names)} classes, CIFAR-10 has 10")
    return tuple(names)


class _ArraysOnly(pickle.Unpickler):
    """Loads plain containers and numpy arrays; rejects a pickle that names anything else."""

    def find_class(self, module: str, name: str) -> Any:
        modules = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        if module in modules and name in ("ndarray", "dtype", "_reconstruct"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):  # how later Pythons write bytes
            return _encode_latin1
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no image batch needs")


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _unpickle(name: str, data: bytes) -> dict[bytes, Any]:
    with reading(name, "a CIFAR-10 batch"):
        loaded = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    if not isinstance(loaded, dict) or not {b"labels", b"label_names"} & set(loaded):
        raise SourceError(f"{name} is no CIFAR-10 batch (a fine- or coarse-labelled CIFAR-100?)")
    return loaded
