"""Members of zips and tars: all of them, also behind a first archive's end, and behind links."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast

from data_pipelines.images import BadImage
from data_pipelines.sources.base import (
    LINKED_AGAIN,
    MAX_ITEM_BYTES,
    Entry,
    Skip,
    SourceError,
    reading,
)
from data_pipelines.sources.file_parts import Window
from data_pipelines.sources.lister.pictures import File, Found
from models.safe_files.archives import ArchiveError, read_member
from models.safe_files.regular import check_file, open_file

Member = TypeVar("Member")
MOST_LINKS = 16
CHUNK = 1 << 20
MODULUS = 1 << 16
"""What some tools count the members of larger zips by."""
ZIP_END, ZIP64_END, ZIP64_ENDS_BEFORE = b"PK\5\6", b"PK\6\6", 76
"""What the end of a zip begins with; that of zip64, which stands so many bytes before it."""
LONGEST_END = MODULUS + 22
"""Bytes of the end of a zip, with the longest comment."""
GZIP_TRAILER = 8
"""Bytes of checksum and size behind the data; they may be zeros themselves."""
TAR_ERRORS = (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
BAD_MEMBER = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)
"""What zipfile raises on damage; the last two if a member is encrypted, or of unknown method."""


class TarMembers(NamedTuple):
    """Regular files of a tar, those behind links included, and what could not be resolved."""

    members: list[tarfile.TarInfo]
    skips: list[Skip]


def tar_found(path: Path) -> Found:
    """Return the files of a tar archive, plain or compressed. Raises SourceError as `tar_files`."""
    return as_found(_read_tar(path))


def as_found(tar: TarMembers, prefix: str = "", start: int = 0) -> Found:
    """Return the files of a tar that starts at a place of a file, with a prefix to their names."""
    shared = {member.offset_data for member in tar.members if not member.isreg()}
    files = []
    for member in tar.members:
        place = start + member.offset_data
        content = (place,) if member.offset_data in shared else None
        name = prefix + member.name.removeprefix("./")
        files.append(File(name, member.size, place, content, member.issym()))
    return Found(files, [skip._replace(name=prefix + skip.name) for skip in tar.skips])


def tar_files(path: Path) -> list[tarfile.TarInfo]:
    """Return a tar archive's regular files, in order.

    Raises:
        SourceError: It is not a tar archive, or is cut short (tarfile alone would not notice).
    """
    return _read_tar(path).members


def _read_tar(path: Path) -> TarMembers:
    try:
        with open_maybe_compressed(path) as file:
            return tar_members(file)
    except TAR_ERRORS as error:
        raise SourceError(f"{path} cannot be read as a tar archive: {plain(error)}") from None


def tar_members(file: IO[bytes]) -> TarMembers:
    """Return the files of a tar in an open file, and of those that were appended to it (`cat`).

    Members that are links get place and size of the file that they lead to.

    Raises:
        tarfile.TarError: It is not a tar, or lacks the end mark, which tarfile does not check.
    """
    found: list[tarfile.TarInfo] = []
    skips = []
    start: int | None = 0
    while start is not None:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            inside = list(archive)
            end = archive.offset
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            if not start or inside:
                raise tarfile.ReadError("it is cut short (no end mark)")
            skips.append(Skip(f"(byte {start})", "no tar archive: behind the end of the last one"))
            break
        found += inside
        start = _next_block(file, end)
    members, broken = _resolve_tar_links(found)
    return TarMembers(members, [*skips, *broken])


def _next_block(file: IO[bytes], start: int) -> int | None:
    """Return where the next block that is not zero starts, None if there is none."""
    file.seek(start)
    while chunk := file.read(CHUNK):
        if chunk != bytes(len(chunk)):  # which is quicker than lstrip
            place = start + len(chunk) - len(chunk.lstrip(b"\0"))
            return place - place % tarfile.BLOCKSIZE
        start += len(chunk)
    return None


def _resolve_tar_links(found: list[tarfile.TarInfo]) -> TarMembers:
    """Return regular files and links to them, which get their place and size; the rest as skips."""
    by_name: dict[str, tarfile.TarInfo] = {_plain_path(member.name): member for member in found}
    members, skips = [], []
    before: dict[str, tarfile.TarInfo] = {}
    for member in found:
        if member.issparse():
            skips.append(Skip(member.name, "unreadable: stored as a sparse file"))
        elif member.isreg():
            members.append(member)
        elif member.islnk() or member.issym():
            names = ChainMap(before, by_name) if member.islnk() else by_name
            target = _follow(member, names, _tar_link)
            if target is None or not target.isreg() or target.issparse():
                skips.append(Skip(member.name, _why_broken(_tar_link(member), by_name)))
            else:
                member.size, member.offset_data = target.size, target.offset_data
                members.append(member)
        elif not member.isdir():
            skips.append(Skip(member.name, "not a regular file"))
        before[_plain_path(member.name)] = member
    return TarMembers(members, skips)


def _tar_link(member: tarfile.TarInfo) -> str | None:
    """Return the path in the archive that a member leads to, None if it is no link."""
    if member.islnk():
        return _plain_path(member.linkname)
    return _beside(member.name, member.linkname) if member.issym() else None


def _follow(
    member: Member, by_name: Mapping[str, Member], link_of: Callable[[Member], str | None]
) -> Member | None:
    """Return the member that a link leads to in the end, None if it leads nowhere."""
    target: Member | None = member
    for _ in range(MOST_LINKS):
        if target is None or (name := link_of(target)) is None:
            return target
        target = by_name.get(name)
    return None


def _why_broken(target: str | None, by_name: Mapping[str, object]) -> str:
    if any(name.startswith(f"{target}/") for name in by_name):
        return f"{LINKED_AGAIN}: the same directory as {target}"
    return f"unreadable: a link to {target}, which the archive does not hold"


def _beside(name: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def _plain_path(name: str) -> str:
    return posixpath.normpath(name)


def open_maybe_compressed(path: Path) -> IO[bytes]:
    """Open a file that may be compressed, by its first bytes, as a seekable stream."""
    with open_file(path) as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return _open_gzip(path)
    if start.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(path))
    if start.startswith(b"\xfd7zXZ\0"):
        return cast(IO[bytes], lzma.open(path))
    return open_file(path)


def _open_gzip(path: Path) -> IO[bytes]:
    """Open a gzip file without the zeros at its end, which the library reads byte by byte.

    Downloads that were given their space in advance, and then cut short, end in gigabytes of them.
    """
    file = open_file(path)
    stream = gzip.GzipFile(fileobj=io.BufferedReader(Window(file, 0, _end_of_data(file))))
    stream.myfileobj = cast(Any, file)  # which closing the stream closes
    return cast(IO[bytes], stream)


def _end_of_data(file: IO[bytes]) -> int:
    """Return a gzip file's size without zeros at its end."""
    size = end = file.seek(0, io.SEEK_END)
    while end:
        start = max(end - CHUNK, 0)
        file.seek(start)
        data = file.read(end - start)
        end = start
        if data != bytes(len(data)):  # which is quicker than rstrip
            end += len(data.rstrip(b"\0"))
            break
    return min(end + GZIP_TRAILER, size)


def read_at(file: IO[bytes], entry: Entry) -> bytes:
    """Return an entry's bytes at its offset. Raises BadImage if the file ends before."""
    try:
        file.seek(entry.locator)
        content = file.read(entry.size)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise BadImage(f"unreadable: {error}") from None
    except OSError as error:
        if error.errno is not None:  # the disk's, not the archive's
            raise
        raise BadImage(f"unreadable: {error}") from None
    if len(content) != entry.size:
        raise BadImage("unreadable: the archive ends before it")
    return content


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip archive. Raises OSError if it cannot be read, or is none."""
    with open_file(path) as file:
        return zipfile.is_zipfile(file)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive. Raises SourceError (one line) if it is not one, or cannot be read."""
    with reading(path, "a zip archive"):
        check_file(path)
        archive = zipfile.ZipFile(path)
    with archive:
        listed, recorded = len(archive.infolist()), _entries_recorded(path)
        if recorded is not None and (listed - recorded) % MODULUS:
            raise SourceError(
                f"{path} is damaged: its table lists {listed} members, but ends with a count of"
                f" {recorded}; download or copy it again"
            )
        yield archive


def _entries_recorded(path: Path) -> int | None:
    """Return the number of members that the end of a zip records, None if it records none.

    `zipfile` reads its table (PKWARE's APPNOTE, 4.3.14 to 4.3.16) as far as it makes sense.
    """
    with open_file(path) as file:
        start = max(file.seek(0, os.SEEK_END) - LONGEST_END - ZIP64_ENDS_BEFORE, 0)
        file.seek(start)
        end = file.read()
    at = end.rfind(ZIP_END)
    if at < 0 or at + 12 > len(end):
        return None
    (count,) = struct.unpack_from("<H", end, at + 10)
    if count < MODULUS - 1:
        return int(count)
    wide = at - ZIP64_ENDS_BEFORE
    if wide < 0 or end[wide : wide + 4] != ZIP64_END:
        return None
    return int(struct.unpack_from("<Q", end, wide + 32)[0])


def zip_found(archive: zipfile.ZipFile) -> Found:
    r"""Return the files of a zip; their locator is their place in its table.

    Paths that were written with "\" (by tools of Windows) are read as paths with "/".
    """
    infos = [info for info in archive.infolist() if not info.is_dir()]
    numbers = {id(info): number for number, info in enumerate(archive.infolist())}
    by_name = {_plain_path(zip_path(info)): info for info in infos}
    targets = {id(i): _follow(i, by_name, lambda m: _zip_link(archive, m)) for i in infos}
    shared = {id(t) for i, t in zip(infos, targets.values(), strict=True) if t is not i}
    files, skips = [], []
    for info in infos:
        target, name = targets[id(info)], zip_path(info)
        if target is None:
            skips.append(Skip(name, _why_broken(_zip_link(archive, info), by_name)))
            continue
        number = numbers[id(target)]
        content = (number,) if id(target) in shared else None
        files.append(File(name, target.file_size, number, content, target is not info))
    return Found(files, skips)


def zip_path(info: zipfile.ZipInfo) -> str:
    r"""Return the path of a member, with "/" where it has "\"."""
    return info.filename.replace("\\", "/")


def _zip_link(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str | None:
    """Return the path in the archive that a member leads to, None if it is no symbolic link."""
    if not stat.S_ISLNK(info.external_attr >> 16) or info.file_size > CHUNK:
        return None
    try:
        return _beside(zip_path(info), archive.read(info).decode("utf-8", "surrogateescape"))
    except BAD_MEMBER:
        return None


def read_zip_member(archive: zipfile.ZipFile, number: int, count: int | None = None) -> bytes:
    """Return a member's bytes, or the first `count`.

    Raises:
        BadImage: It is damaged, encrypted, or expands to more than an image can be.
    """
    try:
        info = archive.infolist()[number]
        if count is None:
            return read_member(archive, info, MAX_ITEM_BYTES)
        with archive.open(info) as member:
            return member.read(count)
    except (ArchiveError, *BAD_MEMBER) as error:
        raise BadImage(f"unreadable: {error}") from None
    except (OSError, ValueError) as error:  # its place is before the start of the file
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise BadImage("unreadable: the archive's table is damaged") from None


def plain(error: Exception) -> str:
    """Return what an error says, without the name of a file that the message has already."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
