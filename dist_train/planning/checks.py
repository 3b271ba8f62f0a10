"""What has to fit together in a configuration: batch and ranks, data, networks, sharding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines.packed.manifest import DatasetInfo
from data_pipelines.pipeline import DataConfig
from dist_train.config import AdamConfig, RunConfig, ShardingConfig
from dist_train.engine.deepspeed_config import check_stage
from dist_train.planning.flops import metric_names
from models.config_io import ConfigError, did_you_mean, to_json
from models.objective import Objective

AUTO = "auto"
"""The micro-batch that is chosen by memory."""
MENTIONED = 5
"""Classes that a message names."""


class Batches(NamedTuple):
    """Samples of a step, and how they are split; total = micro x accumulation_steps x ranks.

    Attributes:
        total: Samples per update, over all ranks.
        micro: Samples per rank and pass.
        accumulation_steps: Passes per update.
    """

    total: int
    micro: int
    accumulation_steps: int


def plan_batches(
    total: int, micro: int | str | None, multiple: int, ranks: int, most: int | None = None
) -> Batches:
    """Split a global batch.

    Args:
        total: `global_batch_size`.
        micro: `micro_batch_size`; None takes one pass, AUTO the fewest that are possible.
        multiple: What the losses need `micro` to be a multiple of.
        ranks: Number of ranks.
        most: The largest micro-batch that AUTO takes, if there is one that small; None: any.

    Raises:
        ConfigError: The global batch cannot be split so; names sizes that can.
    """
    if micro == AUTO:
        share = total // ranks
        sizes = [size for size in range(multiple, share + 1, multiple) if share % size == 0]
        micro = max([size for size in sizes if most is None or size <= most] or sizes[:1] or [0])
    if not isinstance(micro, int) or micro == 0:
        micro = max(total // ranks, 1)
    unit = micro * ranks
    if total % unit:
        fits = sorted({max(total // unit, 1) * unit, -(-total // unit) * unit})
        raise ConfigError(
            f"global_batch_size={total} is not a multiple of micro_batch_size {micro} x"
            f" {ranks} ranks; set it to {' or '.join(map(str, fits))}"
        )
    if micro % multiple:
        raise ConfigError(
            f"micro_batch_size={micro} is not a multiple of {multiple}, the size of a"
            " minibatch-stddev group; change it, global_batch_size or the number of ranks"
        )
    return Batches(total, micro, total // unit)


def check_length(total_images: int, batch: int, images_seen: int) -> None:
    """Raise ConfigError if a run has already trained a step or more beyond its end."""
    if images_seen - batch >= total_images:
        raise ConfigError(
            f"total_images={total_images}, but the run has trained {images_seen:,} images; set it"
            f" to at least {images_seen - batch + 1}, or use another run directory"
        )


def trained_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that weights may depend on: not those of samples, logs and checkpoints.

    A dict as `to_json` makes it, without the names of classes.
    """
    settings: dict[str, Any] = to_json(config)
    objective = {k: v for k, v in settings["objective"].items() if k != "sampling"}
    left_out = ("logging", "checkpoint")
    return {k: v for k, v in settings.items() if k not in left_out} | {"objective": objective}


def check_best_metric(config: RunConfig) -> None:
    """Raise ConfigError if `checkpoint.keep_best` is no metric of the run."""
    wanted = config.checkpoint.keep_best
    if wanted is not None and wanted not in (known := metric_names(config.objective)):
        raise ConfigError(
            f"checkpoint.keep_best={wanted!r} is no metric of this run; they are"
            f" {', '.join(known)}{did_you_mean(wanted, known)}"
        )


def check_resolution(data: DataConfig, objective: Objective) -> None:
    """Raise ConfigError if images have another size than the objective's."""
    if data.resolution != objective.resolution:
        raise ConfigError(
            f"data.resolution={data.resolution}, but the objective is for"
            f" {objective.resolution}x{objective.resolution} images; set both alike"
        )


def check_labels(data: DataConfig, label_dim: int, class_names: Sequence[str]) -> None:
    """Raise ConfigError if a set has no labels, or more classes than the networks take."""
    classes, name = len(class_names), data.path or "the synthetic set"
    if label_dim and not classes:
        raise ConfigError(f"label_dim={label_dim}, but {name} has no labels; set it to 0")
    if label_dim and classes > label_dim:
        raise ConfigError(
            f"label_dim={label_dim}, but {name} has {classes} classes; set it to {classes}"
        )


def describe_untrained(label_dim: int, data: DatasetInfo) -> str:
    """Say which classes of a network no image of the set has; "" if each has some."""
    trained = trained_classes(label_dim, data)
    if len(trained) == label_dim:
        return ""
    missing = sorted({*range(label_dim)} - {*trained})
    named = ", ".join(map(str, missing[:MENTIONED])) + (", ..." if len(missing) > MENTIONED else "")
    return (
        f"label_dim={label_dim}, but the set has images of {len(trained)} classes: the other"
        f" {len(missing)} ({named}) will not be trained, and samples of them not be drawn"
    )


def trained_classes(label_dim: int, data: DatasetInfo) -> list[int]:
    """Return the classes of a network that images of the set have; all, if that is not known."""
    if not data.class_counts:
        return [*range(min(label_dim, len(data.class_names)))]
    return [k for k, count in enumerate(data.class_counts[:label_dim]) if count]


def check_networks(
    optim: Mapping[str, AdamConfig], sharding: ShardingConfig, objective: Objective
) -> None:
    """Raise ConfigError if the optimizers' or sharding's settings do not fit the networks."""
    names = objective.losses().keys()
    if names != optim.keys():
        raise ConfigError(
            f"optim has settings for {sorted(optim)}, the objective has the networks"
            f" {sorted(names)}"
        )
    check_stage(sharding, len(names), second_order=bool(objective.second_order))
