"""Bootstrap intervals: how far a value moves when the generated images are resampled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dist_train.runtime.world import World
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.inception_score import mean_score
from evaluation.metrics.kid_cmmd import kid
from evaluation.metrics.precision_recall import PR_NEIGHBOURS, PRDC_NEIGHBOURS, memberships
from evaluation.metrics.sharing import alone, shared
from evaluation.metrics.statistics import FeatureSet, FloatArray, gaussian_of

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

    def of_resample(number: int) -> float:
        generator = np.random.default_rng([SEED, number])
        return statistic(rows[generator.integers(0, len(rows), len(rows))])

    values = np.array(shared(of_resample, count, world))
    tails = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) - values.mean()
    return value + float(tails[0]), value + float(tails[1])


Resampling = tuple[FloatArray, Callable[[FloatArray], float]]
"""Rows, one per generated image, and the statistic of them that gives a metric's first value."""


def _resampled_fd(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Resampling:
    gaussian, device = ref.gaussian(tap), world.device
    return gen.rows(tap), lambda rows: frechet_distance(gaussian_of(rows, device), gaussian, device)


def _resampled_is(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Resampling:
    del ref, world
    return gen.rows(tap), mean_score


def _resampled_kid(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Resampling:
    reference, own_world = ref.rows(tap), alone(world)
    return gen.rows(tap), lambda rows: kid(rows, reference, own_world)


def _resampled_precision(k: int) -> Callable[..., Resampling]:
    """Return the resampling of precision, a mean over the generated images.

    Recall and coverage have none: they are shares of the reference, decided by the distances
    between generated images, many of which are zero in a resample.
    """

    def resampled(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Resampling:
        found = memberships(gen.rows(tap), ref.rows(tap), k, world)
        return found.precise[:, None].astype(np.float64), lambda rows: float(rows.mean())

    return resampled


RESAMPLED: dict[str, Callable[[FeatureSet, FeatureSet, str, World], Resampling]] = {
    "fd": _resampled_fd,
    "is": _resampled_is,
    "kid": _resampled_kid,
    "pr": _resampled_precision(PR_NEIGHBOURS),
    "prdc": _resampled_precision(PRDC_NEIGHBOURS),
}
"""Metrics that have bootstrap intervals."""
