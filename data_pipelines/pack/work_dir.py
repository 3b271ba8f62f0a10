"""The working directory of a pack: who may write, what is being packed, which shards are done.

It is in the destination (`.packing/`) until the manifests are written. A shard's record is written
after the shard, and marks it as complete. What is being packed is the *request*: the kind and
content of the source, and the options, in the form in which manifests record them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipelines.pack.options import PackError, PackOptions
from data_pipelines.pack.shard_writer import ShardRecord, WrittenSample
from data_pipelines.packed.manifest import Manifest, atomic_file, canonical_json
from data_pipelines.sources.base import Listing, Skip, Source

WORK_DIR = ".packing"
REQUEST = "request.json"


class WorkDir:
    """The working directory of one destination."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.path = destination / WORK_DIR

    def exists(self) -> bool:
        """Return whether a pack into the destination is unfinished."""
        return self.path.is_dir()

    def claim(self, request: dict[str, Any]) -> dict[str, Any]:
        """Record what is being packed, unless it is recorded already; return the record."""
        if self.request() is None:
            with atomic_file(self.path / REQUEST) as file:
                file.write(canonical_json(request))
        return self.request() or {}

    def request(self) -> dict[str, Any] | None:
        """Return what is being packed, None if nothing is."""
        path = self.path / REQUEST
        if not path.exists():
            return None
        recorded: dict[str, Any] = json.loads(path.read_bytes())
        return recorded

    def write(self, part: str, number: int, record: ShardRecord) -> None:
        """Write the record of a finished shard."""
        samples = {str(r): [list(row) for row in rows] for r, rows in record.samples.items()}
        document = {**vars(record), "samples": samples}
        with atomic_file(self._record(part, number)) as file:
            file.write(json.dumps(document).encode())

    def read(self, part: str, number: int) -> ShardRecord | None:
        """Return the record of a shard, or None if it is not written."""
        try:
            document = json.loads(self._record(part, number).read_bytes())
        except FileNotFoundError:
            return None
        return ShardRecord(
            num_bytes={int(r): size for r, size in document["num_bytes"].items()},
            sha256={int(r): text for r, text in document["sha256"].items()},
            samples={
                int(r): [WrittenSample(*row) for row in rows]
                for r, rows in document["samples"].items()
            },
            items=document["items"],
            skips=[Skip(*skip) for skip in document["skips"]],
            edges=document.get("edges", []),  # records may be older
            pixels=document.get("pixels", []),
        )

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
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise PackError(
                f"another process is packing into {self.destination}; wait for it to end"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(descriptor)
                raise
        try:
            yield
        finally:
            os.close(descriptor)

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
