"""Reading packed shards at random: one sample's bytes, label or pixels by its index."""

from __future__ import annotations

import os
import threading
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipelines.images import BadImage, decode_rgb
from data_pipelines.manifest import check_shard_sizes, read_index, read_manifest
from data_pipelines.pipeline import describe


class ShardedImages:
    """A packed set as a sequence of samples in the order of its source; safe to share by threads.

    Args:
        path: Folder of the packed set.
        check_sizes: Compare the shards' sizes with the manifest at once.

    Raises:
        DatasetError: The set is missing, unfinished or damaged (checks manifest, index and sizes;
            the bytes of a sample are checked when they are read).
    """

    def __init__(self, path: Path | str, *, check_sizes: bool = True) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.index = read_index(self.path, self.manifest)
        if check_sizes:
            check_shard_sizes(self.path, self.manifest)
        self.info = describe(self.manifest)
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.num_images

    def read(self, index: int) -> tuple[bytes, int | None]:
        """Return a sample's encoded bytes and its class index (None in unlabelled sets).

        Raises:
            BadImage: The bytes in the shard are not the ones that were packed.
        """
        row = self.index[index]
        length, shard = int(row["length"]), int(row["shard"])
        try:
            encoded = os.pread(self._file(shard), length, int(row["offset"]))
        except OSError as error:
            raise BadImage(f"unreadable: {error}") from None
        if len(encoded) != length or zlib.crc32(encoded) != int(row["crc32"]):
            raise BadImage("damaged in the shard: its checksum does not fit")
        return encoded, self.label(index)

    def label(self, index: int) -> int | None:
        """Return a sample's class index, or None in an unlabelled set."""
        return int(self.index[index]["label"]) if self.manifest.class_names else None

    def decode(self, index: int) -> Tensor:
        """Return a sample's pixels, uint8 RGB [3, H, W]. Raises BadImage as `read` does."""
        encoded, _ = self.read(index)
        return torch.from_numpy(np.ascontiguousarray(decode_rgb(encoded).transpose(2, 0, 1)))

    def locate(self, index: int) -> str:
        """Return where a sample lies, for messages: shard and number."""
        shard = self.manifest.shards[int(self.index[index]["shard"])]
        return f"sample {index} (at byte {int(self.index[index]['offset'])} of {shard.name})"

    def close(self) -> None:
        """Close the shards' files."""
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def _file(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                path = self.path / self.manifest.shards[shard].name
                self._files[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._files[shard]
