"""MIND: a sliced Wasserstein-2 distance of features (docs/reference/evaluation.md#3.8)."""

from __future__ import annotations

import torch

from evaluation.detectors.base import exact_arithmetic
from evaluation.metrics.statistics import FloatArray


def mind(
    gen: FloatArray,
    ref: FloatArray,
    *,
    directions: int = 1000,
    seed: int = 2020,
    device: torch.device | str = "cpu",
) -> float:
    """Return 3 d times the mean squared difference of sorted projections.

    Args:
        gen: Generated features [N, D].
        ref: Reference features [M, D]; the larger set is cut to the smaller by a seeded choice.
        directions: Number of random directions.
        seed: Seed of torch's CPU generator.
        device: Where projections are computed and sorted.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.from_numpy(f).to(torch.float32) for f in (gen, ref))
    n = min(len(x), len(y))
    if len(x) > n:
        x = x[torch.randperm(len(x), generator=generator)[:n]]
    if len(y) > n:
        y = y[torch.randperm(len(y), generator=generator)[:n]]
    basis = torch.randn(directions, x.shape[1], generator=generator)
    basis = (basis / basis.norm(dim=1, keepdim=True)).T
    basis = basis.to(device)
    with exact_arithmetic():
        u, v = ((f.to(device) @ basis).sort(0).values for f in (x, y))
    gaps = (u - v).double()
    return float(3 * x.shape[1] * gaps.square().mean())
