"""Sampling of WaveDiff and DDGAN: T generator steps, then the inverse transform."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.sample_rng import Draws
from models.wavediff.data_space import PixelSpace, WaveletSpace
from models.wavediff.diffusion import Diffusion


class WaveDiffSampler:
    """Draws images from a generator (docs/reference/wavediff.md#2.4).

    Args:
        network: Generator of y_0 from (y_{t+1}, t, z), in eval mode.
        diffusion: The schedule that it was trained with.
        space: The space that it works in.
        resolution: Edge of the images.
        latent_dim: Width of its latent z.
    """

    label_dim = 0

    def __init__(
        self, network: nn.Module, diffusion: Diffusion, space: WaveletSpace | PixelSpace, *,
        resolution: int, latent_dim: int,
    ) -> None:  # fmt: skip
        self.network = network
        self.diffusion = diffusion
        self.space = space
        self.resolution = resolution
        self.latent_dim = latent_dim
        parameter = next(network.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.nfe = {"wavediff": diffusion.steps}

    def generate(self, draws: Draws, labels: Tensor | None = None) -> Tensor:
        """Return images in about [-1, 1], float [B, 3, H, W], not clipped.

        Draws, in order: y_T; then in each step z and the posterior's noise (unused in the last).
        """
        del labels
        edge = self.space.edge(self.resolution)
        y = draws.randn((self.space.channels, edge, edge))
        for step in reversed(range(self.diffusion.steps)):
            t = torch.full(y.shape[:1], step, dtype=torch.int64, device=y.device)
            z = draws.randn((self.latent_dim,))
            prediction = self.network(y, t, z)
            noise = draws.randn((self.space.channels, edge, edge))
            y = self.diffusion.posterior_sample(prediction, y, t, noise)
        return self.space.unpack(y)
