"""Packed sets on web servers and object stores, read through a local cache of complete files.

A file is downloaded once per machine, whatever the number of ranks, checked against the manifest,
and kept until the cache is full.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    parse_manifest,
    write_manifest,
)
from models.safe_files.atomic import atomic_file
from models.safe_files.documents import MAX_BYTES
from models.safe_files.locks import POLL_SECONDS, try_lock
from models.safe_files.transient import file_sha256

logger = logging.getLogger(__name__)
T = TypeVar("T")

SCHEME = re.compile(r"(https?|s3|gs)://|pipe:")
SECRET = (
    r"[\w-]*(?:passw(?:or)?d|passphrase|token|secret|signature|credential|bearer|api[-_]?key"
    r"|access[-_]?key)"
)
CREDENTIALS = re.compile(
    r"(?:https?|ftps?|s3|gs)://[^/?#\s'\"]*@"  # NAME:PASSWORD@ or TOKEN@ of a URL
    rf"|{SECRET}[\w-]*\s*[=:]\s*[^\s$]"  # of a query, a header, a variable, an option
    rf"|-{SECRET}\s+[^\s$-]"  # an option whose value follows
    r"|\b(?:authorization|cookie)\s*:\s*(?!(?:\w+\s+)?\$)\S"
    r"|\s(?:-u\s*|--(?:proxy-)?user[\s=]+)[^\s:]+:[^\s$]"  # NAME:PASSWORD of curl
    r"|\bsshpass\s+-p\s*[^\s$]",
    re.IGNORECASE,
)
"""Where the path of a set holds a name or a secret; those that the environment has are none."""
DELAYS = (1.0, 2.0, 4.0, 8.0)
TIMEOUT = 60.0
BLOCK = 1 << 20
HEADER_BYTES = 4096
"""More than the header of an index has."""

MARK = ".relaywave-cache"
"""File in each directory that the cache has made."""

COMMANDS = {"s3": ("aws", "s3", "cp", "{}", "-"), "gs": ("gsutil", "-q", "cat", "{}")}


class Unreachable(RuntimeError):  # noqa: N818 (a finding about the other side)
    """A file of a remote set cannot be downloaded, after all retries."""


def is_remote(path: str) -> bool:
    """Tell whether a set's path is a URL: http(s)://, s3://, gs:// or pipe:COMMAND."""
    return SCHEME.match(path) is not None


def check_no_credentials(path: str) -> None:
    """Raise ValueError if a set's path holds a name, password or token, without repeating them.

    Settings are written into runs, records of jobs, caches and logs.
    """
    if is_remote(path) and (match := CREDENTIALS.search(path)):
        raise ValueError(
            f"path={path[: match.start()]}... holds a user's name or password, or a token, which"
            " would be written into the run's files; leave it out, and read the set by a command"
            " that has its own configuration: pipe:curl --fail --silent --netrc URL/{}"
        )


@dataclass(frozen=True)
class FileCache:
    """A directory of downloads.

    Attributes:
        path: The directory; created if missing, shared by all processes of a machine.
        max_bytes: Size above which the least recently used files are removed.
    """

    path: Path
    max_bytes: int

    def directory_of(self, url: str) -> Path:
        """Return the directory of a set's files, created and marked as the cache's own."""
        directory = self.path / hashlib.sha256(url.encode()).hexdigest()[:16]
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
        files = []
        for file in self._shards():
            with suppress(FileNotFoundError):  # another process evicts files, too
                status = file.stat()
                files.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total > self.max_bytes and file != newest:
                total -= size
                file.unlink(missing_ok=True)  # readers that have it open keep its content
                self._log_eviction(file)

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
            "the cache %s is full (data.cache_gb: %s): removed the least recently used shard, %s",
            self.path,
            limit,
            file,
        )


_FULL: set[Path] = set()
"""Caches that this process has had to remove shards from."""


class RemoteSet:
    """A packed set at a URL.

    Args:
        url: The set's address: `https://host/set`, `s3://bucket/set`, `gs://bucket/set`, or
            `pipe:COMMAND` with `{}` for the file's name, e.g. `pipe:ssh host cat set/{}`.
        cache: Local cache of the files.

    Raises:
        Unreachable: The manifest or the index cannot be downloaded.
    """

    def __init__(self, url: str, cache: FileCache) -> None:
        self.url = url
        self._cache = cache
        self.manifest: Manifest = self._read_manifest()
        if self.manifest.only_beton:
            raise DatasetError(
                f"{url} is a beton alone, without shards; copy the set, and set data.backend=ffcv"
            )
        self.path = cache.directory_of(url)
        write_manifest(self.path, self.manifest)
        if not self._is_there(INDEX, self.manifest.index_sha256):
            num_bytes = INDEX_ROW.itemsize * self.manifest.num_images + HEADER_BYTES
            self._download(INDEX, self.manifest.index_sha256, max_bytes=num_bytes)

    def shard(self, number: int) -> Path:
        """Return the local path of a shard, downloaded if it is not in the cache.

        Raises:
            Unreachable: It cannot be downloaded, or is not the one in the manifest.
        """
        shard = self.manifest.shards[number]
        path = self.path / shard.name
        with _locked(path):
            if path.exists() and path.stat().st_size == shard.num_bytes:
                os.utime(path)
            else:
                self._download(
                    shard.name, shard.sha256, max_bytes=shard.num_bytes, min_bytes=shard.num_bytes
                )
                self._cache.make_room(path)
        return path

    def _is_there(self, name: str, sha256: str) -> bool:
        path = self.path / name
        return path.is_file() and file_sha256(path) == sha256

    def _read_manifest(self) -> Manifest:
        """Download the manifest; it is checked before anything is written.

        Raises:
            DatasetError: It is no manifest, and not for a damaged transfer: the bytes came twice.
        """
        where = f"{self.url}/{MANIFEST}"
        rejected = b""

        def attempt() -> Manifest:
            nonlocal rejected
            stream = io.BytesIO()
            self._copy(MANIFEST, stream, MAX_BYTES)
            content = stream.getvalue()
            try:
                return parse_manifest(content, where)
            except DatasetError as error:
                if content == rejected:
                    raise
                rejected = content
                raise _Rejected(str(error)) from None

        try:
            return self._retried(MANIFEST, attempt)
        except _Rejected as error:
            raise DatasetError(str(error)) from None

    def _download(self, name: str, sha256: str, *, max_bytes: int, min_bytes: int = 0) -> None:
        """Download a file into the cache, with retries; it appears there only when complete."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)

        def attempt() -> None:
            with atomic_file(target) as file:
                digest = self._copy(name, file, max_bytes)
                if file.tell() < min_bytes:
                    raise _Incomplete(
                        f"received {file.tell()} bytes, the manifest says {min_bytes}"
                    )
                if digest != sha256:
                    raise _Incomplete("its sha256 is not the one in the manifest")

        self._retried(name, attempt)

    def _copy(self, name: str, file: IO[bytes], max_bytes: int) -> str:
        """Copy a file of the set and return its SHA-256. Raises _Incomplete if it is too large."""
        digest = hashlib.sha256()
        with _open_stream(self.url, name) as stream:
            while block := stream.read(BLOCK):
                file.write(block)
                digest.update(block)
                if file.tell() > max_bytes:
                    raise _Incomplete(f"it has more than the {max_bytes} bytes that it may have")
        return digest.hexdigest()

    def _retried(self, name: str, attempt: Callable[[], T]) -> T:
        """Return what an attempt returns; try again, with back-off, after any failure to read.

        Raises:
            Unreachable: All attempts failed.
            _Rejected: The last attempt delivered a file that is not what it should be.
        """
        for delay in (*DELAYS, None):
            try:
                return attempt()
            except (OSError, http.client.HTTPException, _Incomplete) as error:
                reason = str(error) or type(error).__name__
                if delay is not None:
                    logger.warning("%s of %s: %s; retrying in %g s", name, self.url, reason, delay)
                    time.sleep(delay)
                elif isinstance(error, _Rejected):
                    raise
        raise Unreachable(
            f"{name} of {self.url} cannot be read after {len(DELAYS) + 1} attempts:"
            f" {reason}; check the address, the network and the access rights,"
            " then run the same command again"
        )


class _Incomplete(Exception):  # noqa: N818 (always retried)
    """A transfer that ended early, or delivered other bytes."""


class _Rejected(_Incomplete):
    """A complete file that is not what it should be, unless the transfer was damaged."""


@contextmanager
def _open_stream(url: str, name: str) -> Iterator[IO[bytes]]:
    """Open a file of a remote set for reading, start to end."""
    scheme, _, rest = url.partition(":")
    if scheme in ("http", "https"):
        with urllib.request.urlopen(f"{url.rstrip('/')}/{name}", timeout=TIMEOUT) as response:
            yield cast(IO[bytes], response)
        return
    if scheme == "pipe":
        command = [part.replace("{}", name) for part in shlex.split(rest)]
    else:
        command = [part.replace("{}", f"{url.rstrip('/')}/{name}") for part in COMMANDS[scheme]]
    if shutil.which(command[0]) is None:
        raise Unreachable(
            f"{url} is read by the command `{command[0]}`, which is not installed here;"
            " install it, or use another command through pipe:COMMAND"
        )
    with _Pipe(command) as pipe:
        yield cast(IO[bytes], pipe)
        pipe.check_end()


class _Pipe:
    """The output of a command; fails after TIMEOUT seconds without output."""

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
        """Return up to `size` bytes, none at the end. Raises _Incomplete if none come in time."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        if not select.select([descriptor], [], [], TIMEOUT)[0]:
            raise _Incomplete(f"`{self._command}` sent nothing for {TIMEOUT:g} s")
        return os.read(descriptor, size)

    def check_end(self) -> None:
        """Raise _Incomplete if the command failed."""
        code = self._process.wait(TIMEOUT)
        if code:
            self._stderr.seek(0)
            message = self._stderr.read().decode(errors="replace").strip()
            last = message.splitlines()[-1] if message else "no message"
            raise _Incomplete(f"`{self._command}` exited with code {code}: {last}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process or thread at a time download a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        while not try_lock(lock):
            time.sleep(POLL_SECONDS)
        yield
