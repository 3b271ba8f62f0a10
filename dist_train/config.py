"""The configuration of a run: frozen dataclasses that validate themselves.

A recipe (dist_train/recipes) is a function that returns a complete RunConfig; it is resolved once,
written to `run_dir/config.json`, and every later process reads it from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from data_pipelines.pipeline import DataConfig
from dist_train.config_groups import (
    AdamConfig,
    CheckpointConfig,
    ComputeConfig,
    DivergencePolicy,
    LoggingConfig,
    ShardingConfig,
    require_positive,
)
from dist_train.ema_profiles import ConstantEma, EmaProfile, HalflifeEma, PowerEma
from dist_train.schedules import CosineSchedule, WarmupSchedule
from models.config_io import ConfigError
from models.families import AnyObjective
from models.plugins import Import
from models.rdm.config import RelayConfig

__all__ = [
    "AdamConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "ConstantEma",
    "CosineSchedule",
    "DivergencePolicy",
    "HalflifeEma",
    "LoggingConfig",
    "PowerEma",
    "RunConfig",
    "ShardingConfig",
    "WarmupSchedule",
]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a training run.

    All intervals count images of the global sample order, not steps; they are rounded to whole
    steps when training.

    Attributes:
        recipe: Name of the recipe that this came from; @recipe (dist_train/recipes) fills it in.
        objective: What is trained (networks, process, sampler defaults).
        data: Where images come from.
        optim: One optimizer per network of the objective.
        ema: Averages of the sampled network by name. Snapshots hold the one named `main`; the
            others are stored with each snapshot in `ema/NAME`.
        total_images: Length of training.
        global_batch_size: Samples per update, over all ranks and micro-batches.
        micro_batch_size: Samples per rank and forward pass; null takes global_batch_size / ranks.
            `auto` takes as many as the devices have memory for when the run starts, and keeps
            their number, in format.json, when it resumes.
        seed: Seed of the initial weights, the sample order and all noise.
        sharding: How many ranks train, and what of the state each of them holds.
        compute: Precision, memory format, compilation.
        checkpoint: What is saved, how often, and what stays.
        logging: Metrics and sample grids.
        divergence: What to do when a loss explodes, is not a number, or a rank hangs.
        imports: Files and modules of --import that the run needs; @recipe fills them in.
    """

    recipe: str = ""
    objective: AnyObjective
    data: DataConfig
    optim: dict[str, AdamConfig]
    ema: dict[str, EmaProfile]
    total_images: int
    global_batch_size: int
    micro_batch_size: int | Literal["auto"] | None = None
    seed: int = 0
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    divergence: DivergencePolicy = field(default_factory=DivergencePolicy)
    imports: tuple[Import, ...] = ()

    RENAMED: ClassVar[dict[str, str]] = {
        "extra_emas": "ema",
        "zero_stage": "sharding.zero_stage",
        "offload": "sharding.offload",
        "deepspeed": "sharding.deepspeed",
        "nodes": "sharding.nodes",
        "gpus_per_node": "sharding.gpus_per_node",
        "precision": "compute.precision",
        "channels_last": "compute.channels_last",
        "compile": "compute.compile",
        "checkpoint_images": "checkpoint.every_images",
        "keep_checkpoints": "checkpoint.keep_last",
        "keep_every_images": "checkpoint.keep_every_images",
        "keep_best": "checkpoint.keep_best",
        "snapshot_images": "checkpoint.snapshot_every_images",
        "log_images": "logging.every_images",
        "wandb_project": "logging.wandb_project",
        "tensorboard": "logging.tensorboard",
        "peak_tflops": "logging.peak_tflops",
        "grid_seeds": "logging.grid_seeds",
        "grid_previous": "logging.grid_previous",
        "hang_timeout": "divergence.hang_timeout",
    }

    def __post_init__(self) -> None:
        require_positive(self, "total_images", "global_batch_size")
        if self.micro_batch_size != "auto":
            require_positive(self, "micro_batch_size", or_null=True)
        if "main" not in self.ema:
            raise ValueError(f"ema has the averages {sorted(self.ema)}; snapshots need one: main")
        for name in self.ema:
            if not name.isidentifier():
                raise ValueError(f"ema.{name}: a name is made of letters, digits and _")
            if name == "ema":  # of the main average, in checkpoints
                raise ValueError("ema.ema: this name is reserved; choose another")

    def unread(self) -> dict[str, str]:
        """Return the settings that others make pointless, across groups."""
        found = {}
        precision = self.compute.precision
        for name, group in vars(self.objective).items():
            dtype = getattr(group, "compute_dtype", precision)
            if precision not in ("auto", None, dtype):
                why = f"compute.precision={precision} is that of all networks; set it to null"
                found[f"objective.{name}.compute_dtype"] = why
        if not isinstance(self.objective, RelayConfig):
            found["logging.grid_previous"] = "only a relay's grids start from another stage"
        elif not self.logging.grid_seeds:
            found["logging.grid_previous"] = "logging.grid_seeds=0 draws no grids"
        return found

    @staticmethod
    def upgrade(settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings as a file may hold them, with old averages joined in one dict.

        Files of older versions have the main average in `ema` and the others in `extra_emas`.
        An extra average named `ema` took the main one's place.

        Raises:
            ConfigError: An extra average is named `main`.
        """
        old = dict(settings)
        others: dict[str, Any] = old.pop("extra_emas", {})
        if "type" not in old.get("ema", {}):
            return dict(settings)
        if "main" in others:
            raise ConfigError("extra_emas.main: the name belongs to the main average; rename it")
        others = {"main" if name == "ema" else name: profile for name, profile in others.items()}
        return {**old, "ema": {"main": old["ema"], **others}}
