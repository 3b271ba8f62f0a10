"""Reading an LMDB database file without the LMDB library, which can only map a file on disk.

Here the file may be any seekable stream, such as a member of a zip. It is a tree of pages: two meta
pages name the root; branch pages lead to leaf pages, which hold the keys in order; a value is in
its leaf, or after the header of a run of overflow pages (the layout in LMDB's own mdb.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

META = struct.Struct("<16x I I 16x I 84x Q 8x Q")  # magic, version, page size, root, transaction
MAGIC, VERSION = 0xBEEFC0DE, 1
PAGE_SIZES = tuple(1 << bits for bits in range(8, 17))
HEADER = struct.Struct("<10x H H 2x")  # flags, end of the table of the nodes' places
NODE = struct.Struct("<H H H H")  # low and high half of a size or page, flags, length of the key
BRANCH, LEAF = 0x01, 0x02
BIG, NESTED = 0x01, 0x06
NO_PAGE = (1 << 64) - 1
PAGE_NUMBER = struct.Struct("<Q")


class LmdbError(ValueError):
    """Bytes that are not a complete LMDB database of plain keys and values."""


class Record(NamedTuple):
    """A key, and where its value is in the file."""

    key: bytes
    offset: int
    size: int


def records(file: IO[bytes], size: int) -> Iterator[Record]:
    """Yield the records of a database in the order of their keys.

    Args:
        file: The database file (`data.mdb`), seekable.
        size: Its size in bytes.

    Raises:
        LmdbError: It is no database, or is cut short, or has several values per key.
    """
    page_size, root = _newest_meta(file)
    pending = [] if root == NO_PAGE else [root]
    left = size // page_size  # no page is met twice, unless the file is damaged
    while pending:
        number, left = pending.pop(), left - 1
        if left < 0:
            raise LmdbError("its pages form a circle")
        page = _read(file, number * page_size, page_size)
        flags, end = HEADER.unpack_from(page)
        try:
            places = struct.unpack_from(f"<{(end - HEADER.size) // 2}H", page, HEADER.size)
            if flags & BRANCH:
                pending += [_child(page, place) for place in reversed(places)]
            elif flags & LEAF:
                yield from [_record(page, place, number, size) for place in places]
            else:
                raise LmdbError(f"page {number} is neither a branch nor a leaf")
        except struct.error:
            raise LmdbError(f"page {number} is damaged") from None


def _newest_meta(file: IO[bytes]) -> tuple[int, int]:
    """Return page size and root page as of the last transaction that was finished."""
    found: list[tuple[int, int, int]] = []
    for _ in range(2):
        place = found[0][1] if found else 0
        magic, version, page_size, root, number = META.unpack(_read(file, place, META.size))
        if (magic, version) != (MAGIC, VERSION) or page_size not in PAGE_SIZES:
            raise LmdbError("it does not start like an LMDB database")
        found.append((number, page_size, root))
    return max(found)[1:]


def _child(page: bytes, place: int) -> int:
    """Return the page that a node of a branch leads to."""
    low, middle, high, _ = NODE.unpack_from(page, place)
    return int(low | middle << 16 | high << 32)


def _record(page: bytes, place: int, number: int, file_size: int) -> Record:
    low, high, flags, key_length = NODE.unpack_from(page, place)
    size = low | high << 16
    start = place + NODE.size + key_length
    key = page[place + NODE.size : start]
    if flags & NESTED:
        raise LmdbError("it has several values per key, or databases within it")
    offset = number * len(page) + start
    if flags & BIG:
        (run,) = PAGE_NUMBER.unpack_from(page, start)
        offset = run * len(page) + HEADER.size
    if offset + size > file_size:
        raise LmdbError(f"it is cut short: the value of {key[:40]!r} ends after byte {file_size}")
    return Record(key, offset, size)


def _read(file: IO[bytes], place: int, size: int) -> bytes:
    try:
        file.seek(place)
        content = file.read(size)
    except OverflowError:  # a damaged page number
        content = b""
    if len(content) < size:
        raise LmdbError(f"it is cut short: it has no byte {place + size}")
    return content
