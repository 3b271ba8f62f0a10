"""What ADM's float16 distances leave undecided: they are not the same on every machine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.precision_recall import _radii, adm_distance
from tests.evaluation.golden_arrays import Array

ROWS = 1000
MANTISSA = 10  # bits of float16

Range = tuple[float, float]


def adm_ranges(gen: Array, ref: Array, k: int) -> tuple[Range, Range]:
    """Return the least and the greatest precision and recall that rounding allows.

    |u|^2 - 2 u.v + |v|^2 is summed in float16 in an order of the machine's, so that a distance or
    radius may be off by one float16 step of the largest term.
    """
    x, y = (torch.from_numpy(np.asarray(features, np.float32)) for features in (gen, ref))
    return _range(x, y, k), _range(y, x, k)


def _range(points: Tensor, centres: Tensor, k: int) -> Range:
    """Return the shares of points surely, and possibly, within a ball around the other set's."""
    radii = _radii(centres, k, adm_distance, None)
    norms = centres.square().sum(1)
    surely = possibly = 0
    for rows in points.split(ROWS):
        largest = torch.maximum(rows.square().sum(1)[:, None], norms)
        step = torch.exp2(torch.frexp(largest).exponent - 1.0 - MANTISSA)
        excess = adm_distance(rows, centres) - radii
        surely += int((excess <= -step).any(1).sum())
        possibly += int((excess <= step).any(1).sum())
    return surely / len(points), possibly / len(points)
