"""Packing a source into shards: in parallel, deterministic, resumable.

Shard s holds the entries [s * n, (s + 1) * n) of the source's listing, minus skips. Worker
processes convert chunks of entries; this process alone writes the shards, one after the other, so
they are byte-identical for any number of workers. A finished shard has a record in `.packing/`
and is never rewritten; the manifest is written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.converting import converted
from data_pipelines.images import ImageFormat
from data_pipelines.manifest import (
    INDEX_ROW,
    MANIFEST,
    SKIPPED,
    Index,
    Manifest,
    Shard,
    atomic_file,
    canonical_json,
    check_shard_sizes,
    read_manifest,
    write_index,
    write_manifest,
)
from data_pipelines.pack_lock import exclusive
from data_pipelines.pack_worker import Conversion, Packed
from data_pipelines.progress import Progress
from data_pipelines.shard_writer import ShardWriter
from data_pipelines.sources.base import Entry, Listing, Skip, Source

WORK = ".packing"


class PackError(ValueError):
    """Packing cannot go on; the message is one line. What was finished stays."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What determines the content of a packed set, besides its source.

    Attributes:
        resolution: Edge of the stored images in pixels: centre crop, then Lanczos.
        image_format: `png` and `webp` are lossless, `jpeg` is smaller.
        quality: JPEG quality, 1..95.
        shard_images: Source items per shard; null gives shards of roughly 128 MB.
        limit: Take only the first items of the source.
        min_edge: Skip images whose shorter side has fewer pixels.
        labelled: Store the classes; else the set is unlabelled.
    """

    resolution: int
    image_format: ImageFormat = "png"
    quality: int = 95
    shard_images: int | None = None
    limit: int | None = None
    min_edge: int = 16
    labelled: bool = True

    def __post_init__(self) -> None:
        positive = {"resolution": self.resolution, "min_edge": self.min_edge}
        optional = {"shard_images": self.shard_images, "limit": self.limit}
        for name, value in {**positive, **optional}.items():
            if value is not None and value < 1:
                raise PackError(f"{name}={value} must be positive")
        if not 1 <= self.quality <= 95:
            raise PackError(f"quality={self.quality} must be in 1..95")

    def items_per_shard(self) -> int:
        """Return the number of source items per shard."""
        if self.shard_images is not None:
            return self.shard_images
        return max(64, min(16384, 2**28 // (3 * self.resolution**2 // 2)))


def pack(
    source: Source,
    destination: Path,
    options: PackOptions,
    *,
    workers: int = 1,
    max_skips: int | None = None,
) -> Manifest:
    """Pack a source into `destination`, going on where an interrupted run stopped.

    A whole set of the same source and options is left as it is.

    Args:
        source: What to pack.
        destination: Folder of the set; made if missing.
        options: What determines the content.
        workers: Processes that convert.
        max_skips: Stop when more items than this are unusable; None for no limit.

    Raises:
        PackError: The destination holds something else, or nothing usable was found.
        SourceError: The source is missing, damaged or of another kind.
        OSError: Reading the source's list or writing failed, e.g. for a full disk.
    """
    listing = _selected(source.list_items(), options)
    request = _request(source, listing, options)
    _check_destination(destination)
    (destination / WORK).mkdir(parents=True, exist_ok=True)
    with exclusive(destination / WORK / "lock"):
        finished = _finished(destination, request)
        if finished is None:
            _claim(destination, request)
            _write_shards(source, listing, destination, options, workers, max_skips)
            finished = _join(destination, listing, options, request, max_skips)
        shutil.rmtree(destination / WORK, ignore_errors=True)
    return finished


def _selected(listing: Listing, options: PackOptions) -> Listing:
    entries = listing.entries[: options.limit]
    if options.labelled:
        return Listing(entries, listing.class_names, listing.skips)
    return Listing([entry._replace(label=-1) for entry in entries], (), listing.skips)


def _request(source: Source, listing: Listing, options: PackOptions) -> dict[str, Any]:
    """Return what the manifest must say for a set to be the one that is asked for."""
    identity = {"items": len(listing.entries), "digest": listing.digest()}
    return {
        "kind": source.kind,
        "source": {**source.describe(), **identity},
        "options": asdict(options) | {"shard_images": options.items_per_shard()},
    }


def _same_request(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Compare kind, content and options; where the source lies does not matter."""
    return _essence(one) == _essence(other)


def _essence(request: dict[str, Any]) -> bytes:
    return canonical_json([request["kind"], request["source"]["digest"], request["options"]])


def _check_destination(destination: Path) -> None:
    """Raise PackError unless the destination is new, empty, or was made by pack."""
    if destination.exists() and not destination.is_dir():
        raise PackError(f"the destination {destination} is a file; give a folder")
    known = (destination / MANIFEST).exists() or (destination / WORK).is_dir()
    if not known and destination.is_dir() and any(destination.iterdir()):
        raise PackError(f"the destination {destination} holds other files; give a new folder")


def _finished(destination: Path, request: dict[str, Any]) -> Manifest | None:
    """Return the whole set at the destination if it is the one asked for, None if there is none."""
    if not (destination / MANIFEST).exists():
        return None
    manifest = read_manifest(destination)
    found = {"kind": manifest.kind, "source": manifest.source, "options": manifest.options}
    if not _same_request(found, request):
        raise PackError(f"{destination} holds another set: {_difference(found, request)}")
    check_shard_sizes(destination, manifest)
    return manifest


def _claim(destination: Path, request: dict[str, Any]) -> None:
    """Note what is being packed here, or check that it is the same as in an interrupted run."""
    note = destination / WORK / "request.json"
    if not note.exists():
        with atomic_file(note) as file:
            file.write(canonical_json(request))
        return
    found = json.loads(note.read_bytes())
    if not _same_request(found, request):
        raise PackError(
            f"{destination} is an unfinished pack of another set: {_difference(found, request)}"
        )


def _difference(found: dict[str, Any], request: dict[str, Any]) -> str:
    advice = "give another destination, or remove that folder"
    if found["kind"] != request["kind"]:
        return f"kind {found['kind']}, not {request['kind']}; {advice}"
    for name, value in request["options"].items():
        if found["options"].get(name) != value:
            return f"{name}={found['options'].get(name)}, not {value}; {advice}"
    return (
        f"{found['source']['items']} items from {found['source']['path']}, not the"
        f" {request['source']['items']} now in {request['source']['path']}; {advice}"
    )


def _shard_ranges(num_entries: int, per_shard: int) -> list[range]:
    starts = range(0, num_entries, per_shard)
    return [range(start, min(start + per_shard, num_entries)) for start in starts]


def _write_shards(
    source: Source,
    listing: Listing,
    destination: Path,
    options: PackOptions,
    workers: int,
    max_skips: int | None,
) -> None:
    """Write the shards that have no record yet."""
    (destination / "shards").mkdir(exist_ok=True)
    ranges = _shard_ranges(len(listing.entries), options.items_per_shard())
    missing = [number for number in range(len(ranges)) if not _is_written(destination, number)]
    chosen = [entry for number in missing for entry in _slice(listing.entries, ranges[number])]
    done = len(listing.entries) - len(chosen)
    conversion = Conversion(
        resolution=options.resolution,
        image_format=options.image_format,
        quality=options.quality,
        min_edge=options.min_edge,
        upright=not source.published,
    )
    with (
        closing(converted(source, conversion, chosen, workers)) as items,
        Progress(f"packing {source.kind}", total=len(listing.entries), done=done) as progress,
    ):
        skips = 0
        for number in missing:
            keyed = zip(ranges[number], progress.counting(items), strict=False)
            record = _write_shard(destination, number, keyed, options)
            skips += len(record["skips"])
            _check_skips(skips, max_skips, destination)


def _is_written(destination: Path, number: int) -> bool:
    """Tell whether a shard and its record are there; the record comes last."""
    try:
        shard = Shard(**json.loads(_record_path(destination, number).read_bytes())["shard"])
        return (destination / shard.name).stat().st_size == shard.num_bytes
    except FileNotFoundError:
        return False


def _slice(entries: Sequence[Entry], span: range) -> Sequence[Entry]:
    return entries[span.start : span.stop]


def _write_shard(
    destination: Path,
    number: int,
    items: Iterator[tuple[int, Packed | Skip]],
    options: PackOptions,
) -> dict[str, Any]:
    """Write one shard, then its record, which stands for a finished shard."""
    name = _shard_name(number)
    for left_over in (destination / name).parent.glob(f".{Path(name).name}.*.tmp"):
        left_over.unlink()
    skips: list[Skip] = []
    with atomic_file(destination / name) as file:
        writer = ShardWriter(file, options.image_format)
        for key, item in items:
            if isinstance(item, Skip):
                skips.append(item)
            else:
                writer.add(f"{key:09d}", item.encoded, item.label)
        sha256 = writer.finish()
    record = {
        "shard": asdict(Shard(name, writer.num_bytes, sha256, len(writer.samples))),
        "samples": [list(asdict(sample).values()) for sample in writer.samples],
        "skips": skips,
    }
    with atomic_file(_record_path(destination, number)) as file:
        file.write(canonical_json(record))
    return record


def _join(
    destination: Path,
    listing: Listing,
    options: PackOptions,
    request: dict[str, Any],
    max_skips: int | None,
) -> Manifest:
    """Make index, skip list and manifest from the shards' records."""
    count = len(_shard_ranges(len(listing.entries), options.items_per_shard()))
    records = [json.loads(_record_path(destination, n).read_bytes()) for n in range(count)]
    skips = [*listing.skips, *(Skip(*skip) for record in records for skip in record["skips"])]
    _check_skips(len(skips), max_skips, destination)
    index, digest = _index(records, options, listing.class_names)
    if not len(index):
        raise PackError(f"no image of the source can be used; the first: {': '.join(skips[0])}")
    _write_skips(destination, skips)
    labels = index["label"][index["label"] >= 0]
    manifest = Manifest(
        **request,
        num_images=len(index),
        resolution=options.resolution,
        class_names=listing.class_names,
        class_counts=tuple(np.bincount(labels, minlength=len(listing.class_names)).tolist()),
        shards=tuple(Shard(**record["shard"]) for record in records),
        index_sha256=write_index(destination, index),
        skipped=dict(sorted(Counter(skip.reason.partition(":")[0] for skip in skips).items())),
        digest=digest,
    )
    check_shard_sizes(destination, manifest)
    write_manifest(destination, manifest)
    return manifest


def _index(
    records: Sequence[dict[str, Any]], options: PackOptions, class_names: Sequence[str]
) -> tuple[Index, str]:
    """Return the set's index, and the digest of its content."""
    rows = []
    digest = hashlib.sha256(canonical_json([options.resolution, list(class_names)]))
    for number, record in enumerate(records):
        for offset, length, label, crc32, blake2b in record["samples"]:
            rows.append((offset, number, length, label, crc32))
            digest.update(f"{blake2b}{label}\n".encode())
    return np.array(rows, INDEX_ROW), digest.hexdigest()


def _write_skips(destination: Path, skips: Sequence[Skip]) -> None:
    with atomic_file(destination / SKIPPED) as file:
        for skip in skips:
            file.write(json.dumps(skip._asdict()).encode() + b"\n")


def _check_skips(count: int, max_skips: int | None, destination: Path) -> None:
    if max_skips is not None and count > max_skips:
        raise PackError(
            f"{count} items cannot be used, more than max_skips={max_skips};"
            f" the reasons are in {destination / WORK}; raise --max-skips to leave them out"
        )


def _shard_name(number: int) -> str:
    return f"shards/{number:06d}.tar"


def _record_path(destination: Path, number: int) -> Path:
    return destination / WORK / f"{number:06d}.json"
