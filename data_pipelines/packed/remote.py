"""Packed sets on web servers and object stores, read through a local cache of complete files.

A file is downloaded once per machine, whatever the number of ranks, checked against the manifest,
and kept until the cache, or its disk, is full.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import math
import os
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar, cast

from data_pipelines.packed.manifest import (
    INDEX,
    INDEX_ROW,
    MANIFEST,
    SHARD_NAME,
    DatasetError,
    Manifest,
    Shard,
    check_shard_sizes,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from data_pipelines.remote_files import (
    OUTAGE_SECONDS,
    STALL_SECONDS,
    Denied,
    Outage,
    RemoteStream,
    Unreachable,
)
from models.safe_files.atomic import atomic_file
from models.safe_files.documents import MAX_BYTES
from models.safe_files.locks import POLL_SECONDS, FileLock, try_lock
from models.safe_files.transient import file_sha256, is_transient

logger = logging.getLogger(__name__)
T = TypeVar("T")

PIPE = "pipe:"
BLOCK = 1 << 20
HEADER_BYTES = 4096
"""More than the header of an index has."""
DAMAGED_TRANSFERS = 5
"""A file that arrives damaged so often is damaged where it is."""
FRESH_SECONDS = 60.0
"""A manifest that another process downloaded within this time is not downloaded again."""
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})

MARK = ".relaywave-cache"
"""File in each directory that the cache has made."""


@dataclass(frozen=True)
class FileCache:
    """A directory of downloads.

    Attributes:
        path: The directory; created if missing, shared by all processes of a machine.
        max_bytes: Size above which the least recently used files are removed.
        outage_seconds: How long to try to read what does not answer.
    """

    path: Path
    max_bytes: int
    outage_seconds: float = OUTAGE_SECONDS

    def directory_of(self, url: str) -> Path:
        """Return the directory of a set's files, created and marked as the cache's own."""
        directory = self.path / name_of(url)
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / MARK).exists():
            with atomic_file(directory / MARK) as file:
                file.write(f"downloads of {url}; relaywave removes shards from here\n".encode())
        return directory

    def make_room(self, newest: Path) -> None:
        """Remove the least recently used shards until the rest fits; `newest` stays.

        Only shards in directories that the cache has marked are counted and removed: whatever else
        is below its path belongs to somebody else.
        """
        files = self._by_age()
        excess = sum(size for _, size in files) - self.max_bytes
        self._remove([pair for pair in files if pair[0] != newest], excess)

    def free(self, num_bytes: int) -> bool:
        """Remove the least recently used shards of so many bytes; False if there is none."""
        return self._remove(self._by_age(), num_bytes)

    def _by_age(self) -> list[tuple[Path, int]]:
        """Return the cached shards and their sizes, the least recently used first."""
        found = []
        for file in self._shards():
            with suppress(FileNotFoundError):  # another process evicts files, too
                status = file.stat()
                found.append((status.st_mtime, file, status.st_size))
        return [(file, size) for _, file, size in sorted(found)]

    def _remove(self, files: list[tuple[Path, int]], excess: int) -> bool:
        """Remove files in their order until so many bytes are gone; False if none was removed."""
        removed = False
        for file, size in files:
            if excess > 0:
                excess -= size
                file.unlink(missing_ok=True)  # readers that have it open keep its content
                self._log_eviction(file)
                removed = True
        return removed

    def _shards(self) -> Iterator[Path]:
        for mark in self.path.glob(f"*/{MARK}"):
            for file in mark.parent.glob("shards/*.tar"):
                name = file.relative_to(mark.parent).as_posix()
                if SHARD_NAME.fullmatch(name) and not file.is_symlink():
                    yield file

    def _log_eviction(self, file: Path) -> None:
        """Log what was removed: the first time as a warning, for the cache may be too small."""
        level = logging.INFO if self.path in _FULL else logging.WARNING
        _FULL.add(self.path)
        limit = f"{self.max_bytes / 1e9:g} GB"
        logger.log(
            level,
            "the cache %s is full (data.cache_gb: %s, or its disk): removed the least recently used"
            " shard, %s",
            self.path,
            limit,
            file,
        )


def name_of(url: str) -> str:
    """Return the name of a set's directory in a cache."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


_FULL: set[Path] = set()
"""Caches that this process has had to remove shards from."""


class RemoteSet:
    """A packed set at a URL.

    Args:
        url: The set's address: `https://host/set`, `s3://bucket/set`, `gs://bucket/set`,
            `az://container/set`, `hf://datasets/user/name/set`, or `pipe:COMMAND` with `{}` for the
            file's name, e.g. `pipe:ssh host cat set/{}`.
        cache: Local cache of the files.

    Raises:
        Unreachable: The manifest or the index cannot be downloaded, and the cache is not complete.
    """

    def __init__(self, url: str, cache: FileCache) -> None:
        self.url = url
        self._cache = cache
        self.path = cache.path / name_of(url)
        with _alone_on_this_machine(f"relaywave-{os.getuid()}-{name_of(url)}.lock"):
            self.manifest = self._fresh_manifest() or self._read_manifest()
            cache.directory_of(url)
            if not self._is_there(INDEX, self.manifest.index_sha256):
                num_bytes = INDEX_ROW.itemsize * self.manifest.num_images + HEADER_BYTES
                self._download(INDEX, self.manifest.index_sha256, max_bytes=num_bytes)

    def shard(self, number: int) -> Path:
        """Return the local path of a shard, downloaded if it is not in the cache.

        Raises:
            Unreachable: It cannot be downloaded, or is not the one in the manifest.
            OSError: The disk of the cache is full, and nothing of the cache can be removed.
        """
        shard = self.manifest.shards[number]
        path = self.path / shard.name
        with _locked(path):
            if path.exists() and path.stat().st_size == shard.num_bytes:
                os.utime(path)
            else:
                self._download_shard(shard, path)
        return path

    def renew(self, number: int) -> None:
        """Download a shard again if what the cache holds is not what the manifest says."""
        shard = self.manifest.shards[number]
        path = self.path / shard.name
        with _locked(path):
            if not self._is_there(shard.name, shard.sha256):
                logger.warning("%s is damaged in the cache, and downloaded again", path)
                path.unlink(missing_ok=True)
                self._download_shard(shard, path)

    def _download_shard(self, shard: Shard, path: Path) -> None:
        """Download a shard; on a full disk others make room."""
        size = shard.num_bytes
        while True:
            try:
                self._download(shard.name, shard.sha256, max_bytes=size, min_bytes=size)
                break
            except OSError as error:
                if error.errno not in FULL_DISK or not self._cache.free(size):
                    raise
        self._cache.make_room(path)

    def _is_there(self, name: str, sha256: str) -> bool:
        path = self.path / name
        return path.is_file() and file_sha256(path) == sha256

    def _cached_manifest(self) -> Manifest | None:
        with suppress(DatasetError, OSError):
            return read_manifest(self.path)
        return None

    def _fresh_manifest(self) -> Manifest | None:
        """Return the manifest that another process has just downloaded, if one has."""
        with suppress(FileNotFoundError):
            age = time.time() - (self.path / MANIFEST).stat().st_mtime
            return self._cached_manifest() if 0 <= age < FRESH_SECONDS else None
        return None

    def _read_manifest(self) -> Manifest:
        """Download the manifest; without a connection, a complete cache does without it.

        Raises:
            DatasetError: It is no manifest, and not for a damaged transfer: the bytes came twice.
        """
        cached = self._complete_cache()
        try:
            manifest = self._download_manifest(0.0 if cached else self._cache.outage_seconds)
        except Denied:
            raise
        except Unreachable as error:
            if cached is None:
                raise
            logger.warning("%s; the cache %s is complete, and is used", error, self.path)
            return cached
        if manifest.only_beton:
            raise DatasetError(
                f"{self.url} is a beton alone, without shards; copy the set, and set"
                " data.backend=ffcv"
            )
        write_manifest(self._cache.directory_of(self.url), manifest)
        return manifest

    def _complete_cache(self) -> Manifest | None:
        """Return the manifest of the cached set if all of its files are there, else None."""
        manifest = self._cached_manifest()
        if manifest is None or not self._is_there(INDEX, manifest.index_sha256):
            return None
        with suppress(DatasetError):
            check_shard_sizes(self.path, manifest)
            return manifest
        return None

    def _download_manifest(self, patience: float) -> Manifest:
        """Return the manifest, which is checked before anything is written."""
        rejected = b""

        def attempt() -> Manifest:
            nonlocal rejected
            stream = io.BytesIO()
            self._copy(MANIFEST, stream, MAX_BYTES, patience)
            content = stream.getvalue()
            try:
                return parse_manifest(content, f"{self.url}/{MANIFEST}")
            except DatasetError as error:
                if content == rejected:
                    raise
                rejected = content
                raise _Rejected(str(error)) from None

        try:
            return self._retried(MANIFEST, attempt, patience)
        except _Rejected as error:
            raise DatasetError(str(error)) from None

    def _download(self, name: str, sha256: str, *, max_bytes: int, min_bytes: int = 0) -> None:
        """Download a file into the cache, with retries; it appears there only when complete."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        patience = self._cache.outage_seconds

        def attempt() -> None:
            with atomic_file(target) as file:
                digest = self._copy(name, file, max_bytes, patience)
                if file.tell() < min_bytes:
                    raise _Incomplete(
                        f"received {file.tell()} bytes, the manifest says {min_bytes}"
                    )
                if digest != sha256:
                    raise _Incomplete("its sha256 is not the one in the manifest")

        self._retried(name, attempt, patience)

    def _copy(self, name: str, file: IO[bytes], max_bytes: int, patience: float) -> str:
        """Copy a file of the set and return its SHA-256. Raises _Incomplete if it is too large."""
        digest = hashlib.sha256()
        with self._open(name, patience) as stream:
            while block := stream.read(BLOCK):
                file.write(block)
                digest.update(block)
                if file.tell() > max_bytes:
                    raise _Incomplete(f"it has more than the {max_bytes} bytes that it may have")
        return digest.hexdigest()

    def _open(self, name: str, patience: float) -> AbstractContextManager[IO[bytes]]:
        """Open a file of the set for reading, start to end."""
        if self.url.startswith(PIPE):
            command = shlex.split(self.url.removeprefix(PIPE))
            return _command_output([part.replace("{}", name) for part in command], self.url)
        address = f"{self.url.rstrip('/')}/{name}"
        stream = RemoteStream(address, patience, f"{name} of {self.url}")
        return cast(AbstractContextManager[IO[bytes]], stream)

    def _retried(self, name: str, attempt: Callable[[], T], patience: float) -> T:
        """Return what an attempt returns; try again after commands that fail and damaged transfers.

        Streams resume by themselves, within the outage budget, so that what arrives damaged from
        one is.

        Raises:
            Unreachable: The outage budget is spent, or the file arrived damaged too often.
            _Rejected: The last attempt delivered a file that is not what it should be.
            OSError: The cache cannot be written.
        """
        what = f"{name} of {self.url}"
        outage, damaged = Outage(what, patience), 0
        while True:
            try:
                return attempt()
            except _Incomplete as error:
                why, damaged = str(error), damaged + 1
                if damaged == DAMAGED_TRANSFERS:
                    if isinstance(error, _Rejected):
                        raise
                    raise Unreachable(
                        f"{what} cannot be read: it arrived damaged {damaged} times: {why};"
                        " check the set where it is"
                    ) from None
            except _Failed as error:
                why = str(error)
            except OSError as error:
                if not is_transient(error):
                    raise
                why = f"{error.strerror} ({error.filename or self.path})"
            outage.wait(why)


class _Failed(Exception):  # noqa: N818 (always retried)
    """A command that failed."""


class _Incomplete(Exception):  # noqa: N818 (always retried)
    """A transfer that ended early, or delivered other bytes."""


class _Rejected(_Incomplete):
    """A complete file that is not what it should be, unless the transfer was damaged."""


@contextmanager
def _command_output(command: list[str], url: str) -> Iterator[IO[bytes]]:
    """Open the output of a command for reading. Raises Denied if it is not installed."""
    if shutil.which(command[0]) is None:
        raise Denied(
            f"{url} is read by the command `{command[0]}`, which is not installed here;"
            " install it, or use another command through pipe:COMMAND"
        )
    with _Pipe(command) as pipe:
        yield cast(IO[bytes], pipe)
        pipe.check_end()


class _Pipe:
    """The output of a command; fails after STALL_SECONDS without output."""

    def __init__(self, command: list[str]) -> None:
        self._command = shlex.join(command)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._stderr.close()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end. Raises _Failed if none come in time."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        if not select.select([descriptor], [], [], STALL_SECONDS)[0]:
            raise _Failed(f"`{self._command}` sent nothing for {STALL_SECONDS:g} s")
        return os.read(descriptor, size)

    def check_end(self) -> None:
        """Raise _Failed if the command did."""
        code = self._process.wait(STALL_SECONDS)
        if code:
            self._stderr.seek(0)
            message = self._stderr.read().decode(errors="replace").strip()
            last = message.splitlines()[-1] if message else "no message"
            raise _Failed(f"`{self._command}` exited with code {code}: {last}")


@contextmanager
def _alone_on_this_machine(name: str) -> Iterator[None]:
    """Let one process or thread at a time do something, with a lock that does not stay."""
    lock = FileLock(Path(tempfile.gettempdir(), name))
    lock.take(math.inf)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process or thread at a time download a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        while not try_lock(lock):
            time.sleep(POLL_SECONDS)
        yield
