"""What the official runs recorded: random draws and a closed-form denoiser, replayed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.golden_file import Golden


def class_indices(one_hot: Tensor | None) -> Tensor | None:
    """Return the classes of one-hot rows; None without labels, or without classes."""
    return one_hot.argmax(1) if one_hot is not None and one_hot.shape[1] else None


class Tape:
    """Replays recorded draws in order (models.sample_rng.Draws)."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws = list(draws)

    def __len__(self) -> int:
        return len(self.draws[0])

    def _next(self, shape: tuple[int, ...]) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.numel() == len(draw) * int(np.prod(shape)), (draw.shape, shape)
        return draw.reshape(len(draw), *shape).clone()

    def randn(self, shape, dtype=torch.float32) -> Tensor:
        return self._next(tuple(shape)).to(dtype)

    def rand(self, shape=(), dtype=torch.float32) -> Tensor:
        return self._next(tuple(shape)).to(dtype)

    def randint(self, high, shape=()) -> Tensor:
        return self._next(tuple(shape))


class AnalyticDenoiser:
    """The README's closed-form denoiser; records the evaluations, conditional half first."""

    def __init__(self, golden: Golden) -> None:
        self.c, self.r = float(golden["den_c"]), float(golden["den_r"])
        self.class_means, self.mean = golden["den_M"], golden["den_mu0"]
        self.calls: list[tuple[Tensor, float, bool]] = []

    def __call__(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None) -> Tensor:
        self._record(x, sigma, labels)
        w = self.c / (self.c + torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1) ** 2)
        mixed = (1 - self.r) * x + self.r * x.roll((1, 2), (2, 3))
        means = self.mean.expand(len(x), -1)
        if labels is not None and len(self.class_means):
            named = self.class_means[labels.clamp(min=0)]
            means = torch.where((labels >= 0).unsqueeze(1), named, means)
        return w * mixed + (1 - w) * means.to(x.dtype)[:, :, None, None]

    def _record(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None) -> None:
        conditional = labels is not None
        if conditional and bool((labels < 0).any()):
            first, second = x.chunk(2)
            assert bool((labels.chunk(2)[0] >= 0).all() and (labels.chunk(2)[1] < 0).all())
            self.calls += [(first.clone(), sigma, True), (second.clone(), sigma, False)]
        else:
            self.calls.append((x.clone(), sigma, conditional))
