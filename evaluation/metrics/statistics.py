"""Means and covariances of features: float64, merged across batches and ranks, each sample once.

Chan's update keeps centred sums, so that features far from zero lose nothing
(docs/reference/evaluation.md#5.3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.floating[Any]]

Device = torch.device | str

BLOCK_ROWS = 1024
SYMMETRY_TOLERANCE = 1e-6
EIGENVALUE_TOLERANCE = 1e-8
LEAST_PIVOT = 1e-10
STORED = "stored"
"""Key of how many features a reference's file stores, where that is not as by default."""
SELECTED_BY, SELECTION = "selection", "stratified"
"""What is recorded of how images were selected; older versions took every k-th and said nothing."""
SELECTION_SEED = 2020


@dataclass(frozen=True)
class Gaussian:
    """First two moments of a set of features.

    Attributes:
        mu: Mean, float64 [D].
        sigma: Covariance, float64 [D, D]; unbiased unless said otherwise.
        n: Number of samples, None if a foreign file does not record it.
    """

    mu: FloatArray
    sigma: FloatArray
    n: int | None
    _factors: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def dim(self) -> int:
        """Number of features."""
        return len(self.mu)

    def factor(self, device: Device = "cpu") -> Tensor:
        """Return L [D, r] with L L^T = sigma and r its numerical rank; computed once.

        By Cholesky where sigma is well away from singular (ten times faster), else from the
        symmetric eigenproblem, where eigenvalues below D * 2.2e-16 of the largest are noise.
        """
        if (key := torch.device(device)) not in self._factors:
            sigma = torch.from_numpy(np.asarray(self.sigma, np.float64))
            self._factors[key] = _factor(sigma.to(key))
        return self._factors[key]

    def biased(self) -> Gaussian:
        """Return the moments with the covariance divided by n instead of n - 1 (StyleGAN)."""
        if self.n is None:
            raise ValueError(
                "the number of samples is unknown, so the covariance cannot be rescaled"
            )
        return Gaussian(self.mu, self.sigma * ((self.n - 1) / self.n), self.n)

    def check(self, name: str) -> None:
        """Raise ValueError unless the moments are finite, of fitting shapes, symmetric and PSD."""
        if self.mu.ndim != 1 or self.sigma.shape != (self.dim, self.dim):
            shapes = f"{list(self.mu.shape)} and {list(self.sigma.shape)}"
            raise ValueError(f"{name}: mu and sigma have shapes {shapes}, expected [D] and [D, D]")
        if not (np.isfinite(self.mu).all() and np.isfinite(self.sigma).all()):
            raise ValueError(f"{name}: mu or sigma holds NaN or infinite values")
        scale = float(np.abs(self.sigma).max())
        if float(np.abs(self.sigma - self.sigma.T).max()) > SYMMETRY_TOLERANCE * scale:
            raise ValueError(f"{name}: sigma is not symmetric, so it is no covariance")
        values = torch.linalg.eigvalsh(torch.from_numpy(np.asarray(self.sigma, np.float64)))
        if values[0] < -EIGENVALUE_TOLERANCE * abs(values[-1]):
            raise ValueError(f"{name}: sigma has the eigenvalue {float(values[0]):.3g} < 0")


def _factor(sigma: Tensor) -> Tensor:
    triangle: Tensor
    triangle, failed = torch.linalg.cholesky_ex(sigma)
    pivots = triangle.diagonal()
    if not failed and float(pivots.min()) ** 2 > LEAST_PIVOT * float(pivots.max()) ** 2:
        return triangle
    values, vectors = torch.linalg.eigh(sigma)
    keep = values > values[-1] * len(sigma) * torch.finfo(torch.float64).eps
    factor: Tensor = vectors[:, keep] * values[keep].sqrt()
    return factor


@dataclass
class Moments:
    """Running count, mean and centred sum of outer products of one set of features.

    Attributes:
        n: Samples so far.
        mean: float64 [D].
        scatter: Sum of (x - mean)(x - mean)^T, float64 [D, D].
    """

    n: int
    mean: FloatArray
    scatter: FloatArray

    @classmethod
    def empty(cls, dim: int) -> Moments:
        """Return the moments of no samples."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    def add(self, features: FloatArray, device: Device = "cpu") -> None:
        """Count a block of features [B, D] in; products are computed on `device`."""
        block = np.asarray(features, np.float64)
        if len(block):
            mean = block.mean(0)
            centred = block - mean
            self.merge(Moments(len(block), mean, _gram(centred, device)))

    def merge(self, other: Moments) -> None:
        """Count another set's moments in (Chan et al., 1979)."""
        n = self.n + other.n
        if n:
            delta = other.mean - self.mean
            self.mean = self.mean + delta * (other.n / n)
            self.scatter = self.scatter + other.scatter
            self.scatter += np.outer(delta, delta * (self.n * other.n / n))
            self.n = n

    def gaussian(self) -> Gaussian:
        """Return mean and unbiased covariance. Raises ValueError with fewer than 2 samples."""
        if self.n < 2:
            raise ValueError(f"{self.n} sample(s) have no covariance; at least 2 are needed")
        return Gaussian(self.mean, self.scatter / (self.n - 1), self.n)


def moments_of(features: FloatArray, device: Device = "cpu") -> Moments:
    """Return the moments of features [N, D], added in fixed blocks: the same bits everywhere."""
    moments = Moments.empty(features.shape[1])
    for start in range(0, len(features), BLOCK_ROWS):
        moments.add(features[start : start + BLOCK_ROWS], device)
    return moments


def gaussian_of(features: FloatArray, device: Device = "cpu") -> Gaussian:
    """Return mean and unbiased covariance of features [N, D]; products computed on `device`."""
    return moments_of(features, device).gaussian()


def _gram(x: FloatArray, device: Device) -> FloatArray:
    """Return x^T x of float64 rows."""
    if torch.device(device).type == "cpu":
        return x.T @ x
    rows = torch.from_numpy(x).to(device)
    product: FloatArray = (rows.T @ rows).cpu().numpy()
    return product


@dataclass(frozen=True)
class FeatureSet:
    """All that metrics need of one set of images.

    Attributes:
        meta: Where it comes from: `images`, `detector` identities, and more.
        n: Number of images.
        gaussians: Moments over all images, by tap.
        features: float32 [M, D] by tap: of all images (M = n, in index order) or of `selected`.
        selected: Indices of the M images, ascending.
        labels: Classes of the M images, int64 [M], where they are known.
    """

    meta: dict[str, Any]
    n: int
    gaussians: dict[str, Gaussian] = field(default_factory=dict)
    features: dict[str, FloatArray] = field(default_factory=dict)
    selected: Sequence[int] = ()
    labels: NDArray[np.int64] | None = None

    @property
    def num_rows(self) -> int:
        """Number of images whose features it holds."""
        return max(map(len, self.features.values()), default=0)

    def rows(self, tap: str) -> FloatArray:
        """Return the features of a tap. Raises ValueError if they were not stored."""
        if tap not in self.features:
            raise ValueError(
                f"{self.meta.get('source', 'this set')} holds no features of tap {tap!r} (it has"
                f" {', '.join(self.features) or 'none'}); compute the reference with --features"
            )
        return self.features[tap]

    def gaussian(self, tap: str) -> Gaussian:
        """Return the moments of a tap. Raises ValueError if there are none."""
        if tap not in self.gaussians:
            raise ValueError(
                f"{self.meta.get('source', 'this set')} holds no moments of tap {tap!r}"
                f" (it has {', '.join(self.gaussians) or 'none'})"
            )
        return self.gaussians[tap]

    def thinned(self, count: int) -> FeatureSet:
        """Return the set with the features of at most `count` images, as `stratified` selects."""
        rows = stratified(len(self.selected), count)
        return dataclasses.replace(
            self,
            meta=self.meta | selection_of(len(self.selected), count),
            features={tap: values[rows] for tap, values in self.features.items()},
            selected=[self.selected[row] for row in rows],
            labels=None if self.labels is None else self.labels[rows],
        )

    def is_complete(self, tap: str) -> bool:
        """Tell whether it holds the features of all images."""
        return tap in self.features and len(self.features[tap]) == self.n


def stratified(total: int, count: int) -> list[int]:
    """Return `count` ascending indices of range(total) (all if there are fewer), always the same.

    One is drawn from each of `count` equal ranges: images in order of their classes keep the shares
    of these, and where classes repeat (seed mod classes) no class is missed, as by every k-th.
    """
    count = min(count, total)
    edges = np.arange(count + 1) * total // max(count, 1)
    places = np.random.RandomState(SELECTION_SEED).random_sample(count) * np.diff(edges)
    indices: list[int] = (edges[:-1] + places.astype(np.int64)).tolist()
    return indices


def selection_of(total: int, count: int) -> dict[str, str]:
    """Return what is recorded of a set of which `count` images are selected; {} if all are."""
    return {SELECTED_BY: SELECTION} if count < total else {}
