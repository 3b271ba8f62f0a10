"""What ranks write while they compute the features of a tap, and how it is merged.

A set is cut into batches at fixed indices, and each batch is computed by one rank. Finished batches
survive kills; the merged features are the same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.image_sets.npz import AnyArray, read_npz, write_npz
from evaluation.metrics.statistics import BLOCK_ROWS, FloatArray, Gaussian, Moments, moments_of

FLUSH_BATCHES = 64
"""Batches after which a rank writes the moments that it has summed up."""


class TapBatches(Protocol):
    """The features of one tap, batch by batch."""

    def done(self) -> set[int]:
        """Return the first indices of the batches on disk."""

    def write(self, start: int, indices: Sequence[int], values: FloatArray) -> None:
        """Store a batch: float32 [B, D] of these indices, the first of which is `start`."""

    def flush(self) -> None:
        """Write what is not on disk yet."""

    def collect(self, n: int) -> tuple[Gaussian, FloatArray, NDArray[np.int64]]:
        """Return moments over all n images, features [M, D], and which images these M are.

        Raises:
            ValueError: An image is not there exactly once.
        """


class BatchStore:
    """One file of features per batch: every feature is stored."""

    def __init__(self, path: Path, width: int) -> None:
        self.dir, self.width = path, width

    def done(self) -> set[int]:
        """Return the first indices of the batches on disk."""
        return {int(path.stem) for path in self.dir.glob("[0-9]*.npz")}

    def write(self, start: int, indices: Sequence[int], values: FloatArray) -> None:
        """Store a batch."""
        write_npz(self.dir / f"{start:09d}.npz", {"indices": np.array(indices), "values": values})

    def flush(self) -> None:
        """Do nothing: every batch is on disk already."""

    def collect(self, n: int) -> tuple[Gaussian, FloatArray, NDArray[np.int64]]:
        """Return the moments and all features, in index order."""
        features = np.empty((n, self.width), np.float32)
        seen = np.zeros(n, np.int64)
        for path in sorted(self.dir.glob("[0-9]*.npz")):
            arrays = read_npz(path)
            np.add.at(seen, arrays["indices"], 1)
            features[arrays["indices"]] = arrays["values"]
        check_counts(seen, self.dir)
        return moments_of(features).gaussian(), features, np.arange(n)


class MomentStore:
    """Moments of all batches, features of selected indices: for very large sets.

    Each process writes one file that grows: which batches it holds, their moments, the selected
    features. Files of killed or finished processes are merged at the end.
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

    def done(self) -> set[int]:
        """Return the first indices of the batches in all files."""
        files = self.dir.glob("part-*.npz")
        return {int(s) for path in files for s in read_npz(path, ["starts"])["starts"]}

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
        self._path = self._path or self.dir / f"part-{self._starts[0]:09d}.npz"
        arrays: dict[str, AnyArray] = {
            "starts": np.array(self._starts),
            "indices": np.array(self._indices, np.int64),
            "n": np.array(self._moments.n),
            "mean": self._moments.mean,
            "scatter": self._moments.scatter,
            "features": np.concatenate(self._kept),
        }
        write_npz(self._path, arrays)

    def collect(self, n: int) -> tuple[Gaussian, FloatArray, NDArray[np.int64]]:
        """Merge all files and check that every image was counted once."""
        parts = [read_npz(path) for path in sorted(self.dir.glob("part-*.npz"))]
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


def check_counts(seen: NDArray[np.int64], path: Path) -> None:
    """Raise ValueError unless every index was seen exactly once."""
    if (seen != 1).any():
        index = int(np.flatnonzero(seen != 1)[0])
        raise ValueError(
            f"{path} holds image {index} {int(seen[index])} times instead of once; delete the"
            " directory and run again"
        )
