"""Joining finished shards into sets: index, skip list, manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.pack.options import NothingUsable, PackError
from data_pipelines.pack.shard_writer import ShardRecord
from data_pipelines.packed.manifest import (
    INDEX,
    INDEX_ROW,
    MANIFEST,
    SKIPPED,
    Index,
    Manifest,
    Shard,
    check_shard_sizes,
    write_index,
    write_manifest,
)
from data_pipelines.sources.base import Entry, Listing, Skip, count_reasons, printable
from models.safe_files.atomic import atomic_file, remove_left_overs
from models.safe_files.documents import canonical_json

WINDOW_SHARDS = 8
"""Shards that remote sets keep in use: enough to mix classes well, few enough for a cache."""

Place = tuple[int, int]
"""A sample's shard, and its row within the shard's record."""


def join(
    records: Sequence[ShardRecord],
    listing: Listing,
    set_dirs: Mapping[int, Path],
    request: Mapping[str, Any],
    max_skips: int | None,
) -> dict[Path, Manifest]:
    """Write index, skip list and manifest of each resolution's set; return the manifests.

    Raises:
        PackError: Too many items were skipped, or all.
        DatasetError: A shard is missing.
    """
    places, duplicates = _places(records, listing, bool(request["options"]["keep_duplicates"]))
    skips = [*listing.skips, *(skip for record in records for skip in record.skips), *duplicates]
    check_skips(sum(skip.usable for skip in skips), max_skips)
    if not places:
        reason = f"; the first: {printable(': '.join(skips[0]))}" if skips else ""
        source = request["source"]["path"]
        raise NothingUsable(f"no image of {source} can be used{reason}")
    return {
        set_dir: _write_set(set_dir, resolution, records, places, listing, request, skips)
        for resolution, set_dir in set_dirs.items()
    }


def _write_set(
    set_dir: Path,
    resolution: int,
    records: Sequence[ShardRecord],
    places: Sequence[Place],
    listing: Listing,
    request: Mapping[str, Any],
    skips: Sequence[Skip],
) -> Manifest:
    for name in (MANIFEST, INDEX, SKIPPED):  # of a run that was killed here
        remove_left_overs(set_dir / name)
    index, digest = _index(records, places, resolution, listing.class_names)
    with atomic_file(set_dir / SKIPPED) as file:
        for skip in skips:
            named = {"name": printable(skip.name), "reason": printable(skip.reason)}
            file.write(json.dumps(named).encode() + b"\n")
    labels = index["label"][index["label"] >= 0]
    manifest = Manifest(
        **request,
        num_images=len(index),
        resolution=resolution,
        class_names=listing.class_names,
        class_counts=tuple(np.bincount(labels, minlength=len(listing.class_names)).tolist()),
        shards=tuple(
            Shard(shard_name(n), r.num_bytes[resolution], r.sha256[resolution], len(r.items))
            for n, r in enumerate(records)
        ),
        index_sha256=write_index(set_dir, index),
        skipped=count_reasons(skips),
        digest=digest,
        shuffle_window=min(len(index), WINDOW_SHARDS * max(len(r.items) for r in records)),
        enlarged=sum(records[shard].is_enlarged(row, resolution) for shard, row in places),
    )
    check_shard_sizes(set_dir, manifest)
    write_manifest(set_dir, manifest)
    return manifest


def _places(
    records: Sequence[ShardRecord], listing: Listing, keep_duplicates: bool
) -> tuple[list[Place], list[Skip]]:
    """Return the places of the set's samples, in order, and the duplicates that are skipped."""
    places: list[Place] = []
    duplicates: list[Skip] = []
    first: dict[str, Entry] = {}
    for shard, record in enumerate(records):
        for row, item in enumerate(record.items):
            entry = listing.entries[item]
            original = entry if keep_duplicates else first.setdefault(record.content(row), entry)
            if original is entry:
                places.append((shard, row))
            else:
                duplicates.append(Skip(entry.name, _duplicate_reason(entry, original, listing)))
    return places, duplicates


def _duplicate_reason(entry: Entry, original: Entry, listing: Listing) -> str:
    if entry.label == original.label:
        return f"duplicate: equals {original.name}"
    name = listing.class_names[original.label]
    return f"duplicate of another class: equals {original.name} of {name!r}"


def _index(
    records: Sequence[ShardRecord],
    places: Sequence[Place],
    resolution: int,
    class_names: Sequence[str],
) -> tuple[Index, str]:
    """Return a set's index, and the digest of its content."""
    rows = []
    digest = hashlib.sha256(canonical_json([resolution, list(class_names)]))
    for shard, row in places:
        sample = records[shard].samples[resolution][row]
        rows.append((sample.offset, shard, sample.length, sample.label, sample.crc32))
        digest.update(f"{sample.blake2b}{sample.label}\n".encode())
    return np.array(rows, INDEX_ROW), digest.hexdigest()


def shard_name(number: int) -> str:
    """Return the path of a shard within its set."""
    return f"shards/{number:06d}.tar"


def check_skips(count: int, max_skips: int | None) -> None:
    """Raise PackError if too many items are skipped."""
    if max_skips is not None and count > max_skips:
        raise PackError(
            f"{count} items cannot be used, more than max_skips={max_skips};"
            " raise --max-skips to skip them, or fix the source"
        )
