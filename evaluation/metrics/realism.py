"""Realism of single samples: how far inside the reference's manifold they lie.

Kynkäänniemi et al., 2019, "Improved Precision and Recall Metric for Assessing Generative Models",
section 5: R(x) = max over reference points y of |y - NN_k(y)| / |x - y|, of the half of the points
with the smaller radii |y - NN_k(y)|. R >= 1 says that a sample lies in one of their balls.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.runtime.world import World
from evaluation.detectors.base import exact_arithmetic
from evaluation.metrics.nearest_neighbours import (
    Blocks,
    Points,
    block_slices,
    centred_points,
    exact_squares,
    radii_squared,
)
from evaluation.metrics.precision_recall import PR_NEIGHBOURS, check_neighbours
from evaluation.metrics.sharing import shared
from evaluation.metrics.statistics import FloatArray


def realism(
    gen: FloatArray, ref: FloatArray, k: int = PR_NEIGHBOURS, world: World | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the realism of samples [N, D], float64 [N], and the reference points that decide it.

    A sample that equals a reference point has realism inf.

    Args:
        gen: Generated features.
        ref: Reference features [M, D].
        k: Which neighbour's distance is the radius.
        world: The ranks, which share the work; all of them get the result.

    Raises:
        ValueError: The reference has no k neighbours, or the dimensions differ.
    """
    check_neighbours(ref, ref, k)
    check_neighbours(gen, ref, 0)
    x, y = centred_points(gen, ref, world.device if world is not None else "cpu")
    with torch.inference_mode(), exact_arithmetic():
        radii = torch.from_numpy(radii_squared(y, k, world)).to(x.x.device)
        (kept,) = (radii <= radii.quantile(0.5, interpolation="lower")).nonzero(as_tuple=True)
        balls, radii = Points(y.raw[kept], y.x[kept], y.norms[kept]), radii[kept]
        blocks, parts = Blocks(x, balls), block_slices(len(x))
        found = shared(
            lambda number: _nearest_by_ratio(blocks, parts[number], radii), len(parts), world
        )
        nearest = torch.cat(found).to(x.x.device)
        own = torch.arange(len(x), device=x.x.device)
        values = (radii[nearest] / exact_squares(x, own, balls, nearest)).sqrt()
        values = values.nan_to_num(nan=torch.inf, posinf=torch.inf)
    return values.cpu().numpy(), kept[nearest].cpu().numpy()


def _nearest_by_ratio(blocks: Blocks, rows: slice, radii: Tensor) -> Tensor:
    """Return the ball of the largest squared ratio for each of some rows, int64, on the CPU."""
    best = torch.full((rows.stop - rows.start,), -1.0, device=radii.device)
    nearest = torch.zeros(len(best), dtype=torch.int64, device=radii.device)
    for columns in block_slices(len(blocks.b)):
        squares = blocks.distances(rows, columns).clamp_(min=torch.finfo(torch.float32).tiny)
        ratios, where = (radii[columns].float() / squares).max(1)
        is_better = ratios > best
        best = torch.where(is_better, ratios, best)
        nearest = torch.where(is_better, where + columns.start, nearest)
    return nearest.cpu()
