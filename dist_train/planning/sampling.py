"""What drawing a batch of images costs: the recipe's own sampler, run on tensors without data."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dist_train.planning.flops import CostMeter, Operation, forgetting_fakes
from models.families import AnyObjective
from models.rdm.config import RelayConfig
from models.sample_rng import Draws


class SamplingCost(NamedTuple):
    """Cost of a batch.

    Attributes:
        batch: Number of images.
        evaluations: Calls of the network.
        operations: Of all of them, and of the sampler's own steps.
    """

    batch: int
    evaluations: int
    operations: Counter[Operation]


def usual_batch(resolution: int) -> int:
    """Return the images at once of the WaveDiff paper's timing (docs/reference/wavediff.md#8)."""
    return 100 if resolution < 512 else 25


@functools.lru_cache(maxsize=64)
def measure_sampling(config: AnyObjective, batch: int) -> SamplingCost:
    """Return what a batch costs with the objective's own sampler settings.

    Draws are made for the batch at once. A relay's previous stage is left out.
    """
    objective = config.build()
    with forgetting_fakes(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network = objective.build_networks()[objective.sampled_network].eval()
        previous = _Start(config) if isinstance(config, RelayConfig) else None
        sampler = config.build_sampler(network, previous)
        meter = CostMeter()
        counted = _CountedOnce(network, meter)
        network.forward = counted
        labels = torch.zeros(batch, dtype=torch.int64) if config.label_dim else None
        with meter:
            sampler.generate(_WholeBatch(batch), labels)
    return SamplingCost(batch, counted.calls, meter.operations)


class _CountedOnce:
    """A network's forward pass: the first of its kind is counted, others are taken to cost that."""

    def __init__(self, network: nn.Module, meter: CostMeter) -> None:
        self.calls = 0
        self._forward, self._meter = network.forward, meter
        self._known: dict[Any, tuple[Counter[Operation], Tensor]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        key = tuple(getattr(a, "shape", None) for a in (*args, *kwargs.values()))
        if key not in self._known:
            before = self._meter.operations.copy()
            result: Tensor = self._forward(*args, **kwargs)
            self._known[key] = self._meter.operations - before, result
            return result
        cost, result = self._known[key]
        self._meter.operations.update(cost)
        return torch.empty_like(result)


class _WholeBatch(Draws):
    """Draws of a batch at once, one operation each."""

    def __init__(self, batch: int) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return self._batch

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self._batch, *shape, dtype=dtype)

    def rand(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(self._batch, *shape, dtype=dtype)

    def randint(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        return torch.randint(high, (self._batch, *shape))


class _Start:
    """A stage before a relay that costs a draw."""

    def __init__(self, config: RelayConfig) -> None:
        self.resolution = config.unet.resolution // config.process.upscale
        self.label_dim = config.label_dim
        self.device = torch.device("cpu")
        self.nfe: dict[str, int] = {}

    def generate(self, draws: Draws, labels: Tensor | None = None) -> Tensor:
        return draws.randn((3, self.resolution, self.resolution))
