"""Realism of single samples: how far inside the reference's manifold they lie.

Kynkäänniemi et al., 2019, "Improved Precision and Recall Metric for Assessing Generative Models",
section 5: R(x) = max over reference points y of |y - NN_k(y)| / |x - y|, of the half of the points
with the smaller radii |y - NN_k(y)|. R >= 1 says that a sample lies in one of their balls.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.detectors.base import exact_arithmetic
from evaluation.metrics.nearest_neighbours import (
    Blocks,
    Points,
    centred_points,
    exact_squares,
    radii_squared,
)
from evaluation.metrics.precision_recall import PR_NEIGHBOURS, check_neighbours
from evaluation.metrics.statistics import Device, FloatArray


def realism(
    gen: FloatArray, ref: FloatArray, k: int = PR_NEIGHBOURS, device: Device = "cpu"
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the realism of samples [N, D], float64 [N], and the reference points that decide it.

    A sample that equals a reference point has realism inf.

    Args:
        gen: Generated features.
        ref: Reference features [M, D].
        k: Which neighbour's distance is the radius.
        device: Where blocks of distances are computed.

    Raises:
        ValueError: The reference has no k neighbours, or the dimensions differ.
    """
    check_neighbours(ref, ref, k)
    check_neighbours(gen, ref, 0)
    x, y = centred_points(gen, ref, device)
    with torch.inference_mode(), exact_arithmetic():
        radii = torch.from_numpy(radii_squared(y, k)).to(x.x.device)
        (kept,) = (radii <= radii.quantile(0.5, interpolation="lower")).nonzero(as_tuple=True)
        balls, radii = Points(y.raw[kept], y.x[kept], y.norms[kept]), radii[kept]
        best = x.x.new_full((len(x),), -1.0)
        nearest = torch.zeros(len(x), dtype=torch.int64, device=x.x.device)
        blocks = Blocks(x, balls)
        for rows, columns in blocks.owned(None):
            squares = blocks.distances(rows, columns).clamp_(min=torch.finfo(torch.float32).tiny)
            ratios, where = (radii[columns].float() / squares).max(1)
            is_better = ratios > best[rows]
            best[rows] = torch.where(is_better, ratios, best[rows])
            nearest[rows] = torch.where(is_better, where + columns.start, nearest[rows])
        own = torch.arange(len(x), device=x.x.device)
        values = (radii[nearest] / exact_squares(x, own, balls, nearest)).sqrt()
        values = values.nan_to_num(nan=torch.inf, posinf=torch.inf)
    return values.cpu().numpy(), kept[nearest].cpu().numpy()
