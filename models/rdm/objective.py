"""The objective of all RDM stages: denoise what a process has corrupted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.objective import Example, LossFn, Metrics, Networks, images_to_unit_range
from models.rdm.augment import augment
from models.rdm.precond import Preconditioning
from models.rdm.process import Process
from models.rdm.unet import UNet, UNetConfig
from models.sample_rng import SampleStreams

DENOISER = "denoiser"
SIGMA_BINS = (0.0, 0.1, 0.3, 1.0, math.inf)


@dataclass(frozen=True)
class DenoisingObjective:
    """Weighted squared error between clean images and the denoiser's estimate of them.

    Attributes:
        unet: The network.
        process: How images are corrupted.
        label_dropout: Probability that a sample's class is hidden, for guidance.
        augment_probability: Strength of the geometric augmentation (models/rdm/augment.py).
        gradient_scale: Factor of the loss that is differentiated; see DenoisingConfig.
    """

    unet: UNetConfig
    process: Process
    label_dropout: float
    augment_probability: float
    gradient_scale: float

    sampled_network = DENOISER
    batch_multiple = 1
    second_order: frozenset[str] = frozenset()

    @property
    def resolution(self) -> int:
        """Edge of the images in pixels."""
        return self.unet.resolution

    def build_networks(self) -> dict[str, nn.Module]:
        """Return the U-Net with fresh weights (docs/reference/rdm.md#3.4)."""
        return {DENOISER: UNet(self.unet)}

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 RGB images to float32 in [-1, 1]."""
        return images_to_unit_range(images)

    def losses(self) -> dict[str, LossFn]:
        """Return the only loss, that of the denoiser."""
        return {DENOISER: self.loss}

    def loss(self, networks: Networks, example: Example, step: int) -> tuple[Tensor, Metrics]:
        """Return the scaled loss, and its unscaled values per sample and noise level.

        The loss is gradient_scale times the mean over samples of the weighted squared error summed
        over pixels. The metrics are means over pixels, so that resolutions can be compared; an
        untrained network has about 1.

        Raises:
            ValueError: The network is conditional and the example has no labels.
        """
        del step
        images, augment_labels = self._augmented(example)
        labels = self._visible_labels(example)
        level = self.process.sample_level(example.draws("noise_level"))
        noisy = self.process.corrupt(images, level, example.draws("noise"))
        keys = self._dropout_keys(example)
        denoised = Preconditioning(self.process.sigma_data).denoise(
            networks[DENOISER], noisy, level.sigma, labels, augment_labels, keys
        )
        errors = squared_errors(denoised, images, self.process.weight(level.sigma))
        loss = self.gradient_scale * errors.mean()
        return loss, loss_by_level(errors.detach() / images[0].numel(), level.sigma)

    def diagnose(self, metrics: Mapping[str, float]) -> str | None:
        """Diagnose the mean loss per pixel, which is about 1 before training and falls."""
        loss = metrics.get(f"{DENOISER}/loss")
        if loss is None or loss < 100:
            return None
        return (
            f"loss={loss:.3g} (an untrained denoiser has about 1): training has diverged; lower"
            " optim.denoiser.lr, lengthen its schedule's ramp, or use compute_dtype=bfloat16"
        )

    def _augmented(self, example: Example) -> tuple[Tensor, Tensor | None]:
        """Return augmented images and their labels; the geometry is drawn on the CPU."""
        if self.augment_probability == 0:
            return example.x, None
        draws = SampleStreams(example.stream_seeds("augment"), "cpu")
        return augment(example.x, self.augment_probability, draws)

    def _visible_labels(self, example: Example) -> Tensor | None:
        """Return the labels with hidden ones set to -1; unconditional networks ignore classes."""
        if not self.unet.label_dim:
            return None
        if example.labels is None:
            raise ValueError(
                f"the denoiser has {self.unet.label_dim} classes but the data set has no labels;"
                " set objective.unet.label_dim=0 or use a labelled set"
            )
        if self.label_dropout == 0:
            return example.labels
        return hide_labels(
            example.labels, example.draws("label_dropout").rand(), self.label_dropout
        )

    def _dropout_keys(self, example: Example) -> Tensor | None:
        if self.unet.dropout == 0:
            return None
        keys = torch.tensor(example.stream_seeds("dropout"))
        return keys.to(example.x.device, non_blocking=True)


def hide_labels(labels: Tensor, uniform: Tensor, probability: float) -> Tensor:
    """Keep labels where the uniform draw is at least the probability, else set them to -1.

    See docs/reference/rdm.md#3.3.
    """
    return torch.where(uniform >= probability, labels, -1)


def squared_errors(denoised: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted squared error of each sample, summed over its pixels, [B]."""
    return weight * (denoised - images).square().sum(dim=(1, 2, 3))


def loss_by_level(losses: Tensor, sigma: Tensor) -> Metrics:
    """Return the samples' losses, and again by bins of sigma, NaN outside the bin; all [B]."""
    metrics = {"loss": losses}
    for low, high in pairwise(SIGMA_BINS):
        inside = (sigma >= low) & (sigma < high)
        metrics[f"loss_sigma_{low:g}_{high:g}"] = torch.where(inside, losses, math.nan)
    return metrics
