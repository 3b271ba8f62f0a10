"""Packing a source into sets of shards: in parallel, deterministic, resumable.

Shard s holds the items [s * n, (s + 1) * n) of the (selected) listing, minus skips. Worker
processes convert chunks of items; only this process writes the shards, one after the other, so
they are byte-identical for any number of workers, and for any split into array tasks. Finished
shards are never rewritten; the manifests are written last.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data_pipelines.images import ORIGINAL
from data_pipelines.pack.finish import check_skips, join, shard_name
from data_pipelines.pack.options import PackError, PackOptions, select
from data_pipelines.pack.shard_writer import ShardRecord, ShardWriter
from data_pipelines.pack.work_dir import (
    WorkDir,
    difference,
    make_request,
    request_of,
)
from data_pipelines.pack.worker import Conversion, Packed, converted
from data_pipelines.packed.manifest import (
    MANIFEST,
    Manifest,
    atomic_file,
    check_shard_sizes,
    read_manifest,
)
from data_pipelines.progress import Progress
from data_pipelines.sources.base import Listing, Skip, Source


@dataclass(frozen=True)
class Task:
    """One of `count` equal tasks, numbered from 0, that pack one destination together."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise PackError(f"shard={self.number}/{self.count} is not one of 0..{self.count - 1}")


@dataclass(frozen=True)
class Part:
    """A selection of the source, and the directories of its sets by resolution."""

    name: str
    listing: Listing
    set_dirs: dict[int, Path]
    per_shard: int

    def num_shards(self) -> int:
        """Return the number of shards of each set."""
        return -(-len(self.listing.entries) // self.per_shard)

    def items(self, number: int) -> range:
        """Return the positions in the listing that shard `number` holds."""
        first = number * self.per_shard
        return range(first, min(first + self.per_shard, len(self.listing.entries)))


class Packer:
    """One pack command: a source, a destination and options.

    Args:
        source: What to pack.
        destination: Directory of the set; created if missing. Several resolutions, or a hold-out,
            become a subdirectory each.
        options: What determines the content.
        workers: Processes that convert.
        max_skips: Stop when more items than this are unusable; None for no limit.

    Raises:
        SourceError: The source is missing, damaged or of another kind.
        PackError: The options do not match the source.
    """

    def __init__(
        self,
        source: Source,
        destination: Path,
        options: PackOptions,
        *,
        workers: int = 1,
        max_skips: int | None = None,
    ) -> None:
        self._source, self._destination = source, destination
        self._options = options.resolved(source.published)
        self._workers, self._max_skips = workers, max_skips
        self._work = WorkDir(destination)
        listing = source.list_items().usable(options.labelled)
        self._request = make_request(source, listing, self._options)
        per_shard = self._options.shard_images
        assert per_shard is not None
        self._parts = [
            Part(name, chosen, self._set_dirs(name), per_shard)
            for name, chosen in select(listing, self._options).items()
        ]

    def pack(self) -> dict[Path, Manifest]:
        """Pack everything, resuming an interrupted run; complete sets are left alone.

        Raises:
            PackError: The destination holds something else, or nothing usable was found.
            OSError: Writing failed, e.g. for a full disk; what was finished stays.
        """
        self._check_destination()
        with self._work.alone():
            manifests = self._finished()
            if manifests is None:
                self._claim()
                self._write_shards(Task(0, 1))
                manifests = self._join()
            shutil.rmtree(self._work.path, ignore_errors=True)
        return manifests

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index of the sets that are packed."""
        return self._parts[0].listing.class_names

    def check(self) -> None:
        """Raise PackError if the destination holds another set; writes nothing."""
        self._check_destination()
        self._finished()
        if recorded := self._work.request():
            self._compare(recorded, f"{self._destination} is an unfinished pack of another set")

    def pack_share(self, task: Task) -> None:
        """Write one array task's share of the shards; `finish` joins them. Raises as `pack`."""
        self._check_destination()
        with self._work.share(f"{task.number}-of-{task.count}"):
            if self._finished() is None:
                self._claim()
                self._write_shards(task)

    def finish(self) -> dict[Path, Manifest]:
        """Join what the array tasks wrote. Raises PackError if a shard is missing."""
        self._check_destination()
        with self._work.alone():
            manifests = self._finished()
            if manifests is None:
                self._claim()
                manifests = self._join()
            shutil.rmtree(self._work.path, ignore_errors=True)
        return manifests

    def _set_dirs(self, part: str) -> dict[int, Path]:
        resolutions = self._options.resolutions
        base = self._destination / part
        if len(resolutions) == 1:
            return {resolutions[0]: base}
        return {r: base / ("original" if r == ORIGINAL else str(r)) for r in resolutions}

    def _check_destination(self) -> None:
        """Raise PackError unless the destination is new, empty, or was made by a pack."""
        path = self._destination
        if path.exists() and not path.is_dir():
            raise PackError(f"the destination {path} is a file; give a directory")
        ours = self._work.exists() or any(
            (set_dir / MANIFEST).exists()
            for part in self._parts
            for set_dir in part.set_dirs.values()
        )
        if path.is_dir() and any(path.iterdir()) and not ours:
            raise PackError(f"the destination {path} holds other files; give a new directory")

    def _finished(self) -> dict[Path, Manifest] | None:
        """Return the manifests if all sets exist and are the requested ones, else None.

        Raises:
            PackError: Another set is there.
            DatasetError: A set is damaged.
        """
        manifests = {}
        set_dirs = [set_dir for part in self._parts for set_dir in part.set_dirs.values()]
        for set_dir in set_dirs:
            if (set_dir / MANIFEST).exists():
                manifest = read_manifest(set_dir)
                self._compare(request_of(manifest), f"{set_dir} holds another set")
                check_shard_sizes(set_dir, manifest)
                manifests[set_dir] = manifest
        return manifests if len(manifests) == len(set_dirs) else None

    def _claim(self) -> None:
        """Record what is being packed. Raises PackError if an unfinished pack is of another set."""
        recorded = self._work.claim(self._request)
        self._compare(recorded, f"{self._destination} is an unfinished pack of another set")

    def _compare(self, found: dict[str, Any], complaint: str) -> None:
        """Raise PackError unless kind, content and options are the requested ones."""
        other = difference(found, self._request)
        if other:
            raise PackError(f"{complaint}: {other}; give another destination, or remove it")

    def _join(self) -> dict[Path, Manifest]:
        manifests: dict[Path, Manifest] = {}
        for part in self._parts:
            records = [self._work.read(part.name, number) for number in range(part.num_shards())]
            written = [record for record in records if record is not None]
            if len(written) < len(records):
                missing = [str(n) for n, record in enumerate(records) if record is None]
                raise PackError(
                    f"{len(missing)} of {len(records)} shards are not written yet (the first:"
                    f" {', '.join(missing[:5])}); run their tasks again, or pack without --shard"
                )
            manifests |= join(written, part.listing, part.set_dirs, self._request, self._max_skips)
        return manifests

    def _write_shards(self, task: Task) -> None:
        """Write the task's shards that have no record yet."""
        shards = [(part, n) for part in self._parts for n in range(part.num_shards())]
        ours = [shards[index] for index in range(task.number, len(shards), task.count)]
        missing = [(part, n) for part, n in ours if not self._is_written(part, n)]
        total = sum(len(part.items(n)) for part, n in ours)
        chosen = [part.listing.entries[item] for part, n in missing for item in part.items(n)]
        with (
            closing(converted(self._source, self._conversion(), chosen, self._workers)) as results,
            Progress(
                f"packing {self._source.kind}", total=total, done=total - len(chosen)
            ) as progress,
        ):
            skips = 0
            for part, number in missing:
                items = zip(part.items(number), progress.counting(results), strict=False)
                skips += self._write_shard(part, number, items)
                check_skips(skips, self._max_skips)

    def _conversion(self) -> Conversion:
        return Conversion(
            resolutions=self._options.resolutions,
            filter=self._options.filter,
            image_format=self._options.image_format,
            quality=self._options.quality,
            min_edge=self._options.min_edge,
            upright=not self._source.published,
        )

    def _is_written(self, part: Part, number: int) -> bool:
        """Return whether a shard's record and its files exist."""
        record = self._work.read(part.name, number)
        if record is None:
            return False
        files = {set_dir / shard_name(number): r for r, set_dir in part.set_dirs.items()}
        return all(
            file.exists() and file.stat().st_size == record.num_bytes[r]
            for file, r in files.items()
        )

    def _write_shard(
        self, part: Part, number: int, items: Iterator[tuple[int, Packed | Skip]]
    ) -> int:
        """Write one shard at all resolutions, then its record; return its number of skips."""
        kept: list[int] = []
        skips: list[Skip] = []
        with ExitStack() as stack:
            writers = {}
            for resolution, set_dir in part.set_dirs.items():
                file = stack.enter_context(_new_shard(set_dir / shard_name(number)))
                writers[resolution] = ShardWriter(file)
            for place, item in items:
                if isinstance(item, Skip):
                    skips.append(item)
                    continue
                kept.append(place)
                for resolution, encoded in item.encoded.items():
                    writers[resolution].add(f"{place:09d}", encoded, item.label)
            sha256 = {r: writer.finish() for r, writer in writers.items()}
        record = ShardRecord(
            num_bytes={r: writer.num_bytes for r, writer in writers.items()},
            sha256=sha256,
            samples={r: writer.samples for r, writer in writers.items()},
            items=kept,
            skips=skips,
        )
        self._work.write(part.name, number, record)
        return len(skips)


def _new_shard(path: Path) -> AbstractContextManager[IO[bytes]]:
    """Open a shard for writing, after removing what a killed run left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{path.name}.*.tmp"):
        left_over.unlink()
    return atomic_file(path)
