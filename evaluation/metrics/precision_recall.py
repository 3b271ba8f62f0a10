"""Precision, recall, density and coverage: exact, in bounded memory, over ranks.

Blocks of squared distances are screened by float32 matrix products of centred features; every
decision that float32 rounding could turn (which point is the k-th nearest, whether a point close to
a ball's surface lies inside) is taken again from float64 differences. So results do not depend on
block sizes, ranks or kernels. A point is not its own neighbour; exact duplicates
are (docs/reference/evaluation.md#3.3, #3.4, #5.5).

The second half of the file repeats the half-precision arithmetic of ADM's and StyleGAN's code, only
to reproduce published numbers: it moves precision and recall by up to 0.01.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.runtime.world import World
from evaluation.detectors.base import exact_arithmetic
from evaluation.metrics.nearest_neighbours import (
    Blocks,
    Points,
    centred_points,
    exact_squares,
    radii_squared,
)
from evaluation.metrics.sharing import shared
from evaluation.metrics.statistics import FloatArray

PR_NEIGHBOURS, PRDC_NEIGHBOURS = 3, 5
"""k of precision and recall, and of the paper on density and coverage."""


@dataclass(frozen=True)
class ManifoldScores:
    """Shares and means over the samples of the two sets.

    Attributes:
        precision: Generated points inside at least one reference ball (distance <= radius).
        recall: Reference points inside at least one generated ball.
        density: Reference balls (distance < radius) around a generated point, over k; mean.
        coverage: Reference balls that hold at least one generated point (distance < radius).
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass
class Memberships:
    """Which points lie in balls of the other set.

    Attributes:
        precise: Whether a generated point lies in a reference ball, bool [N].
        balls: Reference balls around a generated point, int64 [N].
        recalled: Whether a reference point lies in a generated ball, bool [M].
        covered: Whether a reference ball holds a generated point, bool [M].
    """

    precise: NDArray[np.bool_]
    balls: NDArray[np.int64]
    recalled: NDArray[np.bool_]
    covered: NDArray[np.bool_]

    def scores(self, k: int) -> ManifoldScores:
        """Return the shares and means; density is per k balls."""
        return ManifoldScores(
            precision=float(self.precise.mean()),
            recall=float(self.recalled.mean()),
            density=float(self.balls.mean() / k),
            coverage=float(self.covered.mean()),
        )


def manifold_scores(
    gen: FloatArray, ref: FloatArray, k: int = 3, world: World | None = None
) -> ManifoldScores:
    """Return precision, recall, density and coverage of features [N, D] against [M, D].

    Raises:
        ValueError: A set has no k neighbours, or the dimensions differ.
    """
    return memberships(gen, ref, k, world).scores(k)


def memberships(
    gen: FloatArray, ref: FloatArray, k: int = 3, world: World | None = None
) -> Memberships:
    """Return which points of features [N, D] and [M, D] lie in balls around the others'.

    Raises:
        ValueError: A set has no k neighbours, or the dimensions differ.
    """
    check_neighbours(gen, ref, k)
    x, y = centred_points(gen, ref, world.device if world is not None else "cpu")
    with torch.inference_mode(), exact_arithmetic():
        radii = radii_squared(x, k, world), radii_squared(y, k, world)
        return _summed(_cross(x, y, *radii, world), world)


def check_neighbours(gen: FloatArray, ref: FloatArray, k: int) -> None:
    """Raise ValueError if a set of features has no k neighbours, or the dimensions differ."""
    if min(len(gen), len(ref)) <= k:
        raise ValueError(
            f"{len(gen)} and {len(ref)} samples are too few for k={k} nearest neighbours"
        )
    if gen.shape[1] != ref.shape[1]:
        raise ValueError(f"cannot compare features of {gen.shape[1]} and {ref.shape[1]} dimensions")


def _cross(
    x: Points, y: Points, x_radii: FloatArray, y_radii: FloatArray, world: World | None
) -> Memberships:
    """Find which generated points x lie in reference balls, and the other way round."""
    blocks = Blocks(x, y)
    found = Memberships(
        np.zeros(len(x), np.bool_),
        np.zeros(len(x), np.int64),
        np.zeros(len(y), np.bool_),
        np.zeros(len(y), np.bool_),
    )
    x_bounds, y_bounds = (torch.from_numpy(radii).to(x.x.device) for radii in (x_radii, y_radii))
    for rows, columns in blocks.owned(world):
        of_x, of_y = x_bounds[rows][:, None], y_bounds[columns][None]
        excess = blocks.distances(rows, columns).sub_(of_y.float())
        inside = _inside(blocks, rows, columns, excess, of_y)
        found.precise[rows] |= inside.rows_le > 0
        found.balls[rows] += inside.rows_lt
        found.covered[columns] |= inside.columns_lt > 0
        excess.add_(of_y.float()).sub_(of_x.float())
        inside = _inside(blocks, rows, columns, excess, of_x)
        found.recalled[columns] |= inside.columns_le > 0
    return found


@dataclass(frozen=True)
class _Inside:
    """Pairs with distance <= radius (le) or < radius (lt), counted by row and by column."""

    rows_le: NDArray[np.int64]
    rows_lt: NDArray[np.int64]
    columns_le: NDArray[np.int64]
    columns_lt: NDArray[np.int64]


def _inside(blocks: Blocks, rows: slice, columns: slice, excess: Tensor, bounds: Tensor) -> _Inside:
    """Count the pairs of a block that lie inside balls.

    Args:
        blocks: The two sets.
        rows: Rows of the block.
        columns: Its columns.
        excess: Screened squared distances less the squared radii, float32.
        bounds: The squared radii, float64, of a shape that broadcasts to the block's.
    """
    tolerance = blocks.tolerance(rows, columns)
    by_row, by_column = _count_below(excess, -tolerance)
    unclear = _count_below(excess, tolerance)[0] != by_row
    (suspects,) = unclear.nonzero(as_tuple=True)
    i, j = ((excess[suspects] >= -tolerance) & (excess[suspects] < tolerance)).nonzero().T
    i = suspects[i]
    exact = exact_squares(blocks.a, i + rows.start, blocks.b, j + columns.start)
    radii = bounds.expand(excess.shape)[i, j]
    counts = []
    for is_inside in (exact <= radii, exact < radii):
        counts += [
            (by_row + i[is_inside].bincount(minlength=len(by_row))).cpu().numpy(),
            (by_column + j[is_inside].bincount(minlength=len(by_column))).cpu().numpy(),
        ]
    return _Inside(counts[0], counts[2], counts[1], counts[3])


def _count_below(values: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return how many values are below a bound in each row and in each column, int64.

    By products with ones, ten times faster than sums of bools, and exact up to 2^24.
    """
    below = torch.lt(values, bound, out=torch.empty_like(values))
    rows, columns = (below.new_ones(n) for n in below.shape)
    return (below @ columns).long(), (rows @ below).long()


def _summed(found: Memberships, world: World | None) -> Memberships:
    """Return what all ranks found together."""
    if world is None or world.size == 1:
        return found
    parts: list[Memberships] = world.gather_objects(found)
    return Memberships(
        np.any([part.precise for part in parts], 0),
        np.sum([part.balls for part in parts], 0),
        np.any([part.recalled for part in parts], 0),
        np.any([part.covered for part in parts], 0),
    )


BLOCK = 10_000
"""Rows of the half-precision blocks: ADM decides on float32 by block, so its size matters."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""Distances of features [B, D] to features [C, D], [B, C], in a tool's own arithmetic."""


def adm_distance(u: Tensor, v: Tensor) -> Tensor:
    """Squared distances in float16 steps; in float32 if that overflows anywhere in the block."""
    squared = _adm_squared(u.half(), v.half())
    return squared if squared.isfinite().all() else _adm_squared(u, v)


def _adm_squared(u: Tensor, v: Tensor) -> Tensor:
    """Return |u|^2 - 2 u.v + |v|^2 with every step rounded to the dtype of u; float32."""
    dtype = u.dtype
    norm_u, norm_v = (x.square().float().sum(1).to(dtype) for x in (u, v))
    product = (u.float() @ v.float().T).to(dtype)
    return ((norm_u[:, None] - 2 * product) + norm_v).clamp(min=0).float()


def stylegan_distance(u: Tensor, v: Tensor) -> Tensor:
    """Distances of float16 features, rounded to float16 (emulates fp16 cdist); float32."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(u.half().float(), v.half().float(), compute_mode=mode).half().float()


def half_precision_recall(
    gen: FloatArray, ref: FloatArray, k: int, distance: Distance, world: World | None = None
) -> tuple[float, float]:
    """Return precision and recall (distance <= radius) with the given distance of features.

    The ranks share the blocks, which are the same on any number of them.
    """
    device = world.device if world is not None else "cpu"
    x, y = (torch.from_numpy(np.asarray(f, np.float32)).to(device) for f in (gen, ref))
    with torch.inference_mode(), exact_arithmetic():
        x_radii, y_radii = _radii(x, k, distance, world), _radii(y, k, distance, world)
        pairs = [(rows, columns) for rows in _blocks(len(x)) for columns in _blocks(len(y))]

        def inside(number: int) -> tuple[Tensor, Tensor]:
            rows, columns = pairs[number]
            block = distance(x[rows], y[columns])
            precise = (block <= y_radii[columns]).any(1)
            return precise.cpu(), (block <= x_radii[rows][:, None]).any(0).cpu()

        precise = torch.zeros(len(x), dtype=torch.bool)
        recalled = torch.zeros(len(y), dtype=torch.bool)
        found = shared(inside, len(pairs), world)
        for (rows, columns), (of_rows, of_columns) in zip(pairs, found, strict=True):
            precise[rows] |= of_rows
            recalled[columns] |= of_columns
    return float(precise.double().mean()), float(recalled.double().mean())


def _radii(x: Tensor, k: int, distance: Distance, world: World | None) -> Tensor:
    """Return the (k+1)-th smallest distance of each point to all points, itself included."""
    blocks = _blocks(len(x))

    def nearest(number: int) -> Tensor:
        rows, columns = (blocks[i] for i in divmod(number, len(blocks)))
        return _smallest(distance(x[rows], x[columns]), k + 1).cpu()

    found = shared(nearest, len(blocks) ** 2, world)
    by_row = [found[i : i + len(blocks)] for i in range(0, len(found), len(blocks))]
    radii = [_smallest(torch.cat(parts, 1), k + 1).max(1).values for parts in by_row]
    return torch.cat(radii).to(x.device)


def _smallest(values: Tensor, count: int) -> Tensor:
    return values.topk(min(count, values.shape[1]), dim=1, largest=False).values


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
