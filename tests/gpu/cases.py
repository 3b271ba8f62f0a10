"""The recipes under test, their networks with weights that tell, and batches to give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from data_pipelines.pipeline import DataConfig
from dist_train.config import CheckpointConfig, LoggingConfig, RunConfig
from dist_train.precision import settle_precision
from dist_train.recipes import RECIPES
from models.objective import Example, Objective
from models.rdm.config import RelayConfig
from models.sample_rng import Draws, SampleStreams

MOST_TELLING = (
    "rdm_imagenet256",
    "wavediff_cifar10",
    "rdm_imagenet64",
    "ddgan_cifar10",
    "wavediff_celebahq256",
    "rdm_celebahq64",
    "rdm_celebahq256",
)
"""First of each part; the other recipes follow by name."""
SMALL = ("debug", "quickstart")
"""What the names of recipes contain that stand in for others on the processor."""


def recipe_names(debug: bool) -> list[str]:
    """Return the recipes in the order in which they are run."""
    if debug:
        return [name for name in RECIPES if "debug" in name]
    full = [name for name in sorted(RECIPES) if not any(word in name for word in SMALL)]
    return [*MOST_TELLING, *(name for name in full if name not in MOST_TELLING)]


def families(names: Sequence[str]) -> list[str]:
    """Return the first recipe of each kind of objective, pixels and subbands apart."""
    first: dict[Any, str] = {}
    for name in names:
        config = RECIPES[name]().objective
        first.setdefault((type(config), type(getattr(config, "space", None))), name)
    return list(first.values())


def micro_batch(config: RunConfig) -> int:
    """Return the samples per GPU and pass, as the recipe has them on its own number of GPUs."""
    ranks = config.sharding.nodes * config.sharding.gpus_per_node
    return config.micro_batch_size or max(config.global_batch_size // ranks, 1)


def one_gpu_run(name: str, micro: int | None = None, **compute: Any) -> RunConfig:
    """Return a recipe as one GPU of its job computes it: one pass a step, generated images."""
    config = RECIPES[name]()
    micro = micro or micro_batch(config)
    config = replace(
        config,
        data=DataConfig(backend="synthetic", resolution=config.data.resolution, flip=True),
        global_batch_size=micro,
        micro_batch_size=micro,
        total_images=10**9,
        compute=replace(config.compute, **compute),
        checkpoint=CheckpointConfig(every_images=10**9, snapshot_every_images=10**9),
        logging=LoggingConfig(every_images=10**9, grid_seeds=0),
    )
    return settle_precision(config, bfloat16=True)


def computing_in(config: RunConfig, precision: str) -> Any:
    """Return the objective's configuration with all networks in one dtype."""
    compute = replace(config.compute, precision=precision)
    return settle_precision(replace(config, compute=compute), bfloat16=True).objective


def wake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give layers that start at zero weights of the usual size, else most gradients are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and float(parameter.abs().max()) < 1e-3:
                deviation = 0.5 / parameter[0].numel() ** 0.5
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * deviation)
    return network


@dataclass(frozen=True)
class SameDraws(Example):
    """An example whose draws are the processor's, whatever device its images are on."""

    def draws(self, purpose: str) -> Any:
        return MovedDraws(self.stream_seeds(purpose), self.x.device)


class MovedDraws(Draws):
    """Draws (models.sample_rng) of the processor's generators, moved to a device."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._draws, self._device = SampleStreams(seeds), device

    def __len__(self) -> int:
        return len(self._draws)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return self._draws.randn(shape, dtype).to(self._device)

    def rand(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        return self._draws.rand(shape, dtype).to(self._device)

    def randint(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        return self._draws.randint(high, shape).to(self._device)


def same_example(
    objective: Objective, label_dim: int, size: int, device: torch.device
) -> SameDraws:
    """Return a batch of random images, the same on every device."""
    edge = objective.resolution
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (size, 3, edge, edge), dtype=torch.uint8, generator=generator)
    labels = (torch.arange(size) % label_dim).to(device) if label_dim else None
    return SameDraws(objective.prepare(images.to(device)), labels, tuple(range(size)), 0)


class Start:
    """A stage before a relay that costs nothing: noise of images' range."""

    def __init__(self, resolution: int, label_dim: int, device: torch.device) -> None:
        self.resolution, self.label_dim, self.device = resolution, label_dim, device
        self.nfe: dict[str, int] = {}

    def generate(self, draws: Draws, labels: Tensor | None = None) -> Tensor:
        del labels
        return draws.randn((3, self.resolution, self.resolution)).clamp(-1, 1)


def build_sampler(config: Any, network: nn.Module) -> Any:
    """Return an objective's sampler; a relay starts from `Start`."""
    device = next(network.parameters()).device
    start = None
    if isinstance(config, RelayConfig):
        edge = config.unet.resolution // config.process.upscale
        start = Start(edge, config.label_dim, device)
    return config.build_sampler(network.eval(), start)
