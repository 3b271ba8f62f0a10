"""Fill the store: one pass over the images, whatever detectors need them.

A set is cut into batches at fixed indices. Rank r takes every W-th batch that some tap lacks; each
finished batch is on disk, so a kill loses at most the batches in flight, and resuming on another
number of ranks changes nothing. No collective runs inside the loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector, check_finite
from evaluation.disk import dir_lock, file_lock
from evaluation.features.batches import TapBatches
from evaluation.features.store import NUM_KEPT, FeatureEntry, trim, use_path
from evaluation.image_sets.image_set import ImageSet
from evaluation.metrics.statistics import FeatureSet
from evaluation.overlap import ahead
from evaluation.progress import Progress


def extract(
    images: ImageSet,
    identity: dict[str, Any],
    detectors: Sequence[Detector],
    store: Path,
    world: World,
    *,
    batch_size: int = 64,
    num_kept: int = NUM_KEPT,
    title: str = "features",
) -> list[FeatureSet]:
    """Return the features of a set of images by each detector, computing what the store lacks.

    Args:
        images: The set.
        identity: Its identity, the same on all ranks (computing it reads every file).
        detectors: The detectors, restricted to the taps that are wanted.
        store: Directory of the features.
        world: The ranks that share the work (and the directory).
        batch_size: Images per batch.
        num_kept: Features stored, of all parts of the set, where the set is too large to store all.
        title: For the progress display.

    Raises:
        ValueError: An image cannot be decoded, or a feature is not finite; the job fails.
    """
    entries = [FeatureEntry(store, identity, d, batch_size, num_kept) for d in detectors]
    paths = sorted({entry.path for entry in entries})  # in one order: no deadlock
    with ExitStack() as uses:
        for path in paths:
            uses.enter_context(file_lock(use_path(path), world, shared=True))
        computed = bool(_missing(entries, world))
        if computed:
            _compute(entries, images, world, batch_size, title)
        sets = world.attempt(lambda: [entry.read() for entry in entries])
    if computed and world.rank == 0:
        trim(store, keep=paths)
    return [dataclasses.replace(s, labels=images.labels(s.selected)) for s in sets]


def _compute(
    entries: Sequence[FeatureEntry], images: ImageSet, world: World, batch_size: int, title: str
) -> None:
    """Compute what the entries lack; another job may be doing so, and is waited for."""
    with ExitStack() as locks:
        paths = sorted({entry.path for entry in entries})
        held = [locks.enter_context(dir_lock(path, world)) for path in paths]
        if missing := _missing(entries, world):  # else another job has computed it meanwhile
            _complete(entries, missing, images, world, batch_size, title, is_alone=all(held))


def _missing(entries: Sequence[FeatureEntry], world: World) -> list[tuple[int, list[str]]]:
    """Return what is not complete: taps by the number of their entry, as rank 0 sees it."""
    found = None
    if world.rank == 0:
        found = _lacking(entries)
    missing: list[tuple[int, list[str]]] = world.broadcast_object(found)
    return missing


def _lacking(entries: Sequence[FeatureEntry]) -> list[tuple[int, list[str]]]:
    """Return as `_missing`; what several requests ask for is listed once."""
    listed: set[tuple[Path, str]] = set()
    found = []
    for number, entry in enumerate(entries):
        taps = [tap for tap in entry.missing() if (entry.path, tap) not in listed]
        listed |= {(entry.path, tap) for tap in taps}
        if taps:
            found.append((number, taps))
    return found


def _complete(
    entries: Sequence[FeatureEntry],
    missing: Sequence[tuple[int, list[str]]],
    images: ImageSet,
    world: World,
    batch_size: int,
    title: str,
    *,
    is_alone: bool,
) -> None:
    """Compute the missing taps of all entries and merge them."""
    if world.rank == 0:
        for number, _ in missing:
            entries[number].begin()
    todo = [Unfinished.of(entries[number], taps) for number, taps in missing]
    files = _fill(todo, images, world, batch_size, title, is_alone=is_alone)
    merges = [
        (entries[number], tap, names[tap])
        for (number, taps), names in zip(missing, files, strict=True)
        for tap in taps
    ]
    for entry, tap, names in merges[world.rank :: world.size]:
        entry.finish(tap, names)
    world.barrier()


@dataclass(frozen=True)
class Unfinished:
    """A detector and the taps that it has to compute.

    Attributes:
        detector: The detector, restricted to those taps.
        taps: Where each tap's batches go.
    """

    detector: Detector
    taps: dict[str, TapBatches]

    @staticmethod
    def of(entry: FeatureEntry, taps: Sequence[str]) -> Unfinished:
        """Return the unfinished taps of an entry."""
        stores = {tap: entry.batches(tap) for tap in taps}
        return Unfinished(entry.detector.with_taps(taps), stores)

    def begin(self, *, is_alone: bool) -> tuple[dict[str, set[int]], dict[str, list[str]]]:
        """Return the first indices of the batches on disk, and the names of files, by tap."""
        found = {tap: batches.begin(is_alone=is_alone) for tap, batches in self.taps.items()}
        done = {tap: starts for tap, (starts, _) in found.items()}
        return done, {tap: names for tap, (_, names) in found.items()}

    def compute(self, images: Tensor, start: int, done: dict[str, set[int]]) -> dict[str, Tensor]:
        """Return the features of a batch, uint8 [B, 3, H, W], at the taps that lack it."""
        lacking = [tap for tap in self.taps if start not in done[tap]]
        if not lacking:
            return {}
        features = self.detector(images)
        return {tap: features[tap] for tap in lacking}

    def write(self, indices: range, features: dict[str, Tensor]) -> None:
        """Write the features of a batch; waits for the device to finish them."""
        for tap, values in features.items():
            on_cpu = values.cpu()
            check_finite(on_cpu, indices, f"{self.detector.identity['name']}, tap {tap}")
            self.taps[tap].write(indices.start, indices, on_cpu.numpy())


def _fill(
    todo: Sequence[Unfinished],
    images: ImageSet,
    world: World,
    batch_size: int,
    title: str,
    *,
    is_alone: bool,
) -> list[dict[str, list[str]]]:
    """Compute the batches that some tap lacks, each on one rank; return the names of all files.

    They are those that were there and those that the ranks say they wrote: a listing of a network
    file system may lack what other machines wrote just now.
    """
    total = len(images)
    found = [t.begin(is_alone=is_alone) for t in todo] if world.rank == 0 else None
    found = world.broadcast_object(found)
    done = [starts for starts, _ in found]
    everywhere = set.intersection(*(starts for taps in done for starts in taps.values()))
    missing = [start for start in range(0, total, batch_size) if start not in everywhere]
    progress = Progress(min(len(missing) * batch_size, total), title, visible=world.rank == 0)
    own = missing[world.rank :: world.size]
    computed = _computed(todo, done, images, [range(s, min(s + batch_size, total)) for s in own])
    for turn, _ in enumerate(ahead(_write, computed, threads=1)):
        others = min(world.size, len(missing) - turn * world.size)
        progress.add(others * batch_size)
    for unfinished in todo:
        for batches in unfinished.taps.values():
            batches.flush()
    return _all_names(todo, [names for _, names in found], world)


Computed = tuple[range, list[tuple[Unfinished, dict[str, Tensor]]]]
"""The images of a batch, and what detectors have computed of it."""


def _computed(
    todo: Sequence[Unfinished],
    done: Sequence[dict[str, set[int]]],
    images: ImageSet,
    batches: Sequence[range],
) -> Iterator[Computed]:
    """Yield the features of batches, still on the device, whose images are decoded ahead."""
    decoded = images.batches(batches)
    if any(unfinished.detector.device.type == "cuda" for unfinished in todo):
        decoded = ahead(Tensor.pin_memory, decoded, threads=1)
    for indices, batch in zip(batches, decoded, strict=True):
        pairs = zip(todo, done, strict=True)
        yield indices, [(u, u.compute(batch, indices.start, starts)) for u, starts in pairs]


def _write(computed: Computed) -> None:
    indices, features = computed
    for unfinished, by_tap in features:
        unfinished.write(indices, by_tap)


def _all_names(
    todo: Sequence[Unfinished], before: Sequence[dict[str, list[str]]], world: World
) -> list[dict[str, list[str]]]:
    written = [{tap: batches.written for tap, batches in t.taps.items()} for t in todo]
    by_rank = world.gather_objects(written)
    return [
        {tap: sorted({*names, *(n for each in by_rank for n in each[k][tap])})
         for tap, names in taps.items()}
        for k, taps in enumerate(before)
    ]  # fmt: skip
