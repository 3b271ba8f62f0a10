"""Packing a source into sets of shards: in parallel, deterministic, resumable.

Shard s holds the items [s * n, (s + 1) * n) of the (selected) listing, minus skips. Worker
processes convert chunks of items; only this process writes the shards, one after the other, so
they are byte-identical for any number of workers, and for any split into array tasks. Finished
shards are never rewritten; the manifests are written last.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from data_pipelines.images import ORIGINAL
from data_pipelines.pack.finish import check_skips, join, shard_name
from data_pipelines.pack.holdout import choose_holdout
from data_pipelines.pack.options import NothingUsable, PackError, PackOptions, select, stratified
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
    check_shard_sizes,
    read_manifest,
)
from data_pipelines.progress import Progress
from data_pipelines.sources.base import Listing, Skip, Source
from models.safe_files.atomic import atomic_file, remove_left_overs


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
        self._set_dirs = {name: self._dirs_of(name) for name in self._part_names()}
        self._all = self._items_to_convert(select(listing, self._options))

    def pack(self) -> dict[Path, Manifest]:
        """Pack everything, resuming an interrupted run; complete sets are left alone.

        Raises:
            PackError: The destination holds something else, or nothing usable was found.
            OSError: Writing failed, e.g. for a full disk; what was finished stays.
        """
        self.check()
        made = [path for path in self._directories() if not path.exists()]
        try:
            with self._work.alone():
                manifests = self._finished()
                if manifests is None:
                    self._claim()
                    self._write_shards(Task(0, 1))
                    manifests = self._join()
                self._work.remove()
        except NothingUsable:
            self._discard()
            for path in reversed(made):
                with suppress(OSError):  # it is not empty
                    path.rmdir()
            raise
        return manifests

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index of the sets that are packed."""
        return self._all.listing.class_names

    def check(self) -> None:
        """Raise PackError if the destination holds another set; writes nothing."""
        self._check_destination()
        self._finished()
        if recorded := self._work.request():
            self._compare(recorded, f"{self._destination} is an unfinished pack of another set")

    def pack_share(self, task: Task) -> None:
        """Write one array task's share of the shards; `finish` joins them. Raises as `pack`."""
        self.check()
        with self._work.share(f"{task.number}-of-{task.count}"):
            if self._finished() is None:
                self._claim()
                self._write_shards(task)

    def finish(self) -> dict[Path, Manifest]:
        """Join what the array tasks wrote. Raises PackError if a shard is missing."""
        self.check()
        with self._work.alone():
            manifests = self._finished()
            if manifests is None:
                self._claim()
                manifests = self._join()
            self._work.remove()
        return manifests

    def _part_names(self) -> tuple[str, ...]:
        return ("train", "holdout") if self._options.holdout else ("",)

    def _dirs_of(self, part: str) -> dict[int, Path]:
        resolutions = self._options.resolutions
        base = self._destination / part
        if len(resolutions) == 1:
            return {resolutions[0]: base}
        return {r: base / ("original" if r == ORIGINAL else str(r)) for r in resolutions}

    def _items_to_convert(self, listing: Listing) -> Part:
        """Return all items as one part: the set itself, or what the hold-out is taken from."""
        count, entries = self._options.holdout, listing.entries
        self._by_name = stratified(entries, count, "holdout") if count else set()
        if not self._options.labelled:
            entries = [entry._replace(label=-1) for entry in entries]
            listing = replace(listing, entries=entries, class_names=())
        if not count:
            return self._part("", listing)
        dirs = {r: self._work.path / "all" / str(r) for r in self._options.resolutions}
        return replace(self._part("", listing), set_dirs=dirs)

    def _part(self, name: str, listing: Listing) -> Part:
        per_shard = self._options.shard_images
        assert per_shard is not None
        return Part(name, listing, self._dirs_of(name), per_shard)

    def _check_destination(self) -> None:
        """Raise PackError unless the destination is new, empty, or was made by a pack."""
        path = self._destination
        if path.exists() and not path.is_dir():
            raise PackError(f"the destination {path} is a file; give a directory")
        ours = self._work.exists() or any(
            (set_dir / MANIFEST).exists() for set_dir in self._all_set_dirs()
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
        set_dirs = self._all_set_dirs()
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

    def _discard(self) -> None:
        """Remove what was written of a set that there cannot be."""
        self._work.remove()
        for set_dir in self._all_set_dirs():
            for number in range(self._all.num_shards()):
                (set_dir / shard_name(number)).unlink(missing_ok=True)

    def _directories(self) -> list[Path]:
        """Return all directories that packing makes, those that hold others first."""
        set_dirs = [self._destination, *self._all_set_dirs()]
        return sorted({*set_dirs, *(path / "shards" for path in set_dirs)})

    def _all_set_dirs(self) -> list[Path]:
        return [set_dir for dirs in self._set_dirs.values() for set_dir in dirs.values()]

    def _join(self) -> dict[Path, Manifest]:
        records = self._records(self._all)
        if not self._options.holdout:
            return self._join_part(self._all, records)
        manifests: dict[Path, Manifest] = {}
        converted_items = ConvertedItems(self._all, records)
        for part, positions in self._divide(converted_items):
            with closing(converted_items.read(positions)) as items:
                for number in range(part.num_shards()):
                    self._write_shard(part, number, zip(part.items(number), items, strict=False))
            manifests |= self._join_part(part, self._records(part))
        return manifests

    def _divide(self, items: ConvertedItems) -> Iterator[tuple[Part, list[int]]]:
        """Yield training set and hold-out, with the positions of their items among all."""
        listing = self._all.listing
        held = self._choose_holdout(items)
        for name, skips in (("train", listing.skips), ("holdout", ())):
            positions = [n for n in range(len(listing.entries)) if (n in held) == (name != "train")]
            entries = [listing.entries[position] for position in positions]
            yield self._part(name, replace(listing, entries=entries, skips=skips)), positions

    def _choose_holdout(self, items: ConvertedItems) -> set[int]:
        count = self._options.holdout
        assert count is not None
        return choose_holdout(
            self._all.listing.entries,
            items.contents(),
            self._by_name,
            count,
            keep_duplicates=bool(self._options.keep_duplicates),
        )

    def _records(self, part: Part) -> list[ShardRecord]:
        """Return the records of a part's shards. Raises PackError if one is missing."""
        records = [self._work.read(part.name, number) for number in range(part.num_shards())]
        written = [record for record in records if record is not None]
        if len(written) < len(records):
            missing = [str(n) for n, record in enumerate(records) if record is None]
            raise PackError(
                f"{len(missing)} of {len(records)} shards are not written yet (the first:"
                f" {', '.join(missing[:5])}); run their tasks again, or pack without --shard"
            )
        return written

    def _join_part(self, part: Part, records: list[ShardRecord]) -> dict[Path, Manifest]:
        return join(records, part.listing, part.set_dirs, self._request, self._max_skips)

    def _write_shards(self, task: Task) -> None:
        """Write the task's shards that have no record yet."""
        part = self._all
        ours = range(task.number, part.num_shards(), task.count)
        missing = [number for number in ours if not self._is_written(part, number)]
        total = sum(len(part.items(number)) for number in ours)
        chosen = [part.listing.entries[item] for number in missing for item in part.items(number)]
        with (
            closing(converted(self._source, self._conversion(), chosen, self._workers)) as results,
            Progress(
                f"packing {self._source.kind}", total=total, done=total - len(chosen)
            ) as progress,
        ):
            skips = 0
            for number in missing:
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
        edges: list[int] = []
        pixels: list[str] = []
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
                edges.append(item.edge)
                pixels += [item.pixels] if item.pixels else []
                for resolution, encoded in item.encoded.items():
                    writers[resolution].add(f"{place:09d}", encoded, item.label)
            sha256 = {r: writer.finish() for r, writer in writers.items()}
        record = ShardRecord(
            num_bytes={r: writer.num_bytes for r, writer in writers.items()},
            sha256=sha256,
            samples={r: writer.samples for r, writer in writers.items()},
            items=kept,
            skips=skips,
            edges=edges,
            pixels=pixels,
        )
        self._work.write(part.name, number, record)
        return len(skips)


class ConvertedItems:
    """Items that were converted into shards, to be read again."""

    def __init__(self, part: Part, records: Sequence[ShardRecord]) -> None:
        self._part, self._records = part, records
        self._rows = {
            item: (shard, row)
            for shard, record in enumerate(records)
            for row, item in enumerate(record.items)
        }
        self._skips = {skip.name: skip for record in records for skip in record.skips}

    def contents(self) -> dict[int, str]:
        """Return what identifies the pixels of each usable item, by position."""
        return {item: self._records[s].content(row) for item, (s, row) in self._rows.items()}

    def read(self, positions: Sequence[int]) -> Generator[Packed | Skip]:
        """Yield items by position, ascending."""
        with ExitStack() as stack:
            opened: dict[int, IO[bytes]] = {}
            current = -1
            for position in positions:
                if position not in self._rows:
                    yield self._skips[self._part.listing.entries[position].name]
                    continue
                shard, row = self._rows[position]
                if shard != current:
                    stack.close()
                    opened = {
                        r: stack.enter_context(open(set_dir / shard_name(shard), "rb"))
                        for r, set_dir in self._part.set_dirs.items()
                    }
                    current = shard
                yield self._packed(opened, self._records[shard], row)

    def _packed(self, opened: dict[int, IO[bytes]], record: ShardRecord, row: int) -> Packed:
        encoded = {}
        for resolution, file in opened.items():
            sample = record.samples[resolution][row]
            file.seek(sample.offset)
            encoded[resolution] = file.read(sample.length)
        edge = record.edges[row] if record.edges else 0
        return Packed(sample.label, encoded, edge, record.pixels[row] if record.pixels else "")


def _new_shard(path: Path) -> AbstractContextManager[IO[bytes]]:
    """Open a shard for writing, after removing what a killed run left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_overs(path)
    return atomic_file(path)
