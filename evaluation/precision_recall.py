"""Improved precision and recall, density and coverage: exact, in bounded memory, over ranks.

Blocks of squared distances are screened by float32 matrix products of centred features; every
decision that float32 rounding could turn (the k nearest candidates, points close to a ball's
surface) is taken again from float64 differences. So results do not depend on block sizes, ranks or
kernels. Only a point itself is no neighbour of its own; exact duplicates are
(spec/EVALUATION.md sections 3 and 5.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.distributed import World
from evaluation.detectors import exact_arithmetic
from evaluation.statistics import FloatArray

BLOCK = 2048
EXACT_ROWS = 128
"""Rows of float64 differences at a time: they stay in the caches."""
SPARE_CANDIDATES = 4
SCREEN_TOLERANCE = 2e-6
"""Bound of the float32 error of a squared distance, relative to |a|^2 + |b|^2."""


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


@dataclass(frozen=True)
class Points:
    """Features, with what screening and exact decisions need.

    Attributes:
        raw: The features as given, [N, D].
        x: Centred, float32 [N, D].
        norms: |x|^2, float32 [N].
    """

    raw: Tensor
    x: Tensor
    norms: Tensor

    def __len__(self) -> int:
        return len(self.x)


def manifold_scores(
    gen: FloatArray, ref: FloatArray, k: int = 3, world: World | None = None
) -> ManifoldScores:
    """Return precision, recall, density and coverage of features [N, D] against [M, D].

    Raises:
        ValueError: A set has no k neighbours, or the dimensions differ.
    """
    if min(len(gen), len(ref)) <= k:
        raise ValueError(
            f"{len(gen)} and {len(ref)} samples are too few for k={k} nearest neighbours"
        )
    if gen.shape[1] != ref.shape[1]:
        raise ValueError(f"cannot compare features of {gen.shape[1]} and {ref.shape[1]} dimensions")
    x, y = centred_points(gen, ref, world.device if world is not None else "cpu")
    with torch.inference_mode(), exact_arithmetic():
        counts = _cross(x, y, radii_squared(x, k, world), radii_squared(y, k, world), world)
    return ManifoldScores(
        precision=float(counts.precise.mean()),
        recall=float(counts.recalled.mean()),
        density=float(counts.balls.mean() / k),
        coverage=float(counts.covered.mean()),
    )


def centred_points(
    gen: FloatArray, ref: FloatArray, device: torch.device | str = "cpu"
) -> tuple[Points, Points]:
    """Subtract the reference mean from both sets, which takes the cancellation out of distances."""
    mean = np.asarray(ref, np.float64).mean(0)
    points = []
    for features in (gen, ref):
        x = torch.from_numpy((features - mean).astype(np.float32)).to(device)
        raw = torch.from_numpy(np.asarray(features)).to(device)
        points.append(Points(raw, x, x.square().sum(1)))
    return points[0], points[1]


def radii_squared(points: Points, k: int, world: World | None = None) -> NDArray[np.float64]:
    """Return each point's squared distance to its k-th nearest other point, float64 [N]."""
    keep = min(k + SPARE_CANDIDATES, len(points) - 1)
    best = _Candidates(len(points), keep, points.x.device)
    for rows, columns in _pairs(len(points), len(points), world, symmetric=True):
        block = _screen(points, rows, points, columns)
        if rows == columns:
            block.fill_diagonal_(torch.inf)
        best.offer(rows, columns, block)
        if rows != columns:
            best.offer(columns, rows, block.T.contiguous())
    candidates = best.merged(world)
    exact = np.empty(len(points))
    for start in range(0, len(points), EXACT_ROWS):
        rows = slice(start, min(start + EXACT_ROWS, len(points)))
        exact[rows] = _exact_kth(points, rows, candidates[rows], k)
    return exact


class _Candidates:
    """The nearest few points of every point, by screened distance."""

    def __init__(self, n: int, keep: int, device: torch.device) -> None:
        self.keep = keep
        self.values = torch.full((n, keep), torch.inf, device=device)
        self.indices = torch.zeros((n, keep), dtype=torch.int64, device=device)

    def offer(self, rows: slice, columns: slice, block: Tensor) -> None:
        """Consider a block of distances of points `rows` to points `columns`."""
        near, where = block.topk(min(self.keep, block.shape[1]), dim=1, largest=False)
        values = torch.cat([self.values[rows], near], 1)
        indices = torch.cat([self.indices[rows], where + columns.start], 1)
        self.values[rows], order = values.topk(self.keep, dim=1, largest=False)
        self.indices[rows] = indices.gather(1, order)

    def merged(self, world: World | None) -> Tensor:
        """Return the nearest points over all ranks' blocks, int64 [N, keep]."""
        if world is None or world.size == 1:
            return self.indices
        parts = world.gather_objects((self.values.cpu(), self.indices.cpu()))
        values = torch.cat([part[0] for part in parts], 1)
        indices = torch.cat([part[1] for part in parts], 1)
        order = values.topk(self.keep, dim=1, largest=False).indices
        return indices.gather(1, order).to(self.indices.device)


@dataclass
class _Counts:
    """What the cross pass finds: per generated point, and per reference point."""

    precise: NDArray[np.bool_]
    balls: NDArray[np.int64]
    recalled: NDArray[np.bool_]
    covered: NDArray[np.bool_]


def _cross(
    x: Points, y: Points, x_radii: FloatArray, y_radii: FloatArray, world: World | None
) -> _Counts:
    """Count which generated points x lie in reference balls, and the other way round."""
    n, m = len(x), len(y)
    counts = _Counts(
        np.zeros(n, np.bool_), np.zeros(n, np.int64), np.zeros(m, np.bool_), np.zeros(m, np.bool_)
    )
    for rows, columns in _pairs(n, m, world, symmetric=False):
        distances = _screen(x, rows, y, columns)
        scale = float(x.norms[rows].max() + y.norms[columns].max())
        tolerance = scale * SCREEN_TOLERANCE
        le, lt = _inside(x, rows, y, columns, distances, y_radii[columns][None], tolerance)
        counts.precise[rows] |= le.any(1).cpu().numpy()
        counts.balls[rows] += _row_counts(lt)
        counts.covered[columns] |= lt.any(0).cpu().numpy()
        le, _ = _inside(x, rows, y, columns, distances, x_radii[rows][:, None], tolerance)
        counts.recalled[columns] |= le.any(0).cpu().numpy()
    return counts if world is None or world.size == 1 else _summed(counts, world)


def _inside(
    x: Points,
    rows: slice,
    y: Points,
    columns: slice,
    distances: Tensor,
    radii: FloatArray,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Return where distance <= radius and where distance < radius, bool [rows, columns].

    Places too close to tell are settled from float64 differences; elsewhere both agree.
    """
    bounds = torch.from_numpy(radii).to(distances.device)
    le = distances < (bounds - tolerance).to(torch.float32)
    close = ((distances <= (bounds + tolerance).to(torch.float32)) ^ le).nonzero()
    if not len(close):
        return le, le
    lt, bounds = le.clone(), bounds.expand(distances.shape)
    for part in torch.split(close, max(1, (1 << 22) // x.x.shape[1])):
        i, j = part[:, 0], part[:, 1]
        exact = (x.raw[rows][i].double() - y.raw[columns][j].double()).square().sum(1)
        le[i, j] = exact <= bounds[i, j]
        lt[i, j] = exact < bounds[i, j]
    return le, lt


def _row_counts(inside: Tensor) -> NDArray[np.int64]:
    """Return the number of True per row (by a product, ten times faster than a sum of bools)."""
    values = inside.to(torch.float32)
    return (values @ values.new_ones(values.shape[1])).cpu().numpy().astype(np.int64)


def _summed(counts: _Counts, world: World) -> _Counts:
    parts: list[_Counts] = world.gather_objects(counts)
    return _Counts(
        np.any([part.precise for part in parts], 0),
        np.sum([part.balls for part in parts], 0),
        np.any([part.recalled for part in parts], 0),
        np.any([part.covered for part in parts], 0),
    )


def _screen(a: Points, rows: slice, b: Points, columns: slice) -> Tensor:
    """Return squared distances by a float32 matrix product, clamped at 0."""
    bias = b.norms[columns].expand(rows.stop - rows.start, -1)
    distances = torch.addmm(bias, a.x[rows], b.x[columns].T, alpha=-2)
    return distances.add_(a.norms[rows][:, None]).clamp_(min=0)


def _exact_kth(points: Points, rows: slice, candidates: Tensor, k: int) -> FloatArray:
    """Return the k-th smallest exact squared distance of each point to its candidates."""
    x = points.raw[rows].double()
    distances = torch.stack(
        [(x - points.raw[column].double()).square().sum(1) for column in candidates.T], 1
    )
    nearest: FloatArray = distances.kthvalue(k, dim=1).values.cpu().numpy()
    return nearest


def _pairs(
    n: int, m: int, world: World | None, *, symmetric: bool
) -> Iterator[tuple[slice, slice]]:
    """Yield this rank's share of the (row, column) blocks; half of them if symmetric."""
    turn = 0
    rank, size = (world.rank, world.size) if world is not None else (0, 1)
    for top in range(0, n, BLOCK):
        for left in range(top if symmetric else 0, m, BLOCK):
            if turn % size == rank:
                yield slice(top, min(top + BLOCK, n)), slice(left, min(left + BLOCK, m))
            turn += 1
