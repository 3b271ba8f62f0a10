"""FID and IS extrapolated to infinitely many samples (docs/reference/evaluation.md#3.6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dist_train.runtime.world import World
from evaluation.metrics.sharing import shared
from evaluation.metrics.statistics import FloatArray

POINTS = 15


def limit(
    statistic: Callable[[FloatArray], float],
    rows: FloatArray,
    *,
    start: int,
    points: int = POINTS,
    seed: int = 0,
    world: World | None = None,
) -> tuple[float, float]:
    """Return intercept and slope of a statistic in 1/N over random subsets of rows [N, D].

    Subset j holds the first N_j of the j-th permutation of one seeded generator; N_j runs evenly
    from `start` to N. The ranks of `world` share the subsets.

    Raises:
        ValueError: `start` is not in 2..N.
    """
    if not 2 <= start <= len(rows):
        raise ValueError(f"the smallest subset, {start}, is not in 2..{len(rows)} (the samples)")
    sizes = np.linspace(start, len(rows), points).astype(np.int32)
    generator = np.random.RandomState(seed)
    subsets = [generator.permutation(len(rows))[:size] for size in sizes]
    values = shared(lambda number: statistic(rows[subsets[number]]), points, world)
    slope, intercept = np.polyfit(1 / sizes.astype(np.float64), np.array(values), 1)
    return float(intercept), float(slope)


def smallest_subset(n: int) -> int:
    """Return the size of the smallest subset of n samples that public tools take."""
    return min(5000, max(n // 10, 2))
