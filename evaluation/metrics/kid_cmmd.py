"""Maximum mean discrepancies: KID (polynomial kernel) and CMMD (Gaussian kernel).

Kernels and sums in float64, on the device, in blocks of bounded size that the ranks share; the
blocks' sums are added in one order (docs/reference/evaluation.md#3.5, #3.7, #5.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.runtime.world import World
from evaluation.metrics.sharing import alone, shared
from evaluation.metrics.statistics import FloatArray

BLOCK = 2048
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0

Kernel = Callable[[Tensor, Tensor], Tensor]


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return (x.y / d + 1)^3 of float64 rows, [N, M]."""
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return exp(-|x - y|^2 / (2 * 10^2)) of float64 rows, [N, M]."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * (x @ y.T)
    return squares.div_(-2 * CMMD_SIGMA**2).exp_()


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
    device = world.device if world is not None else "cpu"
    a, b = (torch.from_numpy(np.ascontiguousarray(f)).to(device) for f in (x, y))
    rows_a, rows_b = _blocks(len(a)), _blocks(len(b))

    def sums(number: int) -> list[float]:
        """Return the sums of k(x, x), of its diagonal, of k(x, y), k(y, y) and its diagonal."""
        if number < len(rows_a):
            rows = a[rows_a[number]].double()
            across = sum((kernel(rows, b[columns].double()).sum() for columns in rows_b), zero)
            parts = [*_own_sums(a, kernel, rows_a, number), across, zero, zero]
        else:
            parts = [zero, zero, zero, *_own_sums(b, kernel, rows_b, number - len(rows_a))]
        values: list[float] = torch.stack(parts).tolist()
        return values

    zero = torch.zeros((), dtype=torch.float64, device=device)
    parts = shared(sums, len(rows_a) + len(rows_b), world)
    xx, diagonal_x, xy, yy, diagonal_y = np.array(parts).sum(0).tolist()
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
    world: World | None = None,
) -> NDArray[np.float64]:
    """Return the unbiased KID of random subsets, [subsets].

    Args:
        gen: Generated features [N, D].
        ref: Reference features [M, D].
        subsets: Number of subsets.
        size: Samples of each; per subset, generated indices are drawn first.
        seed: Seed of numpy's RandomState (torch-fidelity: 2020).
        cut_size: Reduce `size` to the smaller set (StyleGAN) instead of raising.
        world: The ranks, which share the subsets.

    Raises:
        ValueError: A set is smaller than a subset.
    """
    size = min(size, len(gen), len(ref)) if cut_size else size
    if size > min(len(gen), len(ref)) or size < 2:
        raise ValueError(f"KID subsets of {size} need that many samples ({len(gen)}, {len(ref)})")
    generator = np.random.RandomState(seed)
    drawn = [
        tuple(generator.choice(len(f), size, replace=False) for f in (gen, ref))
        for _ in range(subsets)
    ]
    own_world = alone(world) if world is not None else None

    def of_subset(number: int) -> float:
        x, y = (features[rows] for features, rows in zip((gen, ref), drawn[number], strict=True))
        return kernel_means(x, y, polynomial_kernel, own_world).unbiased()

    return np.array(shared(of_subset, subsets, world))


def cmmd(gen: FloatArray, ref: FloatArray, world: World | None = None) -> float:
    """Return 1000 times the biased Gaussian MMD^2 of unit-norm embeddings."""
    return CMMD_SCALE * kernel_means(gen, ref, gaussian_kernel, world).biased()


def _own_sums(
    x: Tensor, kernel: Kernel, blocks: Sequence[slice], number: int
) -> tuple[Tensor, Tensor]:
    """Return the sums of k(x, x) over a block of rows and its mirror image, and of the diagonal.

    k is symmetric: blocks below the diagonal are left out, and those above it count twice.
    """
    rows = x[blocks[number]].double()
    values = kernel(rows, rows)
    total, diagonal = values.sum(), values.trace()
    for columns in blocks[number + 1 :]:
        total = total + 2 * kernel(rows, x[columns].double()).sum()
    return total, diagonal


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
