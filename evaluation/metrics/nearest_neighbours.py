"""Distances between two sets of features, block by block, and distances to the k-th neighbour.

Blocks are screened by float32 matrix products; what decides is computed again in float64
(docs/reference/evaluation.md#5.5).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.runtime.world import World
from evaluation.detectors.base import exact_arithmetic
from evaluation.metrics.statistics import FloatArray

BLOCK = 2048
GROUP = 16
SPARE_CANDIDATES = 4
SCREEN_TOLERANCE = 2e-6
"""Bound of the float32 error of a squared distance, relative to |a|^2 + |b|^2."""
EXACT_VALUES = 1 << 22
"""Float64 values that are held at a time."""


@dataclass(frozen=True)
class Points:
    """Features, with what screening and exact decisions need.

    Attributes:
        raw: The features as they came, [N, D].
        x: Centred, float32 [N, D].
        norms: |x|^2, float32 [N].
    """

    raw: Tensor
    x: Tensor
    norms: Tensor

    def __len__(self) -> int:
        return len(self.x)


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


class Blocks:
    """Squared distances of points `a` to points `b` in blocks, all in one buffer.

    Args:
        a: Points of the rows.
        b: Points of the columns; the same object as `a` for a set's distances to itself, of which
            the blocks below the diagonal are left out.
    """

    def __init__(self, a: Points, b: Points) -> None:
        self.a, self.b = a, b
        edges = (min(BLOCK, len(a)), min(BLOCK, len(b)))
        self._buffer = a.x.new_empty(edges[0] * edges[1])

    def owned(self, world: World | None) -> Iterator[tuple[slice, slice]]:
        """Yield this rank's share of the blocks, as slices of rows and columns."""
        rank, size = (world.rank, world.size) if world is not None else (0, 1)
        turn = 0
        for number, rows in enumerate(block_slices(len(self.a))):
            for columns in block_slices(len(self.b))[number if self.a is self.b else 0 :]:
                if turn % size == rank:
                    yield rows, columns
                turn += 1

    def distances(self, rows: slice, columns: slice) -> Tensor:
        """Return the screened squared distances of a block; the next call overwrites them."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        out = self._buffer[: height * width].view(height, width)
        bias = self.b.norms[columns].expand(height, -1)
        torch.addmm(bias, self.a.x[rows], self.b.x[columns].T, alpha=-2, out=out)
        return out.add_(self.a.norms[rows][:, None])

    def tolerance(self, rows: slice, columns: slice) -> float:
        """Return a bound of the errors of a block's screened distances."""
        scale = float(self.a.norms[rows].max() + self.b.norms[columns].max())
        return SCREEN_TOLERANCE * scale


def exact_squares(a: Points, i: Tensor, b: Points, j: Tensor) -> Tensor:
    """Return the squared distances of the pairs (a[i], b[j]), float64 [P]."""
    parts = zip(
        *(torch.split(t, max(1, EXACT_VALUES // a.x.shape[1])) for t in (i, j)), strict=True
    )
    squares = [(a.raw[p].double() - b.raw[q].double()).square().sum(1) for p, q in parts]
    return torch.cat(squares) if squares else torch.empty(0, dtype=torch.float64, device=a.x.device)


def radii_squared(points: Points, k: int, world: World | None = None) -> NDArray[np.float64]:
    """Return each point's squared distance to its k-th nearest other point, float64 [N]."""
    blocks = Blocks(points, points)
    best = _Candidates(len(points), min(k + SPARE_CANDIDATES, len(points) - 1), points.x.device)
    for rows, columns in blocks.owned(world):
        block = blocks.distances(rows, columns)
        if rows == columns:
            block.fill_diagonal_(torch.inf)
        else:
            best.offer(columns, rows, block.T)
        best.offer(rows, columns, block)
    return _exact_kth(points, *best.merged(world), k)


def neighbours(
    gen: FloatArray, ref: FloatArray, k: int, device: torch.device | str = "cpu"
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return distances [N, k], ascending, and indices [N, k] of the nearest reference points.

    Of equally near ones, the first come first.

    Args:
        gen: Features [N, D] whose neighbours are sought.
        ref: Features [M, D] that they are sought in.
        k: How many; at most M.
        device: Where blocks of distances are computed.
    """
    x, y = centred_points(gen, ref, device)
    with torch.inference_mode(), exact_arithmetic():
        blocks = Blocks(x, y)
        best = _Candidates(len(x), min(k + SPARE_CANDIDATES, len(y)), x.x.device)
        for rows, columns in blocks.owned(None):
            best.offer(rows, columns, blocks.distances(rows, columns))
        indices = best.indices.sort(1).values
        own = torch.arange(len(x), device=x.x.device).repeat_interleave(indices.shape[1])
        squares = exact_squares(x, own, y, indices.flatten()).view(indices.shape)
        order = squares.argsort(dim=1, stable=True)[:, :k]
        distances = squares.gather(1, order).sqrt()
    return distances.cpu().numpy(), indices.gather(1, order).cpu().numpy()


class _Candidates:
    """The nearest few points of every point, by screened distance."""

    def __init__(self, n: int, keep: int, device: torch.device) -> None:
        self.keep = keep
        self.values = torch.full((n, keep), torch.inf, device=device)
        self.indices = torch.zeros((n, keep), dtype=torch.int64, device=device)

    def offer(self, rows: slice, columns: slice, block: Tensor) -> None:
        """Consider a block of distances of points `rows` to points `columns`."""
        near, where = nearest(block, self.keep)
        values = torch.cat([self.values[rows], near], 1)
        indices = torch.cat([self.indices[rows], where + columns.start], 1)
        self.values[rows], order = values.topk(self.keep, dim=1, largest=False)
        self.indices[rows] = indices.gather(1, order)

    def merged(self, world: World | None) -> tuple[Tensor, Tensor]:
        """Return distances, ascending, and indices of the nearest over all ranks' blocks."""
        parts = [(self.values.cpu(), self.indices.cpu())]
        if world is not None:
            parts = world.gather_objects(parts[0])
        values = torch.cat([part[0] for part in parts], 1)
        indices = torch.cat([part[1] for part in parts], 1)
        values, order = values.topk(self.keep, dim=1, largest=False, sorted=True)
        device = self.indices.device
        return values.to(device), indices.gather(1, order).to(device)


def nearest(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest values of each row [B, C] and their columns, in any order.

    They lie in the k groups of columns with the smallest minima, which leaves little to sort.
    """
    columns = block.shape[1]
    if columns % GROUP or columns // GROUP <= k:
        return block.topk(min(k, columns), dim=1, largest=False)
    minima = functools.reduce(torch.minimum, block.chunk(GROUP, 1))  # of g, g + C / 16, ...
    groups = minima.topk(k, dim=1, largest=False).indices
    members = torch.unflatten(block, 1, (GROUP, -1))
    members = members.gather(2, groups[:, None].expand(-1, GROUP, -1))
    values, order = members.flatten(1).topk(k, dim=1, largest=False)
    return values, (order // k) * (columns // GROUP) + groups.gather(1, order % k)


def _exact_kth(points: Points, values: Tensor, indices: Tensor, k: int) -> NDArray[np.float64]:
    """Return the exact k-th smallest squared distance of each point.

    Args:
        points: The points.
        values: Screened distances of the nearest candidates, ascending [N, keep].
        indices: The candidates, int64 [N, keep].
        k: Which neighbour.
    """
    own = torch.arange(len(points), device=indices.device)
    exact = exact_squares(points, own, points, indices[:, k - 1])
    error = 2 * SCREEN_TOLERANCE * (points.norms + points.norms[indices].amax(1))
    close = (values - values[:, k - 1 : k]).abs() <= error[:, None]
    (ties,) = (close.sum(1) > 1).nonzero(as_tuple=True)
    pairs = indices[ties]
    squares = exact_squares(
        points, ties.repeat_interleave(pairs.shape[1]), points, pairs.flatten()
    ).view(pairs.shape)
    exact[ties] = squares.kthvalue(k, dim=1).values
    radii: NDArray[np.float64] = exact.cpu().numpy()
    return radii


def block_slices(total: int) -> list[slice]:
    """Return the slices that cut `total` points into blocks."""
    return [slice(start, min(start + BLOCK, total)) for start in range(0, total, BLOCK)]
