"""Zip archives of others: sizes are checked before anything is decompressed.

Deflate makes 1 MB of a thousand: an archive of 2.5 MB can fill a machine's memory. Tensors and
images hardly shrink, so that a large member which expands far more is no such thing.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from pathlib import Path

from models.safe_files.regular import check_file

FREE_BYTES = 64 << 20
"""Size up to which a member may be compressed as it likes."""

MAX_RATIO = 100
"""Largest ratio of a larger member's size to its compressed size."""


class ArchiveError(ValueError):
    """An archive that is damaged, encrypted, or expands to more than it can be."""


def check_member(info: zipfile.ZipInfo, max_bytes: int | None = None) -> None:
    """Check a member's sizes before it is read.

    Raises:
        ArchiveError: It is larger than `max_bytes`, or expands to implausibly much.
    """
    if max_bytes is not None and info.file_size > max_bytes:
        raise ArchiveError(
            f"member {info.filename!a} has {info.file_size} bytes, more than the {max_bytes}"
            " that it may have"
        )
    if info.file_size > max(FREE_BYTES, MAX_RATIO * info.compress_size):
        raise ArchiveError(
            f"member {info.filename!a} expands from {info.compress_size} to {info.file_size} bytes,"
            " which no images or weights do"
        )


def check_total(archive: zipfile.ZipFile, size: int) -> None:
    """Check what all members of an archive of `size` bytes expand to: they may overlap.

    Raises:
        ArchiveError: It is implausibly much.
    """
    total = sum(info.file_size for info in archive.infolist())
    if total > max(FREE_BYTES, MAX_RATIO * size):
        raise ArchiveError(f"its members have {total} bytes, but the file has {size}")


def read_member(
    archive: zipfile.ZipFile, member: str | zipfile.ZipInfo, max_bytes: int | None = None
) -> bytes:
    """Return the bytes of a member, given by name or entry, after checking its sizes.

    Raises:
        ArchiveError: It is missing, damaged, encrypted, or too large.
    """
    try:
        info = archive.getinfo(member) if isinstance(member, str) else member
        check_member(info, max_bytes)
        return archive.read(info)
    except KeyError:
        raise ArchiveError(f"there is no member {member!a}") from None
    # zipfile: RuntimeError if encrypted, NotImplementedError if compressed in an unknown way.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ArchiveError(f"member {info.filename!a} is damaged or unreadable: {error}") from None


def check_torch_file(path: Path) -> None:
    """Check a file before torch.load reads it: within a zip archive, nothing may be compressed.

    Raises:
        ArchiveError: It is an archive that is damaged, or expands to more than its size.
        OSError: It cannot be read, or is no regular file.
    """
    check_file(path)
    try:
        if zipfile.is_zipfile(path):
            check_uncompressed(path)
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"the archive is damaged or truncated: {error}") from None


def check_uncompressed(path: Path) -> None:
    """Check that an archive's members are stored as they are, as those of PyTorch's files are.

    Raises:
        ArchiveError: A member is compressed, is there twice (readers differ in which they take), or
            leads out of the archive by its name; or they overlap: together they are larger than
            the file.
        OSError: The file cannot be read.
        zipfile.BadZipFile: It is no zip archive.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for info in members:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ArchiveError(f"member {info.filename!a} is compressed, which PyTorch never does")
        if info.filename.startswith("/") or ".." in info.filename.split("/"):
            raise ArchiveError(f"member {info.filename!a} is outside of the archive's directory")
    total, size = sum(info.file_size for info in members), path.stat().st_size
    if total > size:
        raise ArchiveError(f"its members have {total} bytes, but the file has {size}")
    for name, times in Counter(info.filename for info in members).most_common(1):
        if times > 1:
            raise ArchiveError(f"member {name!a} is there {times} times")
