"""Settings of a run by concern; each group validates its own. RunConfig (config.py) joins them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dist_train.schedules import CosineSchedule, WarmupSchedule
from models.plugins import Registry

Precision = Literal["float32", "float16", "bfloat16"]
LOGGERS: Registry[Callable[..., Any]] = Registry("logger", Callable)
"""Loggers of plugins, switched on by `logging.loggers`.

Each is a function (run_dir: Path, config: dict) -> Logger (dist_train/monitoring/loggers.py): the
run directory, and the run's configuration as JSON.
"""


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
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps} must be positive")
        if isinstance(self.schedule, CosineSchedule) and self.schedule.minimum > self.lr:
            raise ValueError(f"schedule.minimum={self.schedule.minimum} is above lr={self.lr}")
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm={self.max_gradient_norm} must be positive or null")


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """How many ranks train, and what of the state each of them holds.

    Attributes:
        zero_stage: DeepSpeed ZeRO stage of every network: 1 shards the optimizer and the averages,
            2 the gradients as well, 3 (one network without R1 only) the weights as well.
        offload: What is kept in the CPU's memory: nothing, the optimizer (from ZeRO-1 on), or the
            parameters as well (ZeRO-3).
        deepspeed: Further settings in DeepSpeed's own format; contradictions are rejected.
        nodes: Default number of nodes of a Slurm job.
        gpus_per_node: Default number of ranks per node of a Slurm job.
    """

    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "parameters"] = "none"
    deepspeed: dict[str, Any] = field(default_factory=dict)
    nodes: int = 1
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "nodes", "gpus_per_node")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a rank computes.

    Attributes:
        precision: What all networks compute in; weights are always float32. `auto` leaves networks
            that name a half precision alone and else takes bfloat16 on GPUs that have it, float32
            elsewhere; it is settled when the run starts. null: each network's own dtype.
        tf32: Whether float32 convolutions and matrix products of GPUs may use TF32 (10 bits of
            mantissa); null keeps PyTorch's defaults: convolutions yes, matrix products no.
        cudnn_benchmark: Let cuDNN choose its convolution algorithms by timing them.
        channels_last: Keep images and activations in channels_last memory format (weights are laid
            out by ZeRO; the kernels reorder them).
        compile: Run networks through torch.compile (not those with a second-order loss).
    """

    precision: Literal["auto", "float32", "float16", "bfloat16"] | None = "auto"
    tf32: bool | None = None
    cudnn_benchmark: bool = False
    channels_last: bool = False
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What a run saves, how often, and what stays. Intervals count images.

    Attributes:
        every_images: Interval of checkpoints (all state needed to resume).
        keep_last: How many of the newest checkpoints stay.
        keep_every_images: Checkpoints at multiples of this stay for good; null: none.
        keep_best: Name of a metric, e.g. `generator/loss`; the checkpoint that was written with its
            lowest value stays as well.
        snapshot_every_images: Interval of snapshots (averaged weights for sampling).
        max_failures: So many checkpoints in a row that cannot be written end a run, with exit code
            74; each failure is followed by a longer pause.
    """

    every_images: int = 1_000_000
    keep_last: int = 2
    keep_every_images: int | None = None
    keep_best: str | None = None
    snapshot_every_images: int = 10_000_000
    max_failures: int = 5

    def __post_init__(self) -> None:
        require_positive(self, "every_images", "keep_last", "snapshot_every_images", "max_failures")
        require_positive(self, "keep_every_images", or_null=True)


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What a run shows of itself.

    Attributes:
        every_images: Interval of status lines and metrics.
        wandb_project: Project that metrics are copied to; null switches wandb off.
        tensorboard: Copy metrics to `tensorboard/` as well.
        loggers: Names of plugins' loggers that get them, too.
        peak_tflops: 1e12 operations per second of a device, for the model FLOPs utilisation; null
            takes those of known GPUs.
        grid_seeds: Images in the sample grid of each snapshot; 0 draws none.
        grid_previous: Snapshot or run directory of the stage that a relay's grids start from; null
            takes training images, reduced.
    """

    every_images: int = 50_000
    wandb_project: str | None = None
    tensorboard: bool = False
    loggers: tuple[Annotated[str, LOGGERS], ...] = ()
    peak_tflops: float | None = None
    grid_seeds: int = 9
    grid_previous: str | None = None

    def __post_init__(self) -> None:
        require_positive(self, "every_images")
        require_positive(self, "peak_tflops", or_null=True)
        if self.grid_seeds < 0:
            raise ValueError(f"grid_seeds={self.grid_seeds} must not be negative")


@dataclass(frozen=True, kw_only=True)
class DivergencePolicy:
    """What to do when training goes wrong.

    An update with a non-finite gradient is never applied, whatever the policy; each interval is
    checked before its state is saved.

    Attributes:
        action: `stop` at the first sign; `skip` continues after skipped updates, which are then
            also those that explode, and stops at other signs; `roll_back` returns to the last
            checkpoint and continues with other data: the images between the checkpoint and the
            place of the divergence are skipped.
        explosion: An interval's mean loss above this multiple of the interval before (or of 1, if
            that was less) is a sign; null never is. With `skip`, so is the norm of an update's
            gradient against the update before (up to ZeRO-2 without offloading).
        max_skipped_in_a_row: More consecutive skipped updates stop a run that may skip.
        max_roll_backs: More of them stop a run that may roll back.
        hang_timeout: Seconds without progress after which a run dumps all stacks and ends.
        storage_timeout: The same while a rank reads data, or writes checkpoints or snapshots; the
            other ranks wait for it.
    """

    action: Literal["stop", "skip", "roll_back"] = "stop"
    explosion: float | None = 100.0
    max_skipped_in_a_row: int = 10
    max_roll_backs: int = 3
    hang_timeout: float = 600.0
    storage_timeout: float = 3600.0

    def __post_init__(self) -> None:
        require_positive(self, "hang_timeout", "storage_timeout")
        if self.explosion is not None and not self.explosion > 1:
            raise ValueError(f"explosion={self.explosion} must be above 1, or null")
        for name in ("max_skipped_in_a_row", "max_roll_backs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    def unread(self) -> dict[str, str]:
        """Return the limits of what is not done."""
        limits = {"skip": "max_skipped_in_a_row", "roll_back": "max_roll_backs"}
        return {
            name: f"divergence.action is {self.action}; set it to {action}"
            for action, name in limits.items()
            if action != self.action
        }


def require_positive(config: Any, *names: str, or_null: bool = False) -> None:
    """Raise ValueError unless the settings of these names are positive."""
    for name in names:
        value = getattr(config, name)
        if not (value is None and or_null) and not value > 0:
            raise ValueError(f"{name}={value} must be positive{' or null' if or_null else ''}")
