"""Inception Score from logits (docs/reference/evaluation.md#3.2).

exp of the mean over samples of KL(p(y|x) || p(y)), p(y) the mean of the split, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.statistics import FloatArray

CHUNK = 5000


def split_scores(logits: FloatArray, splits: Sequence[slice]) -> NDArray[np.float64]:
    """Return the score of each split of logits [N, K].

    Raises:
        ValueError: A split is empty, or there is none.
    """
    scores = []
    for split in splits:
        rows = np.asarray(logits[split], np.float64)
        if not len(rows):
            raise ValueError(f"{len(logits)} samples are too few for {len(splits)} splits")
        log_p = rows - _log_sum_exp(rows)
        p = np.exp(log_p)
        scores.append(np.exp((p * (log_p - np.log(p.mean(0)))).sum(1).mean()))
    if not scores:
        raise ValueError("the Inception Score needs samples")
    return np.array(scores)


def contiguous_splits(n: int, count: int = 10) -> list[slice]:
    """Return `count` nearly equal splits in order (StyleGAN, torch-fidelity)."""
    return [slice(i * n // count, (i + 1) * n // count) for i in range(count)]


def chunk_splits(n: int, size: int = CHUNK) -> list[slice]:
    """Return chunks of `size`, the last one maybe shorter (ADM, RDM)."""
    return [slice(start, start + size) for start in range(0, n, size)]


def mean_score(logits: FloatArray, splits: int = 10) -> float:
    """Return the mean score of contiguous splits of logits [N, K]."""
    return float(split_scores(logits, contiguous_splits(len(logits), splits)).mean())


def _log_sum_exp(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    top = rows.max(1, keepdims=True)
    total: NDArray[np.float64] = top + np.log(np.exp(rows - top).sum(1, keepdims=True))
    return total
