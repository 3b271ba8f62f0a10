"""Fréchet distance without a matrix square root (docs/reference/evaluation.md#5.4).

tr (S1 S2)^(1/2) is the nuclear norm of L1^T L2 for any factors S = L L^T; from features themselves,
of A B^T with A, B the centred features over sqrt(n - 1). No epsilon, no imaginary part, and exact
for singular covariances (fewer samples than features).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.statistics import Device, FeatureSet, FloatArray, Gaussian

ACCURACY = 1e-10
"""Error that a distance may have, relative to the traces of both covariances."""
GRAM_SIZE = 1024


def frechet_distance(a: Gaussian, b: Gaussian, device: Device = "cpu") -> float:
    """Return |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2).

    Error below 1e-10 (tr S_a + tr S_b). Computed on `device`; factors are cached in the arguments.

    Raises:
        ValueError: The dimensions differ.
    """
    if a.dim != b.dim:
        raise ValueError(f"cannot compare features of {a.dim} and {b.dim} dimensions")
    traces = float(np.trace(a.sigma) + np.trace(b.sigma))
    cross = nuclear_norm(a.factor(device).T @ b.factor(device), ACCURACY * traces)
    return _assemble(a.mu, b.mu, traces, cross)


def frechet_of_features(x: FloatArray, y: FloatArray) -> float:
    """Return the Fréchet distance of two sets of features [N, D] and [M, D], unbiased covariances.

    Forms no covariance; the way of choice where N or M is below D.
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"cannot compare features of {x.shape[1]} and {y.shape[1]} dimensions")
    (mu_x, a), (mu_y, b) = _centre(x), _centre(y)
    traces = float(np.square(a).sum() + np.square(b).sum())
    return _assemble(mu_x, mu_y, traces, nuclear_norm(_compact(a) @ _compact(b).T))


def frechet(gen: FeatureSet, ref: FeatureSet, tap: str, device: Device = "cpu") -> float:
    """Return the Fréchet distance of two sets at a tap by the way that is best conditioned."""
    if gen.is_complete(tap) and ref.is_complete(tap):
        x, y = gen.rows(tap), ref.rows(tap)
        if min(len(x), len(y)) < x.shape[1]:
            return frechet_of_features(x, y)
    return frechet_distance(gen.gaussian(tap), ref.gaussian(tap), device)


def nuclear_norm(matrix: FloatArray | Tensor, accuracy: float = 0.0) -> float:
    """Return the sum of singular values of a matrix, computed in float64.

    Large matrices go through the eigenvalues of their Gram matrix, four times faster, where the
    estimated loss (squaring hides singular values below 1e-8 of the largest) is below `accuracy`.
    """
    g = torch.as_tensor(matrix, dtype=torch.float64)
    if min(g.shape) >= GRAM_SIZE:
        squares = torch.linalg.eigvalsh(g @ g.T if g.shape[0] <= g.shape[1] else g.T @ g)
        if _gram_error(squares) <= accuracy:
            return float(squares.clamp(min=0).sqrt().sum())
    return float(torch.linalg.svdvals(g).sum())


def _gram_error(squares: Tensor) -> float:
    """Estimate the error of the sum of roots of a Gram matrix' eigenvalues (ascending).

    Each eigenvalue is off by at most about eps times the largest (a twentieth of it was seen),
    with a random sign; one that does not stand out of this noise may be off by a full root.
    """
    noise = float(squares[-1]) * float(np.finfo(np.float64).eps)
    is_clear = squares > 100 * noise
    spread = math.sqrt(float((noise / 2 / squares[is_clear].sqrt()).square().sum()))
    return spread + int((~is_clear).sum()) * math.sqrt(100 * noise)


def _assemble(mu_a: FloatArray, mu_b: FloatArray, traces: float, cross: float) -> float:
    return float(np.square(mu_a - mu_b).sum()) + traces - 2 * cross


def _centre(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the mean and the centred features over sqrt(n - 1), float64."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} sample(s) have no covariance; at least 2 are needed")
    x = np.asarray(features, np.float64)
    mean = x.mean(0)
    return mean, (x - mean) / np.sqrt(len(x) - 1)


def _compact(a: FloatArray) -> FloatArray:
    """Return R [min(n, d), d] with R^T R = a^T a."""
    if len(a) <= a.shape[1]:
        return a
    r: FloatArray = np.asarray(np.linalg.qr(a, mode="r"))
    return r
