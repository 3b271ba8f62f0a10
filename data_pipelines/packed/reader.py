"""Reading packed shards at random: one sample's bytes, label or pixels by its index."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from data_pipelines.images import BadImage, Pixels, decode_rgb
from data_pipelines.packed.manifest import check_shard_sizes, read_index, read_manifest
from data_pipelines.packed.remote import FileCache, RemoteSet
from data_pipelines.remote_files import is_remote
from data_pipelines.sample_order import Integers
from models.safe_files.transient import SteadyFile

if TYPE_CHECKING:
    from torch import Tensor

MAX_OPEN = 128
MAX_OPEN_REMOTE = 8
"""A shard that was removed from the cache takes disk space for as long as it is open."""

DEFAULT_CACHE = FileCache(
    Path(os.environ.get("RELAYWAVE_CACHE") or Path.home() / ".cache/relaywave/shards"), 100 * 10**9
)


Stored_co = TypeVar("Stored_co", covariant=True)


class Samples(Protocol[Stored_co]):
    """Samples by index, verified when they are read."""

    path: Path

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Stored_co, int | None]:
        """Return what is stored of a sample, and its label. Raises BadImage if it is damaged."""

    def locate(self, index: int) -> str:
        """Return where a sample is stored, for messages."""

    def close(self) -> None:
        """Close the files."""


class ShardedImages:
    """A packed set as a sequence of samples in the order of its source; thread-safe.

    Args:
        path: Directory of the packed set, or its URL (see data_pipelines/packed/remote.py).
        check_sizes: Compare the sizes of local shards with the manifest when opening the set.
        check_index: Compare the index with the manifest when opening the set.
        cache: Local cache of remote sets.

    Raises:
        DatasetError: The set is missing, unfinished or damaged (checks manifest, index and sizes;
            the bytes of a sample are checked when they are read).
        Unreachable: A remote set cannot be read.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        check_sizes: bool = True,
        check_index: bool = True,
        cache: FileCache = DEFAULT_CACHE,
    ) -> None:
        self._remote = RemoteSet(str(path), cache) if is_remote(str(path)) else None
        self.is_remote = self._remote is not None
        self.path = self._remote.path if self._remote else Path(path)
        self.manifest = self._remote.manifest if self._remote else read_manifest(self.path)
        self.index = read_index(self.path, self.manifest, verify=check_index)
        if check_sizes and not self._remote:
            check_shard_sizes(self.path, self.manifest)
        self.info = self.manifest.info
        self._files: OrderedDict[int, SteadyFile] = OrderedDict()
        self._checked: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.num_images

    def read(self, index: int) -> tuple[bytes, int | None]:
        """Return a sample's stored bytes and its class index (None in unlabelled sets).

        The bytes are an encoded image, or pixels [H, W, 3] if the set is a beton alone.

        Raises:
            BadImage: The bytes in the shard are not the ones that were packed.
            Unreachable: A remote shard cannot be downloaded.
        """
        row = self.index[index]
        encoded = self._stored(row)
        if not _is_intact(encoded, row) and self._renewed(int(row["shard"])):
            encoded = self._stored(row)
        if not _is_intact(encoded, row):
            raise BadImage("damaged in the shard: its checksum does not match")
        return encoded, self.label(index)

    def label(self, index: int) -> int | None:
        """Return a sample's class index, or None in an unlabelled set."""
        return int(self.index[index]["label"]) if self.manifest.class_names else None

    def decode(self, index: int) -> Tensor:
        """Return a sample's pixels, uint8 RGB [3, H, W]. Raises BadImage as `read` does."""
        stored, _ = self.read(index)
        import torch

        return torch.from_numpy(np.ascontiguousarray(self._pixels(stored).transpose(2, 0, 1)))

    def locate(self, index: int) -> str:
        """Return where a sample is stored, for messages: shard and number."""
        shard = self.manifest.shards[int(self.index[index]["shard"])]
        return f"sample {index} (at byte {int(self.index[index]['offset'])} of {shard.name})"

    def shards_of(self, samples: Integers) -> Integers:
        """Return the number of the shard that holds each sample, int64 [N]."""
        return self.index["shard"][samples].astype(np.int64)

    def num_bytes(self, shard: int) -> int:
        """Return the size of a remote shard, 0 for a local one."""
        return self.manifest.shards[shard].num_bytes if self._remote else 0

    def fetch(self, shard: int) -> None:
        """Download a remote shard into the local cache. Raises Unreachable if that fails."""
        if self._remote:
            self._remote.shard(shard)

    def close(self) -> None:
        """Close the shards' files."""
        with self._lock:
            self._files.clear()

    def _stored(self, row: np.void) -> bytes:
        try:
            return self._file(int(row["shard"])).read(int(row["length"]), int(row["offset"]))
        except OSError as error:
            raise BadImage(f"unreadable: {error}") from None

    def _renewed(self, shard: int) -> bool:
        """Have a remote shard intact in the cache, once in this process, and open it anew."""
        if self._remote is None:
            return False
        with self._lock:
            if shard in self._checked:
                return False
            self._checked.add(shard)
        self._remote.renew(shard)
        with self._lock:
            self._files.pop(shard, None)
        return True

    def _pixels(self, stored: bytes) -> Pixels:
        if self.manifest.only_beton:
            edge = self.manifest.resolution
            return np.frombuffer(stored, np.uint8).reshape(edge, edge, 3)
        return decode_rgb(stored)

    def _file(self, shard: int) -> SteadyFile:
        """Return a shard's file; the least recently used ones are closed."""
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
        opened = self._open(shard)  # outside the lock: it may be downloaded
        with self._lock:
            self._files[shard] = opened
            while len(self._files) > (MAX_OPEN_REMOTE if self._remote else MAX_OPEN):
                self._files.popitem(last=False)
        return opened

    def _open(self, shard: int) -> SteadyFile:
        if self._remote is None:
            return SteadyFile(self.path / self.manifest.shards[shard].name)
        while True:
            try:
                return SteadyFile(self._remote.shard(shard))
            except FileNotFoundError:  # another process has just evicted it from the cache
                continue


def _is_intact(encoded: bytes, row: np.void) -> bool:
    """Return whether bytes are those that were packed."""
    return len(encoded) == int(row["length"]) and zlib.crc32(encoded) == int(row["crc32"])
