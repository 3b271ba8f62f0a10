"""Parts of a file as files of their own: a range of bytes, or a deflated range, read at random."""

from __future__ import annotations

import bisect
import io
import struct
import zipfile
import zlib
from typing import IO, Any, NamedTuple, cast

CHUNK = 1 << 16
MARKS = 4096
MIN_SPACING = 1 << 20
LOCAL_HEADER = struct.Struct("<26x H H")  # lengths of the name and of the extra field that follow


class _Part(io.RawIOBase):
    """A readable, seekable stream of known size; subclasses say how to read at a place."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = origin + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), max(self.size - self._place, 0))
        content = self._read_at(self._place, count) if count else b""
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def _read_at(self, place: int, count: int) -> bytes:
        """Return up to `count` bytes, at least one unless the file ends early."""
        raise AssertionError("subclasses read")


class Window(_Part):
    """A range of a file."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        super().__init__(size)
        self._file, self._start = file, start

    def _read_at(self, place: int, count: int) -> bytes:
        self._file.seek(self._start + place)
        return self._file.read(count)


class _Mark(NamedTuple):
    """A state of the decompressor, after producing `output` bytes from `used` bytes."""

    output: int
    used: int
    state: Any


class Inflated(_Part):
    """A deflated range of a file, read at random.

    States of the decompressor are saved while reading, so that seeking back repeats little work: at
    most 4096 of about 40 KB each.

    Args:
        file: The file.
        start: Where the deflated bytes start.
        size: Number of inflated bytes.
    """

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        super().__init__(size)
        self._file, self._start = file, start
        self._spacing = max(MIN_SPACING, size // MARKS)
        self._marks = [_Mark(0, 0, zlib.decompressobj(-zlib.MAX_WBITS))]
        self._return_to(self._marks[0])

    def _read_at(self, place: int, count: int) -> bytes:
        nearest = self._marks[bisect.bisect_right(self._marks, place, key=lambda m: m.output) - 1]
        if not nearest.output <= self._output <= place:
            self._return_to(nearest)
        while self._output < place:
            self._inflate(min(place - self._output, self._spacing))
        return self._inflate(count)

    def _return_to(self, mark: _Mark) -> None:
        self._output, self._used, self._state = mark.output, mark.used, mark.state.copy()

    def _inflate(self, most: int) -> bytes:
        """Return the next bytes, at least one. Raises EOFError or zlib.error on damage."""
        output = b""
        while not output:
            self._file.seek(self._start + self._used)
            chunk = self._file.read(CHUNK)
            output = self._state.decompress(chunk, most)
            if not output and (self._state.eof or not chunk):
                raise EOFError(f"the deflated data ends after {self._output} of {self.size} bytes")
            self._used += len(chunk) - len(self._state.unconsumed_tail)
        self._output += len(output)
        if self._output >= self._marks[-1].output + self._spacing:
            self._marks.append(_Mark(self._output, self._used, self._state.copy()))
        return output


def zip_member(archive: IO[bytes], info: zipfile.ZipInfo) -> IO[bytes]:
    """Return a member of a zip, stored or deflated, as a stream that can be read at random.

    Args:
        archive: The open zip file.
        info: The member.

    Raises:
        zipfile.BadZipFile: It is encrypted, compressed by another method, or not where the table of
            the archive says.
    """
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{info.filename} is encrypted, or neither stored nor deflated")
    try:
        archive.seek(max(info.header_offset, 0))
        header = archive.read(LOCAL_HEADER.size)
    except (OverflowError, ValueError):  # a damaged offset, by the kind of stream
        header = b""
    if info.header_offset < 0 or len(header) < LOCAL_HEADER.size:
        raise zipfile.BadZipFile(f"{info.filename} is not where the table says; it is damaged")
    lengths = LOCAL_HEADER.unpack(header)
    start = info.header_offset + LOCAL_HEADER.size + sum(lengths)
    Kind = Window if info.compress_type == zipfile.ZIP_STORED else Inflated
    return cast(IO[bytes], io.BufferedReader(Kind(archive, start, info.file_size), CHUNK))
