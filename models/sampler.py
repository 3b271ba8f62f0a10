"""The interface between models and evaluation: images from seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.sample_rng import Draws, SampleStreams


class Sampler(Protocol):
    """Draws images from a trained network (or, for a relay, from a chain of them).

    Image b depends on its seed and label alone: not on the batch, the rank or the world size,
    apart from summation order inside the network's kernels.
    """

    resolution: int
    """Edge of the square images, in pixels."""
    label_dim: int
    """Number of classes, 0 for unconditional models."""
    device: torch.device
    """Where the networks live and the draws are made."""
    nfe: dict[str, int]
    """Network evaluations per image by stage, guidance included (docs/reference/rdm.md#10.1)."""

    def generate(self, draws: Draws, labels: Tensor | None = None) -> Tensor:
        """Return images in [-1, 1], float [B, 3, H, W], neither clipped nor quantised.

        All randomness is taken from `draws`, in a fixed order, stage after stage.
        """


def sample(
    sampler: Sampler,
    seeds: Sequence[int],
    labels: Tensor | None = None,
    to_uint8: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return one uint8 RGB image per seed, [B, 3, H, W], from its own random stream.

    Args:
        sampler: Any sampler.
        seeds: One seed per image, used modulo 2^32 (docs/reference/rdm.md#10.2).
        labels: Class indices, int64 [B]; None takes seed mod label_dim for conditional models
            (so that any N * label_dim consecutive seeds are class-balanced).
        to_uint8: Rule that maps [-1, 1] to uint8; None takes `quantise`.

    Raises:
        ValueError: A label is not in [0, label_dim), or the model is unconditional.
    """
    if labels is None:
        labels = balanced_labels(seeds, range(sampler.label_dim))
    if labels is not None:
        check_labels(labels, sampler.label_dim)
        labels = labels.to(sampler.device)
    draws = SampleStreams([seed % (1 << 32) for seed in seeds], sampler.device)
    with torch.inference_mode():
        return (to_uint8 or quantise)(sampler.generate(draws, labels))


def balanced_labels(seeds: Sequence[int], classes: Sequence[int]) -> Tensor | None:
    """Return the class of each seed, int64 [B]: its remainder's; None if there are no classes."""
    if not classes:
        return None
    return torch.tensor([classes[seed % len(classes)] for seed in seeds])


def check_labels(labels: Tensor, label_dim: int) -> None:
    """Raise ValueError unless all labels are in [0, label_dim) of a conditional model."""
    if label_dim == 0:
        raise ValueError("labels for an unconditional model (label_dim=0); leave them out")
    bad = labels[(labels < 0) | (labels >= label_dim)]
    if len(bad):
        raise ValueError(
            f"label {int(bad[0])} is not in 0..{label_dim - 1} (label_dim={label_dim})"
        )


def quantise(images: Tensor) -> Tensor:
    """Map [-1, 1] to uint8: trunc(clip(127.5 x + 128, 0, 255)) (docs/reference/rdm.md#10.3)."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
