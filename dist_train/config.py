"""The configuration of a run: frozen dataclasses that validate themselves.

A recipe (dist_train/recipes) is a function that returns a complete RunConfig; it is resolved once,
written to `run_dir/config.json`, and every later process reads it from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipelines.pipeline import DataConfig
from dist_train.ema_profiles import ConstantEma, EmaProfile, HalflifeEma, PowerEma
from dist_train.schedules import CosineSchedule, WarmupSchedule
from models.families import AnyObjective

__all__ = [
    "AdamConfig",
    "ConstantEma",
    "CosineSchedule",
    "DivergencePolicy",
    "HalflifeEma",
    "PowerEma",
    "RunConfig",
    "WarmupSchedule",
]


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
class DivergencePolicy:
    """What to do when training goes wrong.

    An update with a gradient that is not finite is never applied, whatever the policy; each
    interval is judged before its state is saved.

    Attributes:
        action: `stop` at the first sign; `skip` goes on after skipped updates, which are then also
            those that explode, and stops at other signs; `roll_back` goes back to the last
            checkpoint and on with other data: the images between the checkpoint and the place of
            the divergence are passed over.
        explosion: An interval's mean loss above this multiple of the interval before (or of 1, if
            that was less) is a sign; null never is. With `skip`, so is the norm of an update's
            gradient against the update before (up to ZeRO-2 without offloading).
        max_skipped_in_a_row: More consecutive skipped updates stop a run that may skip.
        max_roll_backs: More of them stop a run that may roll back.
    """

    action: Literal["stop", "skip", "roll_back"] = "stop"
    explosion: float | None = 100.0
    max_skipped_in_a_row: int = 10
    max_roll_backs: int = 3

    def __post_init__(self) -> None:
        if self.explosion is not None and not self.explosion > 1:
            raise ValueError(f"explosion={self.explosion} must be above 1, or null")
        for name in ("max_skipped_in_a_row", "max_roll_backs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


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
        ema: Average of the sampled network; snapshots hold it.
        extra_emas: Further averages by name, stored at each snapshot in `ema/NAME`.
        total_images: Length of training.
        global_batch_size: Samples per update, over all ranks and micro-batches.
        micro_batch_size: Samples per rank and forward pass; null takes global_batch_size / ranks.
        seed: Seed of the initial weights, the sample order and all noise.
        zero_stage: DeepSpeed ZeRO stage of every network: 1 shards the optimizer and the EMA, 2 the
            gradients as well, 3 (one network without R1 only) the weights as well.
        offload: What is kept in the CPU's memory: nothing, the optimizer (from ZeRO-1 on), or the
            parameters as well (ZeRO-3).
        deepspeed: Further settings in DeepSpeed's own format; contradictions are refused.
        precision: What all networks compute in; weights are always float32. `auto` leaves networks
            that name a half precision alone and else takes bfloat16 on GPUs that have it, float32
            elsewhere; it is settled when the run begins. null: each network's own dtype.
        channels_last: Keep images and activations in channels_last memory format (weights are laid
            out by ZeRO; the kernels reorder them).
        compile: Run networks through torch.compile (not those with a second-order loss).
        divergence: What to do when a loss explodes or is not a number.
        hang_timeout: Seconds without progress after which a run dumps all stacks and ends.
        peak_tflops: 1e12 operations per second of a device, for the model FLOPs utilisation; null
            takes those of known GPUs.
        log_images: Interval of status lines and metrics.
        checkpoint_images: Interval of checkpoints (all state needed to resume).
        snapshot_images: Interval of snapshots (EMA weights for sampling).
        keep_checkpoints: How many newest checkpoints are kept.
        keep_every_images: Checkpoints at multiples of this are kept for good; null keeps none.
        keep_best: Name of a metric, e.g. `generator/loss`; the checkpoint that was written with its
            lowest value is kept as well.
        grid_seeds: Images in the sample grid of each snapshot; 0 draws none.
        grid_previous: Snapshot or run folder of the stage that a relay's grids continue from; null
            takes training images, reduced.
        wandb_project: Project that metrics are mirrored to; null switches wandb off.
        tensorboard: Mirror metrics to `tensorboard/` as well.
        nodes: Default number of nodes of a Slurm job.
        gpus_per_node: Default number of ranks per node of a Slurm job.
    """

    recipe: str
    objective: AnyObjective
    data: DataConfig
    optim: dict[str, AdamConfig]
    ema: EmaProfile
    extra_emas: dict[str, EmaProfile] = field(default_factory=dict)
    total_images: int
    global_batch_size: int
    micro_batch_size: int | None = None
    seed: int = 0
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "parameters"] = "none"
    deepspeed: dict[str, Any] = field(default_factory=dict)
    precision: Literal["auto", "float32", "float16", "bfloat16"] | None = "auto"
    channels_last: bool = False
    compile: bool = False
    divergence: DivergencePolicy = field(default_factory=DivergencePolicy)
    hang_timeout: float = 600.0
    peak_tflops: float | None = None
    log_images: int = 50_000
    checkpoint_images: int = 1_000_000
    snapshot_images: int = 10_000_000
    keep_checkpoints: int = 2
    keep_every_images: int | None = None
    keep_best: str | None = None
    grid_seeds: int = 9
    grid_previous: str | None = None
    wandb_project: str | None = None
    tensorboard: bool = False
    nodes: int = 1
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        positive = ("total_images", "global_batch_size", "log_images", "checkpoint_images",
                    "snapshot_images", "keep_checkpoints", "nodes", "gpus_per_node",
                    "hang_timeout")  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("micro_batch_size", "keep_every_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be positive or null")
        if self.grid_seeds < 0:
            raise ValueError(f"grid_seeds={self.grid_seeds} must not be negative")
        for name in self.extra_emas:
            if not name.isidentifier():
                raise ValueError(f"extra_emas.{name}: a name is made of letters, digits and _")
