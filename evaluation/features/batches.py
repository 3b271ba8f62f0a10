"""What ranks write while they compute the features of a tap, and how it is merged.

A set is cut into batches at fixed indices, and each batch is computed by one rank. Finished batches
survive kills; the merged features are the same on any number of ranks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.image_sets.npz import AnyArray, read_npz, write_npz
from evaluation.metrics.statistics import BLOCK_ROWS, FloatArray, Gaussian, Moments, moments_of
from models.safe_files.transient import DELAYS, TRANSIENT, retried

FLUSH_BATCHES = 64
"""Batches after which a rank writes the moments that it has summed up."""


PART = r"part-\d{9}(-[0-9a-f]{16})?\.npz"
"""Name of a file of moments; formerly without what tells processes apart."""
PART_ARRAYS = ("starts", "indices", "n", "mean", "scatter", "features")


class TapBatches(Protocol):
    """The features of one tap, batch by batch."""

    @property
    def written(self) -> set[str]:
        """Names of the files that this process has written."""

    def names(self) -> list[str]:
        """Return the names of the files on disk."""

    def done(self) -> set[int]:
        """Return the first indices of the batches on disk."""

    def begin(self, *, is_alone: bool) -> tuple[set[int], list[str]]:
        """Return the first indices of the batches on disk, and the files that they are taken of.

        Args:
            is_alone: Whether no other job can be writing the same now.
        """

    def write(self, start: int, indices: Sequence[int], values: FloatArray) -> None:
        """Store a batch: float32 [B, D] of these indices, the first of which is `start`."""

    def flush(self) -> None:
        """Write what is not on disk yet."""

    def collect(
        self, n: int, names: Sequence[str] | None = None
    ) -> tuple[Gaussian, FloatArray, NDArray[np.int64]]:
        """Return moments over all n images, features [M, D], and which images these M are.

        Args:
            n: Number of images.
            names: The files; null lists them. (A listing of a network file system may lack what
                other machines wrote just now.)

        Raises:
            ValueError: An image is not there exactly once.
        """


class BatchStore:
    """One file of features per batch: every feature is stored."""

    def __init__(self, path: Path, width: int) -> None:
        self.dir, self.width = path, width
        self.written: set[str] = set()

    def done(self) -> set[int]:
        """Return the first indices of the batches on disk."""
        return {int(name.removesuffix(".npz")) for name in self.names()}

    def names(self) -> list[str]:
        """Return the names of the files on disk."""
        return list_names(self.dir, re.compile(r"\d{9}\.npz"))

    def begin(self, *, is_alone: bool) -> tuple[set[int], list[str]]:
        """Return what is on disk; another job would write the same files."""
        del is_alone
        names = self.names()
        return {int(name.removesuffix(".npz")) for name in names}, names

    def write(self, start: int, indices: Sequence[int], values: FloatArray) -> None:
        """Store a batch."""
        arrays = {"indices": np.array(indices), "values": values}
        _write(self.dir / f"{start:09d}.npz", arrays)
        self.written.add(f"{start:09d}.npz")

    def flush(self) -> None:
        """Do nothing: every batch is on disk already."""

    def collect(
        self, n: int, names: Sequence[str] | None = None
    ) -> tuple[Gaussian, FloatArray, NDArray[np.int64]]:
        """Return the moments and all features, in index order."""
        features = np.empty((n, self.width), np.float32)
        seen = np.zeros(n, np.int64)
        for name in self.names() if names is None else names:
            path = self.dir / name
            arrays = read_part(path, ["indices", "values"])
            check_indices(path, arrays["indices"], n)
            check_rows(path, arrays["values"], len(arrays["indices"]), self.width)
            np.add.at(seen, arrays["indices"], 1)
            features[arrays["indices"]] = arrays["values"]
        check_counts(seen, self.dir)
        return moments_of(features).gaussian(), features, np.arange(n)


class MomentStore:
    """Moments of all batches, features of selected indices: for very large sets.

    Each process writes one file that grows: which batches it holds, their moments, the selected
    features. Files of killed or finished processes are merged at the end. Where other jobs may be
    writing at the same time, what is there is taken into a file of our own first.
    """

    def __init__(
        self, path: Path, width: int, selected: Sequence[int], every: int = FLUSH_BATCHES
    ) -> None:
        self.dir, self.width, self.every = path, width, every
        self._selected = set(selected)
        self._starts: list[int] = []
        self._moments = Moments.empty(width)
        self._block: list[FloatArray] = []
        self._kept: list[FloatArray] = []
        self._indices: list[int] = []
        self._path: Path | None = None

    @property
    def written(self) -> set[str]:
        """Names of the files that this process has written."""
        return {self._path.name} if self._path else set()

    def done(self) -> set[int]:
        """Return the first indices of the batches in all files."""
        return {start for name in self.names() for start in self._starts_in(name)}

    def _starts_in(self, name: str) -> list[int]:
        starts: list[int] = read_part(self.dir / name, ["starts"])["starts"].tolist()
        return starts

    def names(self) -> list[str]:
        """Return the names of the files on disk."""
        return list_names(self.dir, re.compile(PART))

    def begin(self, *, is_alone: bool) -> tuple[set[int], list[str]]:
        """Return what is on disk; a copy that is our own if another job may add to it.

        So, too, if a batch is there twice: two jobs that knew nothing of each other were killed.
        """
        names = self.names()
        starts = [s for name in names for s in self._starts_in(name)] if is_alone else []
        if is_alone and len(set(starts)) == len(starts):
            return set(starts), names
        for name in names:
            with contextlib.suppress(ValueError):  # it is gone: another job has merged it
                self._take(read_part(self.dir / name, PART_ARRAYS))
        self.flush()
        return set(self._starts), sorted(self.written)

    def _take(self, part: dict[str, AnyArray]) -> None:
        """Add another process' file to our own, unless they share a batch."""
        starts = part["starts"].tolist()
        if not set(starts) & set(self._starts):
            self._moments.merge(Moments(int(part["n"]), part["mean"], part["scatter"]))
            self._starts += starts
            self._indices += part["indices"].tolist()
            self._kept.append(part["features"])

    def _read(self, name: str, n: int) -> dict[str, AnyArray]:
        """Read a file and check its shapes."""
        path = self.dir / name
        part = read_part(path, PART_ARRAYS)
        check_indices(path, part["indices"], n)
        check_rows(path, part["features"], len(part["indices"]), self.width)
        check_rows(path, part["scatter"], self.width, self.width)
        check_rows(path, part["mean"][None], 1, self.width)
        return part

    def write(self, start: int, indices: Sequence[int], values: FloatArray) -> None:
        """Count a batch in; the file is written after every `every` batches."""
        rows = [row for row, index in enumerate(indices) if index in self._selected]
        self._block.append(values)
        if sum(map(len, self._block)) >= BLOCK_ROWS:  # one product for many small batches
            self._add_block()
        self._kept.append(values[rows])
        self._indices += [indices[row] for row in rows]
        self._starts.append(start)
        if len(self._starts) % self.every == 0:
            self.flush()

    def _add_block(self) -> None:
        if self._block:
            self._moments.add(np.concatenate(self._block))
        self._block = []

    def flush(self) -> None:
        """Write this process' file."""
        if not self._starts:
            return
        self._add_block()
        name = f"part-{self._starts[0]:09d}-{secrets.token_hex(8)}.npz"  # of no other process
        self._path = self._path or self.dir / name
        arrays: dict[str, AnyArray] = {
            "starts": np.array(self._starts),
            "indices": np.array(self._indices, np.int64),
            "n": np.array(self._moments.n),
            "mean": self._moments.mean,
            "scatter": self._moments.scatter,
            "features": np.concatenate(self._kept),
        }
        _write(self._path, arrays)

    def collect(
        self, n: int, names: Sequence[str] | None = None
    ) -> tuple[Gaussian, FloatArray, NDArray[np.int64]]:
        """Merge all files and check that every image was counted once."""
        parts = [self._read(name, n) for name in (self.names() if names is None else names)]
        starts = [start for part in parts for start in part["starts"].tolist()]
        moments = Moments.empty(self.width)
        for part in parts:
            moments.merge(Moments(int(part["n"]), part["mean"], part["scatter"]))
        if moments.n != n or len(set(starts)) != len(starts):
            raise ValueError(f"{self.dir} counts {moments.n} of {n} images; delete it")
        indices = np.concatenate([part["indices"] for part in parts]).astype(np.int64)
        order = np.argsort(indices)
        features = np.concatenate([part["features"] for part in parts])[order]
        return moments.gaussian(), features, indices[order]


def _write(path: Path, arrays: dict[str, AnyArray]) -> None:
    """Write a file; without locks, another job may remove the directory that it has emptied."""
    errors = TRANSIENT | {errno.ENOENT}
    retried(lambda: write_npz(path, arrays), f"writing {path}", errors=errors)


def list_names(directory: Path, pattern: re.Pattern[str]) -> list[str]:
    """Return the names in a directory, which need not exist, that match a pattern, in order."""
    try:
        names = retried(lambda: os.listdir(directory), f"listing {directory}")
    except FileNotFoundError:
        return []
    return sorted(filter(pattern.fullmatch, names))


def read_part(path: Path, names: Sequence[str]) -> dict[str, AnyArray]:
    """Read arrays of a finished file, which another rank may have written just now.

    Raises:
        ValueError: It is damaged, or lacks one.
    """
    for delay in DELAYS:
        if path.exists():
            break
        time.sleep(delay)
    arrays = read_npz(path, names)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no array {missing[0]}; delete it and run again")
    return arrays


def check_indices(path: Path, indices: AnyArray, n: int) -> None:
    """Raise ValueError unless indices are those of images."""
    numbers = indices.ndim == 1 and (indices.dtype.kind in "iu" or not len(indices))
    if not numbers or (len(indices) and not 0 <= indices.min() <= indices.max() < n):
        raise ValueError(
            f"{path} holds other images than the {n} of the set; delete it and run again"
        )


def check_rows(path: Path, rows: AnyArray, count: int, width: int) -> None:
    """Raise ValueError unless rows are finite numbers of the right shape."""
    if rows.shape != (count, width) or rows.dtype.kind != "f" or not np.isfinite(rows).all():
        raise ValueError(
            f"{path} holds {rows.dtype} {list(rows.shape)}, expected finite [{count}, {width}];"
            " delete it and run again"
        )


def check_counts(seen: NDArray[np.int64], path: Path) -> None:
    """Raise ValueError unless every index was seen exactly once."""
    if (seen != 1).any():
        index = int(np.flatnonzero(seen != 1)[0])
        raise ValueError(
            f"{path} holds image {index} {int(seen[index])} times instead of once; delete the"
            " directory and run again"
        )
