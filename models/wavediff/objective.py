"""Training of a WaveDiff or DDGAN pair: a denoising generator against a discriminator of steps.

Losses follow docs/reference/wavediff.md#7.1: softplus, lazy R1 on y_t at full weight, and an L1
reconstruction term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.objective import Example, LossFn, Metrics, Networks, images_to_unit_range
from models.sample_rng import SampleStreams
from models.wavediff.data_space import PixelSpace, WaveletSpace
from models.wavediff.diagnostics import diagnose_pair, diversity
from models.wavediff.diffusion import Diffusion
from models.wavediff.discriminator import Discriminator, DiscriminatorConfig
from models.wavediff.generator import Generator
from models.wavediff.generator_config import GeneratorConfig

GRID_SIZE = 8
"""Images of the fixed-latent grid whose diversity is measured."""
GRID_INTERVAL = 50
"""Steps between measurements of its diversity."""


@dataclass(frozen=True)
class WaveDiffObjective:
    """The losses of a pair: first the discriminator's, then the generator's with fresh draws.

    Attributes:
        resolution: Edge of the images in pixels.
        space: Where the diffusion takes place.
        generator: Shape of the generator.
        discriminator: Shape of the discriminator.
        diffusion: Forward process and posterior.
        r1_gamma: Weight of the R1 gradient penalty, 0 for none.
        r1_interval: Steps between penalties.
        reconstruction_weight: Weight of the mean absolute error of the predicted y_0.
    """

    resolution: int
    space: WaveletSpace | PixelSpace
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    diffusion: Diffusion
    r1_gamma: float
    r1_interval: int
    reconstruction_weight: float

    sampled_network = "generator"

    @property
    def batch_multiple(self) -> int:
        """Samples of a minibatch-stddev group."""
        return self.discriminator.stddev_group

    @property
    def second_order(self) -> frozenset[str]:
        """The discriminator, if R1 differentiates its gradient."""
        return frozenset({"discriminator"} if self.r1_gamma else ())

    def build_networks(self) -> dict[str, nn.Module]:
        """Return "generator" and "discriminator" with fresh weights."""
        channels, edge = self.space.channels, self.space.edge(self.resolution)
        return {
            "generator": Generator(self.generator, channels, edge),
            "discriminator": Discriminator(self.discriminator, channels),
        }

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 images [B, 3, H, W] to y_0, float32 [B, C, edge, edge] in [-1, 1].

        Raises:
            ValueError: The images have another size than the configuration says.
        """
        size = (self.resolution, self.resolution)
        if images.shape[-2:] != size:
            raise ValueError(
                f"images are {images.shape[-2]}x{images.shape[-1]}, the objective expects"
                f" resolution={self.resolution}"
            )
        return self.space.pack(images_to_unit_range(images))

    def losses(self) -> dict[str, LossFn]:
        """Return the losses in order: discriminator, generator."""
        return {"discriminator": self.discriminator_loss, "generator": self.generator_loss}

    def discriminator_loss(
        self, networks: Networks, example: Example, step: int
    ) -> tuple[Tensor, Metrics]:
        """Return real + fake + R1 (each r1_interval steps) as one sum; G runs without gradient."""
        discriminator = networks["discriminator"]
        penalised = self.r1_gamma > 0 and step % self.r1_interval == 0
        with torch.no_grad():
            t, y_t, y_tp1, _, fake = self._generate(networks, example, "discriminator")
        y_t.requires_grad_(penalised)
        if penalised or self.discriminator.stddev_grouping == "strided":
            logits_real = discriminator(y_t, t, y_tp1)
            logits_fake = discriminator(fake, t, y_tp1)
        else:  # one pass over both is faster; consecutive groups do not mix them
            both = torch.cat([y_t, fake]), torch.cat([t, t]), torch.cat([y_tp1, y_tp1])
            logits_real, logits_fake = discriminator(*both).chunk(2)
        loss_real, loss_fake = F.softplus(-logits_real).mean(), F.softplus(logits_fake).mean()
        loss = loss_real + loss_fake
        r1 = torch.full_like(loss_real, torch.nan)
        if penalised:
            r1 = self.r1_gamma / 2 * mean_squared_gradient(logits_real, y_t)
            loss = loss + r1
        metrics = {
            "loss": loss,
            "loss_real": loss_real,
            "loss_fake": loss_fake,
            "r1": r1,
            "accuracy_real": (logits_real > 0).float().mean(),
            "accuracy_fake": (logits_fake < 0).float().mean(),
        }
        return loss, {name: value.detach() for name, value in metrics.items()}

    def generator_loss(
        self, networks: Networks, example: Example, step: int
    ) -> tuple[Tensor, Metrics]:
        """Return the adversarial loss plus the weighted reconstruction error."""
        # Before there are activations: its samples may be more than those of the micro-batch.
        spread = self._grid_diversity(networks["generator"], example.x, step)
        t, _, y_tp1, prediction, fake = self._generate(networks, example, "generator")
        logits = networks["discriminator"](fake, t, y_tp1)
        adversarial = F.softplus(-logits).mean()
        reconstruction = (prediction - example.x).abs().mean()
        loss = adversarial + self.reconstruction_weight * reconstruction
        metrics = {
            "loss": loss,
            "loss_adversarial": adversarial,
            "loss_reconstruction": reconstruction,
            "diversity": spread,
        }
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _generate(
        self, networks: Networks, example: Example, purpose: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return t, y_t, y_{t+1}, the predicted y_0 and a fake y_t drawn from its posterior.

        Draws, in the official order: t, noise of y_{t+1}, noise of y_t, z, noise of the posterior.
        """
        y0, draws = example.x, example.draws(purpose)
        t = draws.randint(self.diffusion.steps)
        noise_tp1 = draws.randn(y0.shape[1:], y0.dtype)
        noise_t = draws.randn(y0.shape[1:], y0.dtype)
        y_t, y_tp1 = self.diffusion.pair(y0, t, noise_tp1, noise_t)
        z = draws.randn((self.generator.latent_dim,), y0.dtype)
        prediction = networks["generator"](y_tp1, t, z)
        noise = draws.randn(y0.shape[1:], y0.dtype)
        return (
            t,
            y_t,
            y_tp1,
            prediction,
            self.diffusion.posterior_sample(prediction, y_tp1, t, noise),
        )

    def _grid_diversity(self, generator: nn.Module, x: Tensor, step: int) -> Tensor:
        """Return the diversity of first-step predictions from fixed noise and latents.

        Measured every GRID_INTERVAL steps, else NaN; the same on every rank.
        """
        if step % GRID_INTERVAL:
            return x.new_full((), torch.nan)
        draws = SampleStreams(range(GRID_SIZE), x.device)
        y = draws.randn(x.shape[1:]).to(x.dtype)
        z = draws.randn((self.generator.latent_dim,)).to(x.dtype)
        t = torch.full((GRID_SIZE,), self.diffusion.steps - 1, device=x.device)
        with torch.no_grad():
            return diversity(generator(y, t, z))

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """Diagnose an interval's mean metrics: None, or how training has failed and what to change.

        Finds non-finite numbers, exploding losses, a discriminator that is saturated or constant,
        and a generator whose samples are all alike.
        """
        return diagnose_pair(metrics)


def mean_squared_gradient(logits: Tensor, inputs: Tensor) -> Tensor:
    """Return the batch mean of the squared norm of d(sum of logits)/d(inputs), differentiable."""
    (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
