"""Checking a packed set: every byte against the manifest, every image by decoding it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipelines.images import BadImage
from data_pipelines.packed.beton import beton_problem
from data_pipelines.packed.manifest import index_problem
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.progress import Progress
from models.safe_files.transient import file_sha256


@dataclass
class Report:
    """What a check found.

    Attributes:
        problems: One line each: the file, the sample if known, and what is wrong.
        histogram: Number of pixels by channel and value, int64 [3, 256]; zero without decoding.
    """

    problems: list[str] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))

    def mean_and_std(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation of each channel, in units of 0..255."""
        values = np.arange(256, dtype=np.float64)
        counts = self.histogram.sum(1)
        mean = self.histogram @ values / counts
        variance = self.histogram @ values**2 / counts - mean**2
        return mean, np.sqrt(np.maximum(variance, 0))


def check(path: Path, *, workers: int = 1, decode: bool = True) -> Report:
    """Read a complete set and compare it with its manifest.

    Args:
        path: Directory of the set.
        workers: Threads; each takes a shard at a time.
        decode: Decode the images too, which is slower and fills the histogram.

    Raises:
        DatasetError: The manifest or the index cannot be read at all.
    """
    images = ShardedImages(path, check_sizes=False, check_index=False)
    report = Report()
    index_is_wrong = index_problem(path, images.manifest, images.index)
    if index_is_wrong:
        report.problems.append(f"{images.manifest.index_name}: {index_is_wrong}")
    elif _class_counts(images) != images.manifest.class_counts:
        report.problems.append(
            f"{images.manifest.index_name}: its labels do not match the counts in the manifest"
        )
    problem = None if images.manifest.only_beton else beton_problem(path, images.manifest)
    if problem is not None:
        report.problems.append(problem)
    shards = range(len(images.manifest.shards))
    total = len(images)
    with ThreadPoolExecutor(workers) as pool, Progress("checking", total=total) as progress:
        check_one = _check_bytes if index_is_wrong else _check_shard
        for part in pool.map(lambda number: check_one(images, number, decode), shards):
            report.problems += part.problems
            report.histogram += part.histogram
            progress.advance(total // len(shards))
    images.close()
    return report


def _class_counts(images: ShardedImages) -> tuple[int, ...]:
    labels = images.index["label"][images.index["label"] >= 0]
    return tuple(np.bincount(labels, minlength=len(images.manifest.class_names)).tolist())


def _check_bytes(images: ShardedImages, number: int, decode: bool) -> Report:
    """Check a shard without the index, which is damaged and cannot tell where samples lie."""
    del decode
    shard = images.manifest.shards[number]
    path = images.path / shard.name
    if not path.is_file():
        return Report([f"{shard.name}: the file is missing"])
    intact = path.stat().st_size == shard.num_bytes and file_sha256(path) == shard.sha256
    return Report([] if intact else [f"{shard.name}: damaged"])


def _check_shard(images: ShardedImages, number: int, decode: bool) -> Report:
    report = Report()
    shard = images.manifest.shards[number]
    path = images.path / shard.name
    if not path.is_file():
        report.problems.append(f"{shard.name}: the file is missing")
        return report
    size = path.stat().st_size
    if size != shard.num_bytes:
        report.problems.append(f"{shard.name}: {size} bytes, the manifest says {shard.num_bytes}")
    damaged = list(_damaged_samples(images, number, decode, report.histogram))
    report.problems += damaged
    if size == shard.num_bytes and not damaged and file_sha256(path) != shard.sha256:
        report.problems.append(f"{shard.name}: damaged outside the images (tar headers or labels)")
    return report


def _damaged_samples(
    images: ShardedImages, number: int, decode: bool, histogram: NDArray[np.int64]
) -> Iterator[str]:
    """Yield a line for each damaged sample of a shard; add the others to the histogram."""
    first, last = np.searchsorted(images.index["shard"], [number, number + 1])
    for index in range(first, last):
        try:
            if decode:
                pixels = images.decode(index).numpy().reshape(3, -1)
                histogram += np.stack([np.bincount(channel, minlength=256) for channel in pixels])
            else:
                images.read(index)
        except BadImage as error:
            yield f"{images.locate(index)}: {error}"
