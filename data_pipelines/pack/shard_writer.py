"""Writing one WebDataset tar shard, deterministically: plain ustar members at known offsets."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from data_pipelines.sources.base import Skip

BLOCK = tarfile.BLOCKSIZE
SIGNATURES = {b"\xff\xd8": "jpg", b"RIFF": "webp", b"\x89PNG": "png"}


class ShardWriter:
    """Appends samples to a tar stream, and hashes it.

    Args:
        file: The open shard; only `write` is used.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.samples: list[WrittenSample] = []

    def add(self, key: str, encoded: bytes, label: int) -> None:
        """Append one PNG, WebP or JPEG; an unlabelled one (-1) gets no `.cls` member."""
        extension = next(name for mark, name in SIGNATURES.items() if encoded.startswith(mark))
        offset = self._member(f"{key}.{extension}", encoded)
        if label >= 0:
            self._member(f"{key}.cls", str(label).encode())
        digest = hashlib.blake2b(encoded, digest_size=16).hexdigest()
        self.samples.append(WrittenSample(offset, len(encoded), label, zlib.crc32(encoded), digest))

    def finish(self) -> str:
        """Write the end-of-archive mark and return the SHA-256 of the stream."""
        self._write(bytes(2 * BLOCK))
        return self._sha256.hexdigest()

    def _member(self, name: str, content: bytes) -> int:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.num_bytes
        self._write(content + bytes(-len(content) % BLOCK))
        return offset

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._sha256.update(content)
        self.num_bytes += len(content)


class WrittenSample(NamedTuple):
    """A sample's index row (without the shard's number) and the digest of its bytes."""

    offset: int
    length: int
    label: int
    crc32: int
    blake2b: str


@dataclass(frozen=True)
class ShardRecord:
    """What was written of one range of items, as one shard per resolution.

    Attributes:
        num_bytes: Size of the shard, by resolution.
        sha256: Checksum of the shard, by resolution.
        samples: Rows of the shard's samples, by resolution; all have the same items.
        items: Position in the listing of each sample.
        skips: Items that were skipped.
        edges: Shorter side of each sample's image in the source, in pixels; empty if unknown.
        pixels: Digest of each sample's pixels, where its bytes do not identify them; else empty.
    """

    num_bytes: dict[int, int]
    sha256: dict[int, str]
    samples: dict[int, list[WrittenSample]]
    items: list[int]
    skips: list[Skip]
    edges: list[int] = field(default_factory=list)
    pixels: list[str] = field(default_factory=list)

    def is_enlarged(self, row: int, resolution: int) -> bool:
        """Return whether a sample's image has fewer pixels than the resolution."""
        return bool(self.edges) and 0 < self.edges[row] < resolution

    def content(self, row: int) -> str:
        """Return what identifies the pixels of a sample (at the first resolution)."""
        return self.pixels[row] if self.pixels else next(iter(self.samples.values()))[row].blake2b
