"""The working directory of a pack: who may write, what is being packed, which shards are done.

It is in the destination (`.packing/`) until the manifests are written. A shard's record is written
after the shard, and marks it as complete. What is being packed is the *request*: the kind and
content of the source, and the options, in the form in which manifests record them.
"""

from __future__ import annotations

import fcntl
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from data_pipelines.pack.options import PackError, PackOptions
from data_pipelines.pack.shard_writer import ShardRecord, WrittenSample
from data_pipelines.packed.manifest import Manifest
from data_pipelines.sources.base import Listing, Skip, Source, printable
from models.safe_files.atomic import remove_ours
from models.safe_files.documents import DocumentError, Format, canonical_json
from models.safe_files.locks import try_lock

logger = logging.getLogger(__name__)
WORK_DIR = ".packing"
REQUEST = "request.json"
FILES = re.compile(
    r"lock(-\d+-of-\d+)?|request\.json|(all|train|holdout)-\d{6,}\.json"
    r"|all/(\d+)/shards/\d{6,}\.tar"
)
"""What packing writes below a working directory."""


@dataclass(frozen=True)
class _Request:
    """What is being packed; see make_request."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    kind: str
    source: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class _Record:
    """A ShardRecord as JSON holds it, resolutions as text."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    num_bytes: dict[str, int]
    sha256: dict[str, str]
    samples: dict[str, list[Any]]
    items: list[int]
    skips: list[tuple[str, str]]
    edges: list[int] = field(default_factory=list)  # records may be older
    pixels: list[str] = field(default_factory=list)


_REMEDY = "remove it, and run the same pack command again"
_REQUESTS = Format(schema=_Request, remedy=_REMEDY)
_RECORDS = Format(schema=_Record, remedy=_REMEDY, indent=None)
T = TypeVar("T")


def _read(kind: Format[T], path: Path) -> T | None:
    """Read a document of the working directory, None if there is none. Raises PackError."""
    try:
        return kind.read(path)
    except FileNotFoundError:
        return None
    except DocumentError as error:
        raise PackError(str(error)) from None


class WorkDir:
    """The working directory of one destination."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.path = destination / WORK_DIR

    def exists(self) -> bool:
        """Return whether a pack into the destination is unfinished."""
        return self.path.is_dir()

    def remove(self) -> None:
        """Remove what packing wrote here; says what else is left."""
        if left := remove_ours(self.path, FILES):
            some = ", ".join(map(printable, left[:3]))
            logger.warning("%s is kept: it holds files that no pack wrote (%s)", self.path, some)

    def claim(self, request: dict[str, Any]) -> dict[str, Any]:
        """Record what is being packed, unless it is recorded already; return the record."""
        if self.request() is None:
            _REQUESTS.write(self.path / REQUEST, request)
        return self.request() or {}

    def request(self) -> dict[str, Any] | None:
        """Return what is being packed, None if nothing is."""
        recorded = _read(_REQUESTS, self.path / REQUEST)
        return None if recorded is None else vars(recorded)

    def write(self, part: str, number: int, record: ShardRecord) -> None:
        """Write the record of a finished shard."""
        samples = {str(r): [list(row) for row in rows] for r, rows in record.samples.items()}
        sizes = {str(r): size for r, size in record.num_bytes.items()}
        sha256 = {str(r): text for r, text in record.sha256.items()}
        fields = {"samples": samples, "num_bytes": sizes, "sha256": sha256}
        _RECORDS.write(self._record(part, number), {**vars(record), **fields})

    def read(self, part: str, number: int) -> ShardRecord | None:
        """Return the record of a shard, or None if it is not written."""
        record = _read(_RECORDS, self._record(part, number))
        if record is None:
            return None
        try:
            return ShardRecord(
                num_bytes={int(r): size for r, size in record.num_bytes.items()},
                sha256={int(r): text for r, text in record.sha256.items()},
                samples={
                    int(r): [WrittenSample(*row) for row in rows]
                    for r, rows in record.samples.items()
                },
                items=record.items,
                skips=[Skip(*skip) for skip in record.skips],
                edges=record.edges,
                pixels=record.pixels,
            )
        except (TypeError, ValueError) as error:
            path = self._record(part, number)
            raise PackError(f"{path} is damaged: {error}; {_REMEDY}") from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the destination exclusively. Raises PackError if another process is packing."""
        with self._locked("lock", fcntl.LOCK_EX):
            yield

    @contextmanager
    def share(self, task: str) -> Iterator[None]:
        """Lock one task of an array; other tasks may run. Raises PackError if it is locked."""
        with self._locked("lock", fcntl.LOCK_SH), self._locked(f"lock-{task}", fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, name: str, mode: int) -> Iterator[None]:
        """Hold a lock that the system releases when this process ends, however it ends.

        On file systems without locks (some network mounts) there is none.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / name, "a") as file:
            if not try_lock(file, mode):
                raise PackError(
                    f"another process is packing into {self.destination}; wait for it to end"
                )
            yield

    def _record(self, part: str, number: int) -> Path:
        return self.path / f"{part or 'all'}-{number:06d}.json"


_DEFAULTS = asdict(PackOptions(resolution=1))


def make_request(source: Source, listing: Listing, options: PackOptions) -> dict[str, Any]:
    """Return the request that a manifest must record for its set to be the requested one."""
    identity = {"items": len(listing.entries), "digest": listing.digest()}
    return {
        "kind": source.kind,
        "source": {**source.describe(), **identity},
        "options": {**asdict(options), "resolution": list(options.resolutions)},
    }


def request_of(manifest: Manifest) -> dict[str, Any]:
    """Return the request that a set was packed for."""
    return {name: getattr(manifest, name) for name in ("kind", "source", "options")}


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return how two requests differ, "" if not; the location of the source does not matter."""
    if found["kind"] != wanted["kind"]:
        return f"kind {found['kind']}, not {wanted['kind']}"
    recorded = {**_DEFAULTS, **found["options"]}  # sets may be older than an option
    for name, value in wanted["options"].items():
        if canonical_json(recorded[name]) != canonical_json(value):
            return f"{name}={recorded[name]}, not {value}"
    if found["source"]["digest"] == wanted["source"]["digest"]:
        return ""
    return (
        f"{found['source']['items']} items from {found['source']['path']}, not the"
        f" {wanted['source']['items']} now in {wanted['source']['path']}"
    )
