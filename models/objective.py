"""The interface between models and the training loop: losses by the network they update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from models.sample_rng import SampleStreams, stream_seed
from models.sampler import Sampler


@dataclass(frozen=True)
class Example:
    """A micro-batch in model space, with the identity of its samples.

    Attributes:
        x: Model-space input of the objective, float32 [B, C, H, W].
        labels: Class indices, int64 [B], or None for an unlabelled set.
        positions: Places of the samples in the global, endless sample order (one per sample);
            two epochs' visits of one image have different positions.
        seed: The run's seed.
    """

    x: Tensor
    labels: Tensor | None
    positions: tuple[int, ...]
    seed: int

    def stream_seeds(self, purpose: str) -> list[int]:
        """Return one seed per sample for `purpose`; independent of rank and micro-batch split."""
        return [stream_seed(self.seed, purpose, position) for position in self.positions]

    def draws(self, purpose: str) -> SampleStreams:
        """Return fresh streams for `purpose` on the device of x: equal calls give equal draws."""
        return SampleStreams(self.stream_seeds(purpose), self.x.device)


Networks = Mapping[str, nn.Module]
Metrics = dict[str, Tensor]
LossFn = Callable[[Networks, Example, int], tuple[Tensor, Metrics]]
"""(networks, example, step) -> (scalar loss: a mean over the samples, detached metrics).

`step` counts the steps of the loop from 0; in each, every network is updated once. Metrics are
tensors of any shape; the loop averages their finite entries over micro-batches, ranks and steps, so
that NaN marks "not measured here" (a sample outside a noise-level bin, a step without R1).
"""


class Objective(Protocol):
    """What a training step computes. Built by an ObjectiveConfig; holds no parameters itself."""

    @property
    def sampled_network(self) -> str:
        """Name of the network that samples are drawn from: EMA follows it, snapshots hold it."""

    @property
    def resolution(self) -> int:
        """Edge of the square RGB images that `prepare` expects, in pixels."""

    @property
    def batch_multiple(self) -> int:
        """A micro-batch must be a multiple of this (size of a minibatch-stddev group; else 1)."""

    @property
    def second_order(self) -> frozenset[str]:
        """Networks whose loss differentiates a gradient (R1); ZeRO-3 cannot train them."""

    def build_networks(self) -> dict[str, nn.Module]:
        """Return the networks by name, float32, freshly initialised from torch's global RNG."""

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 RGB images [B, 3, H, W] to the model space, float32."""

    def losses(self) -> dict[str, LossFn]:
        """Return the losses in the order of their updates, keyed by the network they update."""

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """Diagnose an interval's mean metrics: None, or how training has failed and what to change.

        Metrics are named `<network>/<metric>`, e.g. `denoiser/loss`.
        """


@runtime_checkable
class ReadsFrozenNetworks(Protocol):
    """An objective whose losses also read networks that no loss trains: a teacher, the average.

    Losses find them among their `networks`; they are in eval mode, on the loss's device, and not
    part of the run's state.
    """

    @property
    def average(self) -> str | None:
        """Name under which losses find the main average of the sampled network; None: not at all.

        It is that after the last step, complete on every rank, which costs its size in memory and
        in communication per step.
        """

    def frozen_networks(self) -> dict[str, nn.Module]:
        """Return the others by name, with their weights: of a snapshot, by `load_network`."""


def frozen_networks(objective: Objective) -> dict[str, nn.Module]:
    """Return what losses read besides the trained networks; the average's weights are not set yet.

    Raises:
        ValueError: One has the name of a trained network, or its weights cannot be read.
    """
    if not isinstance(objective, ReadsFrozenNetworks):
        return {}
    found = objective.frozen_networks()
    if objective.average is not None:
        found[objective.average] = objective.build_networks()[objective.sampled_network]
    for name in found.keys() & objective.losses().keys():
        raise ValueError(f"the objective has a trained and a frozen network {name!r}; rename one")
    return {name: network.eval().requires_grad_(False) for name, network in found.items()}


class ObjectiveConfig(Protocol):
    """Frozen dataclass describing an objective: enough to rebuild networks and sampler anywhere."""

    def __hash__(self) -> int: ...

    @property
    def label_dim(self) -> int:
        """Number of classes, 0 for unconditional models."""

    def build(self) -> Objective:
        """Return the objective. Raises ValueError (value, expectation, setting) on bad settings."""

    def build_sampler(self, network: nn.Module, previous: Sampler | None = None) -> Sampler:
        """Return the sampler of the sampled network, continuing from `previous` in a relay."""


def images_to_unit_range(images: Tensor) -> Tensor:
    """Map uint8 images to float32 in [-1, 1]: v / 127.5 - 1 (docs/reference/rdm.md#1.2)."""
    return images.to(torch.float32) / 127.5 - 1
