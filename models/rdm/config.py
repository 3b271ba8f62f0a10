"""Configurations of the two kinds of RDM stage (docs/reference/rdm.md#1.1, #6, #8.1)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import nn

from models.config_io import require_finite
from models.rdm.augment import LABEL_WIDTH
from models.rdm.edm_sampler import EdmSampler, EdmSampling
from models.rdm.objective import DenoisingObjective
from models.rdm.process import EdmProcess, Process, RelayProcess
from models.rdm.relay_sampler import RelaySampler, RelaySampling
from models.rdm.sampler import Guidance, NetworkDenoiser, SamplingBase
from models.rdm.unet import UNetConfig
from models.sampler import Sampler

MIN_START = 0.5
"""Least time of a relay's process that sampling should start at; published runs: 0.79 or more."""


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """What both kinds of stage have.

    The official loop back-propagates the summed loss times ls / t (ls: a loss scale of the command
    line, t = 32 at 64 pixels, else 256) and averages over ranks, so that its gradients grow with
    the number of samples per rank. Here the gradient is that of gradient_scale times the mean over
    the global batch; gradient_scale = ls * samples per rank and update / t reproduces a published
    run on any number of ranks. Adam all but ignores the factor (its eps is absolute).

    Attributes:
        unet: The network; its resolution is that of the stage.
        label_dropout: Probability that a sample's class is hidden in training. 0 as published
            (docs/reference/rdm.md#11.3), but guidance needs an unconditional branch: train
            with 0.1 to guide.
        augment_probability: Strength of the geometric augmentation; above 0, unet.augment_dim must
            be 9 (the official default is 0.12, which its ImageNet commands do not change:
            docs/reference/rdm.md#11.2).
        gradient_scale: Factor of the loss that is differentiated, see above.
    """

    unet: UNetConfig
    label_dropout: float = 0.0
    augment_probability: float = 0.0
    gradient_scale: float = 1.0

    def __post_init__(self) -> None:
        require_finite(self)
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout={self.label_dropout} must be in [0, 1)")
        if self.label_dropout and not self.unet.label_dim:
            raise ValueError(
                f"label_dropout={self.label_dropout} needs classes; set unet.label_dim, or"
                " label_dropout=0"
            )
        if not 0 <= self.augment_probability <= 1:
            raise ValueError(f"augment_probability={self.augment_probability} must be in [0, 1]")
        if self.augment_probability and self.unet.augment_dim != LABEL_WIDTH:
            raise ValueError(
                f"augment_probability={self.augment_probability} needs unet.augment_dim="
                f"{LABEL_WIDTH}, not {self.unet.augment_dim}"
            )
        if not self.gradient_scale > 0:
            raise ValueError(f"gradient_scale={self.gradient_scale} must be positive")
        if self.unet.image_channels != 3:
            raise ValueError(f"image_channels={self.unet.image_channels}: images are RGB, set 3")

    @property
    def label_dim(self) -> int:
        """Number of classes, 0 for unconditional models."""
        return self.unet.label_dim

    def _build(self, process: Process) -> DenoisingObjective:
        return DenoisingObjective(
            unet=self.unet,
            process=process,
            label_dropout=self.label_dropout,
            augment_probability=self.augment_probability,
            gradient_scale=self.gradient_scale,
        )

    def _check_guidance(self, guidance: Guidance) -> None:
        """Raise ValueError if there is nothing to guide by."""
        if guidance.scale > 1 and not self.label_dim:
            raise ValueError(
                f"sampling.guidance.scale={guidance.scale} needs classes, but unet.label_dim=0;"
                " set sampling.guidance.scale=1"
            )

    def _warn_of(self, sampling: SamplingBase) -> None:
        """Warn of sampler settings that change nothing, or that the network was not trained for."""
        for line in sampling.without_effect():
            warnings.warn(line, stacklevel=3)
        guidance = sampling.guidance
        if guidance.scale > 1 and self.label_dim and not self.label_dropout:
            warnings.warn(
                f"guidance scale={guidance.scale} with a network trained with label_dropout=0: its"
                " unconditional branch is untrained; use scale=1, or train with label_dropout=0.1",
                stacklevel=3,
            )


@dataclass(frozen=True, kw_only=True)
class EdmConfig(DenoisingConfig):
    """Stage 1: an EDM model at low resolution.

    Attributes:
        process: Distribution of noise levels.
        sampling: Default settings of the sampler.
    """

    process: EdmProcess = field(default_factory=EdmProcess)
    sampling: EdmSampling = field(default_factory=EdmSampling)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_guidance(self.sampling.guidance)

    def build(self) -> DenoisingObjective:
        """Return the objective."""
        return self._build(self.process)

    def build_sampler(self, network: nn.Module, previous: Sampler | None = None) -> EdmSampler:
        """Return the sampler. Raises ValueError if there is a previous stage."""
        if previous is not None:
            raise ValueError(
                f"an EDM model starts from noise, but a stage at {previous.resolution} pixels"
                " precedes it; put the EDM stage first"
            )
        self._warn_of(self.sampling)
        return EdmSampler(
            NetworkDenoiser(network, self.process.sigma_data),
            self.sampling,
            resolution=self.unet.resolution,
            label_dim=self.label_dim,
            device=next(network.parameters()).device,
        )


@dataclass(frozen=True, kw_only=True)
class RelayConfig(DenoisingConfig):
    """Stage 2 or later: continues from images of resolution / process.upscale.

    Attributes:
        process: Blur, block noise and distribution of levels.
        sampling: Default settings of the sampler.
    """

    process: RelayProcess = field(default_factory=RelayProcess)
    sampling: RelaySampling = field(default_factory=RelaySampling)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_guidance(self.sampling.guidance)
        if self.unet.resolution % self.process.upscale:
            raise ValueError(
                f"unet.resolution={self.unet.resolution} is not a multiple of"
                f" process.upscale={self.process.upscale}; change one of them"
            )

    def build(self) -> DenoisingObjective:
        """Return the objective."""
        return self._build(self.process)

    def build_sampler(self, network: nn.Module, previous: Sampler | None = None) -> RelaySampler:
        """Return the sampler of this stage and those before it.

        Raises:
            ValueError: There is no previous stage, or one of another resolution or class count, or
                one whose images are enhanced.
        """
        if previous is None:
            raise ValueError(
                f"a relay to {self.unet.resolution} pixels continues from a stage at"
                f" {self.unet.resolution // self.process.upscale}; give its snapshot first"
            )
        if isinstance(previous, (EdmSampler, RelaySampler)) and previous.settings.enhance:
            raise ValueError(
                f"sampling.enhance of the stage at {previous.resolution} pixels would change what"
                f" the relay to {self.unet.resolution} starts from; set it for the last stage only"
            )
        self._warn_of(self.sampling)
        self._warn_of_start()
        return RelaySampler(
            NetworkDenoiser(network, self.process.sigma_data),
            previous,
            self.process,
            self.sampling,
            resolution=self.unet.resolution,
            label_dim=self.label_dim,
            device=next(network.parameters()).device,
        )

    def _warn_of_start(self) -> None:
        """Warn if sampling starts at a level whose blur does not fit images of the stage before."""
        start = torch.tensor(self.sampling.levels()[0], dtype=torch.float64)
        time = float(self.process.time_at(start, self.sampling.prob_length))
        if MIN_START <= time <= 1:
            return
        what = "training had no such level" if time > 1 else "images are hardly blurred there"
        warnings.warn(
            f"the relay to {self.unet.resolution} pixels starts at sigma={float(start):.3g}, time"
            f" {time:.2f} of its process: {what}; set sampling.truncation_sigma and sampling.steps"
            f" such that it starts at a time from {MIN_START} to 1",
            stacklevel=3,
        )
