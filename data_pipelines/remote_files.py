"""Files on web servers and in object stores, read from start to end whatever the network does.

fsspec reads them (s3fs, gcsfs, adlfs, huggingface_hub, aiohttp: whatever these take as credentials
and settings holds here). A transfer that fails is resumed where it stopped, for as long as the
outage budget lasts; what waiting cannot mend, a file that is not there or not allowed, is said at
once.
"""

from __future__ import annotations

import asyncio
import io
import logging
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from models.command_line import EXIT_REJECTED, EXIT_STORAGE

logger = logging.getLogger(__name__)

EXTRAS = {
    "http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs",
    "az": "azure", "abfs": "azure", "abfss": "azure", "hf": "hf",
}  # fmt: skip
"""Schemes of URLs, and the extra of relaywave that installs what reads them."""
SCHEME = re.compile(rf"(?:{'|'.join(EXTRAS)})://|pipe:")
SECRET = (
    r"[\w-]*(?:passw(?:or)?d|passphrase|token|secret|signature|credential|bearer|api[-_]?key"
    r"|access[-_]?key)"
)
CREDENTIALS = re.compile(
    rf"(?:{'|'.join(EXTRAS)}|ftps?)://[^/?#\s'\"]*(?<!\bdatasets)@"  # NAME:PASSWORD@ of a URL
    rf"|{SECRET}[\w-]*\s*[=:]\s*[^\s$]"  # of a query, a header, a variable, an option
    rf"|-{SECRET}\s+[^\s$-]"  # an option whose value follows
    r"|\b(?:authorization|cookie)\s*:\s*(?!(?:\w+\s+)?\$)\S"
    r"|\s(?:-u\s*|--(?:proxy-)?user[\s=]+)[^\s:]+:[^\s$]"  # NAME:PASSWORD of curl
    r"|\bsshpass\s+-p\s*[^\s$]",
    re.IGNORECASE,
)
"""Where a path holds a name or a secret; those that the environment has are none."""

OUTAGE_SECONDS = 600.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds before the second attempt, doubled before each further one, up to the longest."""
STALL_SECONDS = 60.0
"""A connection that delivers nothing for so long is closed, and opened again."""
BLOCK = 1 << 23
"""Bytes of a ranged request to an object store."""
DENIED = {401: "no access", 403: "no access", 404: "not found", 410: "not found"}
"""HTTP codes that stay the same however long one waits."""


class Unreachable(RuntimeError):  # noqa: N818 (a finding about the other side)
    """A remote file could not be read for longer than the outage budget."""

    exit_code = EXIT_STORAGE


class Denied(Unreachable):
    """A remote file that is not there, or that one may not read: waiting does not help."""

    exit_code = EXIT_REJECTED


def is_remote(path: str) -> bool:
    """Tell whether a path is a URL that is read over the network, or pipe:COMMAND."""
    return SCHEME.match(path) is not None


def check_no_credentials(path: str) -> None:
    """Raise ValueError if a URL holds a name, password or token, without repeating them.

    Settings are written into runs, records of jobs, caches and logs.
    """
    if is_remote(path) and (match := CREDENTIALS.search(path)):
        raise ValueError(
            f"path={path[: match.start()]}... holds a user's name or password, or a token, which"
            " would be written into the run's files; leave it out, and read the set by a command"
            " that has its own configuration: pipe:curl --fail --silent --netrc URL/{}"
        )


class Outage:
    """Waits between attempts: its budget of seconds is full again after each success.

    Args:
        what: What is read, for messages.
        seconds: How long attempts go on after the first failure in a row.
    """

    def __init__(self, what: str, seconds: float) -> None:
        self._what, self._seconds = what, seconds
        self.end()

    def end(self) -> None:
        """Report a success."""
        self._began: float | None = None
        self._delay = FIRST_DELAY

    def wait(self, why: str) -> None:
        """Sleep before the next attempt. Raises Unreachable if the budget is spent."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        left = self._began + self._seconds - now
        if left <= 0:
            raise Unreachable(
                f"{self._what} cannot be read, for {self._seconds:g} s now: {why}; check the"
                " address, the network and the access rights, then run the same command again"
                " (data.outage_seconds sets how long to try)"
            )
        delay = min(self._delay * random.uniform(0.5, 1.0), left)
        logger.warning(
            "%s: %s; trying again in %.1f s, and for %.0f s more", self._what, why, delay, left
        )
        time.sleep(delay)
        self._delay = min(2 * self._delay, LONGEST_DELAY)


class RemoteStream(io.RawIOBase):
    """A remote file from start to end; a failed transfer resumes at the byte that it stopped at.

    Args:
        url: Its address.
        outage_seconds: How long to try without receiving anything.
        what: What it is called in messages; the address by default.

    Raises:
        Denied: From any read: it is not there, or may not be read.
        Unreachable: From any read: the outage budget is spent.
        ValueError: The package that reads such URLs is not installed.
    """

    def __init__(self, url: str, outage_seconds: float, what: str = "") -> None:
        super().__init__()
        self._what = what or url
        self._outage = Outage(self._what, outage_seconds)
        self._place = 0
        self._file: Any = None
        self._system, self._path = file_system(url)

    def readable(self) -> bool:
        """Return whether the stream can be read."""
        return True

    def tell(self) -> int:
        """Return the number of bytes that were read."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read up to a buffer's size; returns the number of bytes, 0 at the end."""
        content = self._steady(lambda: self._opened().read(len(buffer)))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        """Close the connection."""
        self._disconnect()
        super().close()

    def _disconnect(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):  # what fails here was of no use any more
                file.close()

    def _steady(self, read: Callable[[], bytes]) -> bytes:
        while True:
            try:
                content = read()
            except Exception as error:  # each library has kinds of its own
                self._disconnect()
                raise_if_denied(self._what, error)
                self._outage.wait(cause(error))
            else:
                self._outage.end()
                return content

    def _opened(self) -> Any:
        if self._file is None:
            opened = self._open_http() if self._path.startswith("http") else self._open_store()
            self._file = opened
        return self._file

    def _open_store(self) -> Any:
        file = self._system.open(self._path, "rb", block_size=BLOCK, cache_type="readahead")
        file.seek(self._place)
        return file

    def _open_http(self) -> Any:
        """Open one transfer from where the last one stopped; not all servers know ranges."""
        headers = {"Range": f"bytes={self._place}-"} if self._place else {}
        # With a size, whichever, it is not asked for: any failure of that is called "not found".
        file = self._system.open(self._path, "rb", block_size=0, size=-1, headers=headers)
        skipped = self._place if file.r.status == 200 else 0
        while skipped:
            skipped -= len(read := file.read(min(skipped, BLOCK)))
            if not read:
                raise EOFError(f"the file ends before byte {self._place}, where it was before")
        return file


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the file's path in it.

    Raises:
        ValueError: The package that reads such URLs is not installed.
    """
    import fsspec
    from fsspec.config import conf

    scheme = url.partition("://")[0]
    try:
        options = _patience(EXTRAS[scheme]) | conf.get(scheme, {})
        system, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise ValueError(
            f"{scheme}:// needs a package that is not installed ({error});"
            f" pip install 'relaywave[{EXTRAS[scheme]}]'"
        ) from None
    return system, path


def _patience(extra: str) -> dict[str, Any]:
    """Return options under which connections that stall fail, and are then opened again."""
    if extra == "http":
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS
        )
        return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    if extra == "s3":
        limits = {"read_timeout": STALL_SECONDS, "connect_timeout": STALL_SECONDS}
        return {"config_kwargs": limits | {"retries": {"total_max_attempts": 1}}}
    return {}


def raise_if_denied(what: str, error: Exception) -> None:
    """Raise Denied, with the cause, if an error stays however long one waits."""
    if isinstance(error, Unreachable | ImportError):
        raise error
    code = _http_code(error)
    missing = isinstance(error, FileNotFoundError | PermissionError)
    lasting = code in DENIED if code is not None else missing
    if lasting or type(error).__name__ == "NoCredentialsError":
        raise Denied(
            f"{what} cannot be read: {cause(error)}; check the address and the access rights"
        ) from None


def cause(error: BaseException) -> str:
    """Return what an error of any library says, in one line, with the HTTP code if it has one."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return f"nothing was received for {STALL_SECONDS:g} s"
    said = getattr(error, "message", "") or str(error) or type(error).__name__
    text = " ".join(str(said).split())[:300]
    code = _http_code(error) or (404 if isinstance(error, FileNotFoundError) else None)
    return text if code is None else f"HTTP {code} ({text})"


def _http_code(error: BaseException | None) -> int | None:
    """Return the HTTP code that an error, or what caused it, carries."""
    if error is None or type(error).__module__ == "aiohttp.http_exceptions":
        return None  # the latter call whatever they cannot parse 400
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # of boto
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        holder = error if response is None else response
        names = ("status", "status_code", "code")  # of aiohttp, azure, gcsfs
        found = next((getattr(holder, name) for name in names if hasattr(holder, name)), None)
    is_code = isinstance(found, int) and 400 <= found < 600
    return found if is_code else _http_code(error.__cause__)
