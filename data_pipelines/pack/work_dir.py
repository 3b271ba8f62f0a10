"""The working folder of a pack: who may write, what is being packed, and which shards are done.

It lies in the destination (`.packing/`) until the manifests are written. A shard's record is
written after the shard, and stands for it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipelines.pack.options import PackError, PackOptions
from data_pipelines.pack.shard_writer import WrittenSample
from data_pipelines.packed.manifest import Manifest, atomic_file, canonical_json
from data_pipelines.sources.base import Listing, Skip, Source

FOLDER = ".packing"
REQUEST = "request.json"


@dataclass(frozen=True)
class ShardRecord:
    """What was written of one range of items, at one or several resolutions.

    Attributes:
        num_bytes: Size of the shard, by resolution.
        sha256: Checksum of the shard, by resolution.
        samples: Rows of the shard's samples, by resolution; all have the same items.
        items: The samples' places in the listing.
        skips: Items that were left out.
    """

    num_bytes: dict[int, int]
    sha256: dict[int, str]
    samples: dict[int, list[WrittenSample]]
    items: list[int]
    skips: list[Skip]


class WorkFolder:
    """The working folder of one destination."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.path = destination / FOLDER

    def exists(self) -> bool:
        """Tell whether a pack into the destination has begun and not ended."""
        return self.path.is_dir()

    def claim(self, request: dict[str, Any]) -> dict[str, Any]:
        """Note what is being packed, and return what was noted first."""
        if self.noted() is None:
            with atomic_file(self.path / REQUEST) as file:
                file.write(canonical_json(request))
        return self.noted() or {}

    def noted(self) -> dict[str, Any] | None:
        """Return what is being packed, None if nothing is."""
        note = self.path / REQUEST
        if not note.exists():
            return None
        noted: dict[str, Any] = json.loads(note.read_bytes())
        return noted

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
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the destination alone. Raises PackError if any other packer is at work."""
        with self._locked("lock", fcntl.LOCK_EX):
            yield

    @contextmanager
    def share(self, task: str) -> Iterator[None]:
        """Hold one task of an array, beside its other tasks. Raises PackError if it is taken."""
        with self._locked("lock", fcntl.LOCK_SH), self._locked(f"lock-{task}", fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, name: str, mode: int) -> Iterator[None]:
        """Hold a lock that the system releases however this process ends.

        File systems without locks (some network mounts) are used without one.
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
    """Return what a manifest must say for its set to be the one that is asked for."""
    identity = {"items": len(listing.entries), "digest": listing.digest()}
    return {
        "kind": source.kind,
        "source": {**source.describe(), **identity},
        "options": {**asdict(options), "resolution": list(options.resolutions)},
    }


def request_of(manifest: Manifest) -> dict[str, Any]:
    """Return the request that a set was packed by."""
    return {name: getattr(manifest, name) for name in ("kind", "source", "options")}


def difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Say how two requests differ, "" if not; where the source lies does not matter."""
    if found["kind"] != asked["kind"]:
        return f"kind {found['kind']}, not {asked['kind']}"
    noted = {**_DEFAULTS, **found["options"]}  # sets may be older than an option
    for name, value in asked["options"].items():
        if canonical_json(noted[name]) != canonical_json(value):
            return f"{name}={noted[name]}, not {value}"
    if found["source"]["digest"] == asked["source"]["digest"]:
        return ""
    return (
        f"{found['source']['items']} items from {found['source']['path']}, not the"
        f" {asked['source']['items']} now in {asked['source']['path']}"
    )
