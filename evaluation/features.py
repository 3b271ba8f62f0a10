"""Feature extraction over ranks: resumable, and the same bits on any number of ranks.

A set is cut into batches at fixed indices. Rank r takes every W-th batch that is not on disk yet;
each finished batch is one file, so a kill loses at most the batches in flight, and resuming on
another number of ranks changes nothing. No collective runs inside the loop.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector, check_finite
from evaluation.image_sets.image_set import ImageSet
from evaluation.image_sets.npz import read_npz, write_npz
from evaluation.metrics.statistics import (
    FeatureSet,
    FloatArray,
    Gaussian,
    Moments,
    evenly_spread,
    moments_of,
)
from evaluation.progress import Progress

STREAMING_IMAGES = 100_000
"""Of sets above this size only moments and selected features are stored, not every feature."""


def extract(
    images: ImageSet,
    identity: dict[str, Any],
    detector: Detector,
    work_dir: Path,
    world: World,
    *,
    batch_size: int = 64,
    num_kept: int = 10_000,
    title: str = "features",
) -> FeatureSet:
    """Return the features of a set of images, computing what is missing in `work_dir`.

    Args:
        images: The set.
        identity: Its identity, the same on all ranks (computing it reads every file).
        detector: The detector.
        work_dir: The batches of this set and detector get a sub-directory of their own.
        world: The ranks that share the work (and the directory).
        batch_size: Images per batch.
        num_kept: Features stored, evenly spread, where the set is too large to store all.
        title: For the progress display.

    Raises:
        ValueError: An image cannot be decoded, or a feature is not finite; the job fails.
    """
    made_of = [identity["digest"], detector.identity, list(detector.widths), batch_size]
    name = short_hash(made_of)
    store: BatchStore | MomentStore
    if len(images) > STREAMING_IMAGES:
        selected = evenly_spread(len(images), num_kept)
        store = MomentStore(work_dir / f"moments-{name}", detector.widths, selected)
    else:
        store = BatchStore(work_dir / f"features-{name}", detector.widths)
    _fill(store, images, detector, world, batch_size, title)
    features = store.collect(len(images), {"images": identity, "detector": detector.identity})
    return dataclasses.replace(features, labels=images.labels(features.selected))


def _fill(
    store: BatchStore | MomentStore,
    images: ImageSet,
    detector: Detector,
    world: World,
    batch_size: int,
    title: str,
) -> None:
    """Compute the batches that `store` lacks, each on one rank."""
    total = len(images)
    starts = range(0, total, batch_size)
    done = world.broadcast_object(store.done() if world.rank == 0 else None)
    missing = [start for start in starts if start not in done]
    progress = Progress(min(len(missing) * batch_size, total), title, visible=world.rank == 0)
    for turn, start in enumerate(missing[world.rank :: world.size]):
        indices = range(start, min(start + batch_size, total))
        taps = detector(images.batch(indices))
        for tap, values in taps.items():
            check_finite(values, indices, f"{detector.identity['name']}, tap {tap}")
        store.write(start, indices, {tap: values.numpy() for tap, values in taps.items()})
        others = min(world.size, len(missing) - turn * world.size)
        progress.add(others * batch_size)
    store.flush()
    world.barrier()


class BatchStore:
    """One file of features per batch; exact on any number of ranks."""

    def __init__(self, path: Path, widths: dict[str, int]) -> None:
        self.dir, self.widths = path, widths

    def done(self) -> set[int]:
        """Return the first indices of the batches on disk."""
        return {int(path.stem) for path in self.dir.glob("[0-9]*.npz")}

    def write(self, start: int, indices: Sequence[int], taps: dict[str, FloatArray]) -> None:
        """Store a batch."""
        write_npz(self.dir / f"{start:09d}.npz", {"indices": np.array(indices), **taps})

    def flush(self) -> None:
        """Do nothing: every batch is on disk already."""

    def collect(self, n: int, meta: dict[str, Any]) -> FeatureSet:
        """Return the complete set, in index order, after checking that each index is there once."""
        features = {tap: np.empty((n, width), np.float32) for tap, width in self.widths.items()}
        seen = np.zeros(n, np.int64)
        for path in sorted(self.dir.glob("[0-9]*.npz")):
            arrays = read_npz(path)
            indices = arrays.pop("indices")
            np.add.at(seen, indices, 1)
            for tap, values in arrays.items():
                features[tap][indices] = values
        check_counts(seen, self.dir)
        gaussians = {tap: moments_of(values).gaussian() for tap, values in features.items()}
        return FeatureSet(meta, n, gaussians, features, range(n))


class MomentStore:
    """Moments of all batches, features of selected indices: for very large sets.

    Each process writes one file that grows: which batches it holds, their moments, the selected
    features. Files of killed or finished processes are merged at the end.
    """

    def __init__(
        self, path: Path, widths: dict[str, int], selected: Sequence[int], every: int = 64
    ) -> None:
        self.dir, self.widths, self.selected, self.every = path, widths, set(selected), every
        self._starts: list[int] = []
        self._moments = {tap: Moments.empty(width) for tap, width in widths.items()}
        self._kept: dict[str, list[FloatArray]] = {tap: [] for tap in widths}
        self._indices: list[int] = []
        self._path: Path | None = None

    def done(self) -> set[int]:
        """Return the first indices of the batches in all files."""
        files = self.dir.glob("part-*.npz")
        return {int(s) for path in files for s in read_npz(path, ["starts"])["starts"]}

    def write(self, start: int, indices: Sequence[int], taps: dict[str, FloatArray]) -> None:
        """Count a batch in; the file is written after every `every` batches."""
        rows = [row for row, index in enumerate(indices) if index in self.selected]
        for tap, values in taps.items():
            self._moments[tap].add(values)
            self._kept[tap].append(values[rows])
        self._indices += [indices[row] for row in rows]
        self._starts.append(start)
        if len(self._starts) % self.every == 0:
            self.flush()

    def flush(self) -> None:
        """Write this process' file."""
        if not self._starts:
            return
        self._path = self._path or self.dir / f"part-{self._starts[0]:09d}.npz"
        arrays = {"starts": np.array(self._starts), "indices": np.array(self._indices)}
        for tap, moments in self._moments.items():
            arrays[f"n_{tap}"] = np.array(moments.n)
            arrays[f"mean_{tap}"], arrays[f"scatter_{tap}"] = moments.mean, moments.scatter
            arrays[f"features_{tap}"] = np.concatenate(self._kept[tap])
        write_npz(self._path, arrays)

    def collect(self, n: int, meta: dict[str, Any]) -> FeatureSet:
        """Merge all files and check that every image was counted once."""
        parts = [read_npz(path) for path in sorted(self.dir.glob("part-*.npz"))]
        starts = np.concatenate([part["starts"] for part in parts])
        indices = np.concatenate([part["indices"] for part in parts]).astype(np.int64)
        order = np.argsort(indices)
        gaussians: dict[str, Gaussian] = {}
        features: dict[str, FloatArray] = {}
        for tap, width in self.widths.items():
            moments = Moments.empty(width)
            for part in parts:
                count = int(part[f"n_{tap}"])
                moments.merge(Moments(count, part[f"mean_{tap}"], part[f"scatter_{tap}"]))
            if moments.n != n or len(set(starts.tolist())) != len(starts):
                raise ValueError(f"{self.dir} counts {moments.n} of {n} images; delete it")
            gaussians[tap] = moments.gaussian()
            features[tap] = np.concatenate([part[f"features_{tap}"] for part in parts])[order]
        return FeatureSet(meta, n, gaussians, features, indices[order].tolist())


def check_counts(seen: NDArray[np.int64], path: Path) -> None:
    """Raise ValueError unless every index was seen exactly once."""
    if (seen != 1).any():
        index = int(np.flatnonzero(seen != 1)[0])
        raise ValueError(
            f"{path} holds image {index} {int(seen[index])} times instead of once; delete the"
            " directory and run again"
        )


def short_hash(document: Any) -> str:
    """Return 12 hexadecimal digits that identify a JSON document."""
    text = json.dumps(document, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
