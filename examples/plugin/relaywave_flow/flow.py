"""Flow matching: learn the velocity that carries noise to images along straight lines.

x_t = (1 - t) x + t z has the velocity z - x; the network sees x_t and t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.families import objective
from models.objective import Example, LossFn, Metrics, Networks, images_to_unit_range
from models.rdm.unet import UNet, UNetConfig
from models.sample_rng import Draws
from models.sampler import Sampler

VELOCITY = "velocity"


@dataclass(frozen=True, kw_only=True)
class FlowSampling:
    """Settings of the sampler, which `relaywave eval` may change: sampling.steps=50."""

    steps: int = 20


@objective
@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Flow matching (models.objective.ObjectiveConfig).

    Attributes:
        unet: The network.
        sampling: Settings of the sampler.
    """

    unet: UNetConfig
    sampling: FlowSampling = field(default_factory=FlowSampling)

    @property
    def label_dim(self) -> int:
        """Number of classes, 0 for unconditional models."""
        return self.unet.label_dim

    def build(self) -> FlowObjective:
        """Return the objective."""
        return FlowObjective(self.unet)

    def build_sampler(self, network: nn.Module, previous: Sampler | None = None) -> FlowSampler:
        """Return the sampler. Raises ValueError if there is a previous stage."""
        if previous is not None:
            raise ValueError("flow matching starts from noise; give its snapshot alone")
        return FlowSampler(self, network)


@dataclass(frozen=True)
class FlowObjective:
    """What a training step computes (models.objective.Objective)."""

    unet: UNetConfig

    sampled_network = VELOCITY
    batch_multiple = 1
    second_order: frozenset[str] = frozenset()

    @property
    def resolution(self) -> int:
        """Edge of the images in pixels."""
        return self.unet.resolution

    def build_networks(self) -> dict[str, nn.Module]:
        """Return the network with fresh weights."""
        return {VELOCITY: UNet(self.unet)}

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 RGB images to float32 in [-1, 1]."""
        return images_to_unit_range(images)

    def losses(self) -> dict[str, LossFn]:
        """Return the only loss."""
        return {VELOCITY: self.loss}

    def loss(self, networks: Networks, example: Example, step: int) -> tuple[Tensor, Metrics]:
        """Return the mean squared error of the velocity.

        Times and noise are drawn by the example: each sample has its own, on any number of ranks.
        """
        del step
        x, time = example.x, example.draws("time").rand()
        noise = example.draws("noise").randn(x.shape[1:])
        t = time[:, None, None, None]
        found = networks[VELOCITY]((1 - t) * x + t * noise, time, example.labels)
        errors = (found.float() - (noise - x)).square().mean(dim=(1, 2, 3))
        return errors.mean(), {"loss": errors.detach()}

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """Diagnose an interval's mean metrics; an untrained network has a loss of about 1.3."""
        loss = metrics.get(f"{VELOCITY}/loss", 0.0)
        return f"loss={loss:.3g}; lower optim.{VELOCITY}.lr" if loss > 100 else None


class FlowSampler:
    """Follows the velocity from noise to images in equal steps (models.sampler.Sampler)."""

    def __init__(self, config: FlowConfig, network: nn.Module) -> None:
        self.network, self.steps = network, config.sampling.steps
        self.resolution, self.label_dim = config.unet.resolution, config.label_dim
        self.device = next(network.parameters()).device
        self.nfe = {"flow": self.steps}

    def generate(self, draws: Draws, labels: Tensor | None = None) -> Tensor:
        """Return images in [-1, 1], float32 [B, 3, H, W]."""
        x = draws.randn((3, self.resolution, self.resolution))
        for k in range(self.steps, 0, -1):
            time = torch.full((len(x),), k / self.steps, device=x.device)
            x = x - self.network(x, time, labels).float() / self.steps
        return x
