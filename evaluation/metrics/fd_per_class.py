"""Fréchet distances per class, in few principal components (docs/reference/evaluation.md#3.9).

50 images of a class say nothing about a covariance in 2048 dimensions. So both sets are projected
to the leading principal components of the reference, as many as the smallest class can support.
"""

from __future__ import annotations

import numpy as np
import torch

from dist_train.runtime.world import World
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.sharing import shared
from evaluation.metrics.statistics import FeatureSet, FloatArray, Gaussian, gaussian_of

SAMPLES_PER_DIMENSION = 4
MOST_DIMENSIONS = 32


def per_class_distances(
    gen: FeatureSet, ref: FeatureSet, tap: str, world: World | None = None
) -> dict[str, float]:
    """Return mean, worst class and number of dimensions, and `class_<i>` for every class.

    The ranks of `world` share the classes.

    Raises:
        ValueError: A set has no labels, or a class has too few images in one of them, or none.
    """
    if gen.labels is None or ref.labels is None:
        raise ValueError("distances per class need labels in both sets (conditional samples)")
    x, y = gen.rows(tap), ref.rows(tap)
    classes = np.unique(ref.labels)
    if only := sorted(set(gen.labels.tolist()) ^ set(classes.tolist())):
        raise ValueError(
            f"{len(only)} classes have images in one of the sets only (the first: {only[0]});"
            " distances per class need the same classes, numbered alike, in both"
        )
    smallest = min(int((labels == c).sum()) for labels in (gen.labels, ref.labels) for c in classes)
    dimensions = min(smallest // SAMPLES_PER_DIMENSION, MOST_DIMENSIONS, x.shape[1])
    if dimensions < 1:
        raise ValueError(
            f"a class has {smallest} images in one of the sets; distances per class need at least"
            f" {SAMPLES_PER_DIMENSION}"
        )
    basis = principal_components(ref.gaussian(tap), dimensions)

    def of_class(number: int) -> float:
        mine, theirs = (
            gaussian_of(rows[labels == classes[number]] @ basis)
            for rows, labels in ((x, gen.labels), (y, ref.labels))
        )
        return frechet_distance(mine, theirs)

    distances = dict(zip(classes.tolist(), shared(of_class, len(classes), world), strict=True))
    values = {"mean": float(np.mean(list(distances.values()))), "dimensions": float(dimensions)}
    values["worst_class"] = float(max(distances, key=lambda c: distances[c]))
    return values | {f"class_{c}": distance for c, distance in distances.items()}


def principal_components(gaussian: Gaussian, count: int) -> FloatArray:
    """Return the leading eigenvectors of the covariance, float64 [D, count]."""
    _, vectors = torch.linalg.eigh(torch.from_numpy(np.asarray(gaussian.sigma, np.float64)))
    leading: FloatArray = vectors[:, -count:].flip(1).numpy()
    return leading
