"""The configuration of a run: frozen dataclasses that validate themselves.

A recipe (dist_train/recipes) is a function that returns a complete RunConfig; it is resolved once,
written to `run_dir/config.json`, and every later process reads it from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from data_pipelines.pipeline import DataConfig
from models.families import AnyObjective


@dataclass(frozen=True, kw_only=True)
class WarmupSchedule:
    """Linear ramp from 0 to the base rate over `images` images, then constant.

    lr(n) = base * min(n / images, 1), n = images seen before the step (spec/RDM.md section 8);
    images=0 is a constant rate.
    """

    images: int = 0

    def scale(self, images_seen: int) -> float:
        """Return lr / base at `images_seen`."""
        return min(images_seen / self.images, 1.0) if self.images else 1.0

    def rate(self, base: float, images_seen: int) -> float:
        """Return the learning rate at `images_seen`."""
        return base * self.scale(images_seen)


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Cosine from the base rate to `minimum`, constant in an epoch (spec/WAVEDIFF.md section 7).

    lr(e) = minimum + (base - minimum) (1 + cos(pi e / epochs)) / 2, e = images // epoch_images.
    """

    epochs: int
    epoch_images: int
    minimum: float = 1e-5

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.epoch_images < 1:
            raise ValueError(
                f"epochs={self.epochs} and epoch_images={self.epoch_images} must be positive"
            )

    def rate(self, base: float, images_seen: int) -> float:
        """Return the learning rate at `images_seen`."""
        epoch = min(images_seen // self.epoch_images, self.epochs)
        return (
            self.minimum + (base - self.minimum) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        )


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam without weight decay.

    Attributes:
        lr: Base learning rate.
        betas: Decay of the first and second moment.
        eps: Added to the root of the second moment.
        max_gradient_norm: Gradients of a larger L2 norm are scaled down to it; null never clips.
        schedule: How the rate follows images seen.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_gradient_norm: float | None = None
    schedule: WarmupSchedule | CosineSchedule = field(default_factory=WarmupSchedule)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must be in [0, 1)")
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm={self.max_gradient_norm} must be positive or null")


@dataclass(frozen=True, kw_only=True)
class HalflifeEma:
    """EMA with a half-life in images that ramps up with training (spec/RDM.md section 8).

    h = min(halflife_images, rampup_ratio * images seen before the step), beta = 0.5^(batch / h);
    rampup_ratio=null switches the ramp off.
    """

    halflife_images: int
    rampup_ratio: float | None = 0.05

    def beta(self, images_seen: int, batch: int) -> float:
        """Return the weight of the old average in the step that starts at `images_seen`."""
        halflife = float(self.halflife_images)
        if self.rampup_ratio is not None:
            halflife = min(halflife, self.rampup_ratio * images_seen)
        return float(0.5 ** (batch / max(halflife, 1e-8)))

    def describe(self) -> str:
        """Return one line for snapshots and logs."""
        return f"halflife {self.halflife_images} images, rampup {self.rampup_ratio}"


@dataclass(frozen=True, kw_only=True)
class ConstantEma:
    """EMA of constant decay, starting at the first updated weights (spec/WAVEDIFF.md sec. 7)."""

    decay: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} must be in [0, 1)")

    def beta(self, images_seen: int, batch: int) -> float:
        """Return the weight of the old average in the step that starts at `images_seen`."""
        del batch
        return self.decay if images_seen else 0.0

    def describe(self) -> str:
        """Return one line for snapshots and logs."""
        return f"decay {self.decay}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a training run.

    All intervals count images of the global sample order, not steps; they are rounded to whole
    steps when training.

    Attributes:
        recipe: Name of the recipe that this came from.
        objective: What is trained (networks, process, sampler defaults).
        data: Where images come from.
        optim: One optimizer per network of the objective.
        ema: Average of the sampled network.
        total_images: Length of training.
        global_batch_size: Samples per update, over all ranks and micro-batches.
        micro_batch_size: Samples per rank and forward pass; null takes global_batch_size / ranks.
        seed: Seed of the initial weights, the sample order and all noise.
        zero_stage: DeepSpeed ZeRO stage of every network (1 shards the optimizer and the EMA).
        channels_last: Keep convolution weights and activations in channels_last memory format.
        compile: Run networks through torch.compile (not those with a second-order loss).
        log_images: Interval of status lines and metrics.
        checkpoint_images: Interval of checkpoints (all state needed to resume).
        snapshot_images: Interval of snapshots (EMA weights for sampling).
        keep_checkpoints: How many newest checkpoints are kept.
        wandb_project: Project that metrics are mirrored to; null switches wandb off.
        nodes: Default number of nodes of a Slurm job.
        gpus_per_node: Default number of ranks per node of a Slurm job.
    """

    recipe: str
    objective: AnyObjective
    data: DataConfig
    optim: dict[str, AdamConfig]
    ema: HalflifeEma | ConstantEma
    total_images: int
    global_batch_size: int
    micro_batch_size: int | None = None
    seed: int = 0
    zero_stage: Literal[0, 1, 2] = 1
    channels_last: bool = False
    compile: bool = False
    log_images: int = 50_000
    checkpoint_images: int = 1_000_000
    snapshot_images: int = 10_000_000
    keep_checkpoints: int = 2
    wandb_project: str | None = None
    nodes: int = 1
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        positive = ("total_images", "global_batch_size", "log_images", "checkpoint_images",
                    "snapshot_images", "keep_checkpoints", "nodes", "gpus_per_node")  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size={self.micro_batch_size} must be positive or null")
