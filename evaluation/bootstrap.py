"""Bootstrap intervals: how far a value moves when the generated images are drawn anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dist_train.distributed import World
from evaluation.statistics import FloatArray

SEED = 0


def interval(
    statistic: Callable[[FloatArray], float],
    rows: FloatArray,
    value: float,
    *,
    count: int,
    world: World,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a confidence interval of a statistic of rows [N, D]; the ranks share the resamples.

    Resampling with replacement adds its own bias (duplicates make a set look narrower), so the
    spread is taken around the resamples' mean and put around the value.

    Args:
        statistic: Maps rows to a number.
        rows: The generated features.
        value: The statistic of all rows.
        count: Number of resamples, the same for any number of ranks.
        world: The ranks.
        level: Probability that the interval covers.

    Raises:
        ValueError: There are fewer than two resamples.
    """
    if count < 2:
        raise ValueError(f"bootstrap={count} resamples have no spread; take at least 2")
    own = {
        j: statistic(rows[np.random.default_rng([SEED, j]).integers(0, len(rows), len(rows))])
        for j in range(world.rank, count, world.size)
    }
    drawn: dict[int, float] = {}
    for part in world.gather_objects(own):
        drawn |= part
    values = np.array([drawn[j] for j in range(count)])
    tails = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) - values.mean()
    return value + float(tails[0]), value + float(tails[1])
