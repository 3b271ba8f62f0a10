"""Writing one WebDataset tar shard: plain ustar members at known offsets, the same bytes always."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from typing import IO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
SIGNATURES = {b"\xff\xd8": "jpg", b"RIFF": "webp", b"\x89PNG": "png"}


class WrittenSample(NamedTuple):
    """A sample's index row (without the shard's number) and the digest of its bytes."""

    offset: int
    length: int
    label: int
    crc32: int
    blake2b: str


class ShardWriter:
    """Appends samples to a tar stream, hashing it on the way.

    Args:
        file: Where the bytes go; needs only `write`.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.samples: list[WrittenSample] = []

    def add(self, key: str, encoded: bytes, label: int) -> None:
        """Append one PNG, WebP or JPEG; label -1 is an unlabelled one and gets no `.cls` member."""
        extension = next(name for mark, name in SIGNATURES.items() if encoded.startswith(mark))
        offset = self._member(f"{key}.{extension}", encoded)
        if label >= 0:
            self._member(f"{key}.cls", str(label).encode())
        digest = hashlib.blake2b(encoded, digest_size=16).hexdigest()
        self.samples.append(WrittenSample(offset, len(encoded), label, zlib.crc32(encoded), digest))

    def finish(self) -> str:
        """Write the end-of-archive mark and return the SHA-256 of the whole stream."""
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
