"""Maximum mean discrepancies: KID (polynomial kernel) and CMMD (Gaussian kernel).

Kernels and sums in float64, in blocks of bounded size
(docs/reference/evaluation.md#3.5, #3.7, #5.6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_train.runtime.world import World
from evaluation.metrics.statistics import FloatArray

BLOCK = 2048
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0

Kernel = Callable[[FloatArray, FloatArray], NDArray[np.float64]]


def polynomial_kernel(x: FloatArray, y: FloatArray) -> NDArray[np.float64]:
    """Return (x.y / d + 1)^3 of float64 rows, [N, M]."""
    kernel: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def gaussian_kernel(x: FloatArray, y: FloatArray) -> NDArray[np.float64]:
    """Return exp(-|x - y|^2 / (2 * 10^2)) of float64 rows, [N, M]."""
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * (x @ y.T)
    kernel: NDArray[np.float64] = np.exp(-squares / (2 * CMMD_SIGMA**2))
    return kernel


@dataclass(frozen=True)
class KernelMeans:
    """Sums of a kernel over all pairs of two sets, and over the diagonals."""

    xx: float
    yy: float
    xy: float
    diagonal_x: float
    diagonal_y: float
    n: int
    m: int

    def unbiased(self) -> float:
        """Return MMD^2 without the pairs of a sample with itself."""
        xx = (self.xx - self.diagonal_x) / (self.n * (self.n - 1))
        yy = (self.yy - self.diagonal_y) / (self.m * (self.m - 1))
        return xx + yy - 2 * self.xy / (self.n * self.m)

    def biased(self) -> float:
        """Return MMD^2 over all pairs (V-statistic)."""
        return self.xx / self.n**2 + self.yy / self.m**2 - 2 * self.xy / (self.n * self.m)


def kernel_means(
    x: FloatArray, y: FloatArray, kernel: Kernel, world: World | None = None
) -> KernelMeans:
    """Sum a kernel over all pairs; row blocks are shared among the ranks of `world`."""
    if min(len(x), len(y)) < 2:
        raise ValueError(f"{len(x)} and {len(y)} samples are too few for a kernel distance")
    parts = np.array([_rows_sums(x, y, kernel, rows) for rows in _owned(len(x), world)])
    other = np.array([_rows_sums(y, None, kernel, rows) for rows in _owned(len(y), world)])
    sums = np.concatenate([parts.reshape(-1, 3).sum(0), other.reshape(-1, 3).sum(0)])
    if world is not None:
        sums = np.array(world.gather_objects(sums)).sum(0)
    xx, diagonal_x, xy, yy, diagonal_y, _ = (float(v) for v in sums)
    return KernelMeans(xx, yy, xy, diagonal_x, diagonal_y, len(x), len(y))


def kid(gen: FloatArray, ref: FloatArray, world: World | None = None) -> float:
    """Return the unbiased KID over the full sets; no subset noise."""
    return kernel_means(gen, ref, polynomial_kernel, world).unbiased()


def kid_subsets(
    gen: FloatArray,
    ref: FloatArray,
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
    cut_size: bool = False,
) -> NDArray[np.float64]:
    """Return the unbiased KID of random subsets, [subsets].

    Args:
        gen: Generated features [N, D].
        ref: Reference features [M, D].
        subsets: Number of subsets.
        size: Samples of each; per subset, generated indices are drawn first.
        seed: Seed of numpy's RandomState (torch-fidelity: 2020).
        cut_size: Reduce `size` to the smaller set (StyleGAN) instead of raising.

    Raises:
        ValueError: A set is smaller than a subset.
    """
    size = min(size, len(gen), len(ref)) if cut_size else size
    if size > min(len(gen), len(ref)) or size < 2:
        raise ValueError(f"KID subsets of {size} need that many samples ({len(gen)}, {len(ref)})")
    generator = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x = gen[generator.choice(len(gen), size, replace=False)]
        y = ref[generator.choice(len(ref), size, replace=False)]
        values.append(kernel_means(x, y, polynomial_kernel).unbiased())
    return np.array(values)


def cmmd(gen: FloatArray, ref: FloatArray, world: World | None = None) -> float:
    """Return 1000 times the biased Gaussian MMD^2 of unit-norm embeddings."""
    return CMMD_SCALE * kernel_means(gen, ref, gaussian_kernel, world).biased()


def _rows_sums(
    x: FloatArray, y: FloatArray | None, kernel: Kernel, rows: slice
) -> tuple[float, float, float]:
    """Return the sums of k(x_rows, x), of its diagonal, and of k(x_rows, y)."""
    block = np.asarray(x[rows], np.float64)
    own = cross = diagonal = 0.0
    for columns in _blocks(len(x)):
        values = kernel(block, np.asarray(x[columns], np.float64))
        own += float(values.sum())
        if columns == rows:
            diagonal = float(np.trace(values))
    for columns in _blocks(len(y) if y is not None else 0):
        assert y is not None
        cross += float(kernel(block, np.asarray(y[columns], np.float64)).sum())
    return own, diagonal, cross


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def _owned(n: int, world: World | None) -> list[slice]:
    blocks = list(_blocks(n))
    return blocks if world is None else blocks[world.rank :: world.size]
