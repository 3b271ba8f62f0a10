"""Precision and recall in the arithmetic of old tables: ADM's and StyleGAN's half precision.

Only for reproducing published numbers; half precision moves precision and recall by up to 0.01
(spec/EVALUATION.md section 3).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from evaluation.statistics import FloatArray

BLOCK = 10_000

Distance = Callable[[Tensor, Tensor], Tensor]


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
    gen: FloatArray, ref: FloatArray, k: int, distance: Distance
) -> tuple[float, float]:
    """Return precision and recall (distance <= radius) with the given distance of features."""
    x, y = (torch.from_numpy(np.asarray(f, np.float32)) for f in (gen, ref))
    with torch.inference_mode():
        x_radii, y_radii = _radii(x, k, distance), _radii(y, k, distance)
        precise = torch.zeros(len(x), dtype=torch.bool)
        recalled = torch.zeros(len(y), dtype=torch.bool)
        for rows in _blocks(len(x)):
            for columns in _blocks(len(y)):
                block = distance(x[rows], y[columns])
                precise[rows] |= (block <= y_radii[columns]).any(1)
                recalled[columns] |= (block <= x_radii[rows][:, None]).any(0)
    return float(precise.double().mean()), float(recalled.double().mean())


def _radii(x: Tensor, k: int, distance: Distance) -> Tensor:
    """Return the (k+1)-th smallest distance of each point to all points, itself included."""
    radii = []
    for rows in _blocks(len(x)):
        best = x.new_empty(rows.stop - rows.start, 0)
        for columns in _blocks(len(x)):
            best = torch.cat([best, distance(x[rows], x[columns])], 1)
            best = best.topk(min(k + 1, best.shape[1]), dim=1, largest=False).values
        radii.append(best.max(1).values)
    return torch.cat(radii)


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
