"""Packing a source into sets of shards: in parallel, deterministic, resumable.

Shard s holds the items [s * n, (s + 1) * n) of the (selected) listing, minus skips. Worker
processes convert chunks of items; this process alone writes the shards, one after the other, so
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
from data_pipelines.pack.shard_writer import ShardWriter
from data_pipelines.pack.work_dir import (
    ShardRecord,
    WorkFolder,
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
    """A selection of the source, and the folders of its sets by resolution."""

    name: str
    listing: Listing
    folders: dict[int, Path]
    per_shard: int

    def num_shards(self) -> int:
        """Return the number of shards of each set."""
        return -(-len(self.listing.entries) // self.per_shard)

    def items(self, number: int) -> range:
        """Return the places in the listing that shard `number` holds."""
        first = number * self.per_shard
        return range(first, min(first + self.per_shard, len(self.listing.entries)))


class Packer:
    """One pack command: a source, a destination and options.

    Args:
        source: What to pack.
        destination: Folder of the set; made if missing. Several resolutions, or a hold-out, make
            a folder each within it.
        options: What determines the content.
        workers: Processes that convert.
        max_skips: Stop when more items than this are unusable; None for no limit.

    Raises:
        SourceError: The source is missing, damaged or of another kind.
        PackError: The options do not fit the source.
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
        self._work = WorkFolder(destination)
        listing = source.list_items()
        self._request = make_request(source, listing, self._options)
        per_shard = self._options.shard_images
        assert per_shard is not None
        self._parts = [
            Part(name, chosen, self._folders(name), per_shard)
            for name, chosen in select(listing, self._options).items()
        ]

    def pack(self) -> dict[Path, Manifest]:
        """Pack everything, going on where an interrupted run stopped; whole sets are left alone.

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
        """Refuse a destination that another set is in. Raises PackError; writes nothing."""
        self._check_destination()
        self._finished()
        if noted := self._work.noted():
            self._compare(noted, f"{self._destination} is an unfinished pack of another set")

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

    def _folders(self, part: str) -> dict[int, Path]:
        resolutions = self._options.resolutions
        base = self._destination / part
        if len(resolutions) == 1:
            return {resolutions[0]: base}
        return {r: base / ("original" if r == ORIGINAL else str(r)) for r in resolutions}

    def _check_destination(self) -> None:
        """Raise PackError unless the destination is new, empty, or was made by a pack."""
        path = self._destination
        if path.exists() and not path.is_dir():
            raise PackError(f"the destination {path} is a file; give a folder")
        ours = self._work.exists() or any(
            (folder / MANIFEST).exists() for part in self._parts for folder in part.folders.values()
        )
        if path.is_dir() and any(path.iterdir()) and not ours:
            raise PackError(f"the destination {path} holds other files; give a new folder")

    def _finished(self) -> dict[Path, Manifest] | None:
        """Return the manifests if all sets are there and the ones asked for, else None.

        Raises:
            PackError: There is another set.
            DatasetError: A set is damaged.
        """
        manifests = {}
        folders = [folder for part in self._parts for folder in part.folders.values()]
        for folder in folders:
            if (folder / MANIFEST).exists():
                manifest = read_manifest(folder)
                self._compare(request_of(manifest), f"{folder} holds another set")
                check_shard_sizes(folder, manifest)
                manifests[folder] = manifest
        return manifests if len(manifests) == len(folders) else None

    def _claim(self) -> None:
        """Note what is being packed. Raises PackError if an interrupted pack was of another set."""
        noted = self._work.claim(self._request)
        self._compare(noted, f"{self._destination} is an unfinished pack of another set")

    def _compare(self, found: dict[str, Any], complaint: str) -> None:
        """Raise PackError unless kind, content and options are the ones asked for."""
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
            manifests |= join(written, part.listing, part.folders, self._request, self._max_skips)
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
        """Tell whether a shard's record and its files are there."""
        record = self._work.read(part.name, number)
        if record is None:
            return False
        files = {folder / shard_name(number): r for r, folder in part.folders.items()}
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
            for resolution, folder in part.folders.items():
                file = stack.enter_context(_new_shard(folder / shard_name(number)))
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


def pack(
    source: Source,
    destination: Path,
    options: PackOptions,
    *,
    workers: int = 1,
    max_skips: int | None = None,
) -> dict[Path, Manifest]:
    """Pack a source and return the manifests by folder; see Packer."""
    packer = Packer(source, destination, options, workers=workers, max_skips=max_skips)
    return packer.pack()
