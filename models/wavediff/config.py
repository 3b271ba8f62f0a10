"""The configuration of a WaveDiff or DDGAN pair."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from models.sampler import Sampler
from models.wavediff.data_space import PixelSpace, WaveletSpace
from models.wavediff.diffusion import Diffusion, DiffusionConfig
from models.wavediff.discriminator import DiscriminatorConfig
from models.wavediff.generator_config import GeneratorConfig
from models.wavediff.objective import WaveDiffObjective
from models.wavediff.sampler import WaveDiffSampler


@dataclass(frozen=True, kw_only=True)
class WaveDiffConfig:
    """A WaveDiff pair; with `space` PixelSpace and no frequency_* settings it is DDGAN.

    Attributes:
        resolution: Edge of the images in pixels.
        space: Where the diffusion takes place; the networks see `space.edge(resolution)` pixels.
        generator: Shape of the generator.
        discriminator: Shape of the discriminator.
        diffusion: Noise schedule, with the number of steps T.
        r1_gamma: Weight of the R1 gradient penalty; 0 switches it off.
        r1_interval: Steps between penalties (1: each step). The penalty is not multiplied by it, as
            in the official code.
        reconstruction_weight: Weight of the mean absolute error of the predicted y_0.
        label_dim: Always 0: the model is unconditional.
    """

    resolution: int
    space: WaveletSpace | PixelSpace = field(default_factory=WaveletSpace)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    r1_gamma: float = 0.02
    r1_interval: int = 15
    reconstruction_weight: float = 1.0
    label_dim: Literal[0] = 0

    def __post_init__(self) -> None:
        for name in ("r1_gamma", "reconstruction_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and finite")
        if self.r1_interval < 1:
            raise ValueError(f"r1_interval={self.r1_interval} must be at least 1 (every step)")
        edge = self.space.edge(self.resolution)
        self.generator.check_resolution(edge)
        self.discriminator.check_resolution(edge)

    def unread(self) -> dict[str, str]:
        """Return the interval of no penalty."""
        return {} if self.r1_gamma else {"r1_interval": "r1_gamma=0 switches the penalty off"}

    def build(self) -> WaveDiffObjective:
        """Return the objective."""
        return WaveDiffObjective(
            resolution=self.resolution,
            space=self.space,
            generator=self.generator,
            discriminator=self.discriminator,
            diffusion=Diffusion(self.diffusion),
            r1_gamma=self.r1_gamma,
            r1_interval=self.r1_interval,
            reconstruction_weight=self.reconstruction_weight,
        )

    def build_sampler(self, network: nn.Module, previous: Sampler | None = None) -> Sampler:
        """Return the sampler of a trained generator.

        Raises:
            ValueError: There is a previous sampler.
        """
        if previous is not None:
            raise ValueError("WaveDiff continues from no other stage; give one snapshot only")
        return WaveDiffSampler(
            network,
            Diffusion(self.diffusion),
            self.space,
            resolution=self.resolution,
            latent_dim=self.generator.latent_dim,
        )
