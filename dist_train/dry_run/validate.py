"""Dry run: validates a run on a login node; what ranks would reject is rejected here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from data_pipelines.backends.build import describe_data
from data_pipelines.packed.manifest import DatasetInfo
from dist_train.checkpoint.format import find_newest_complete, read_marker
from dist_train.config import AdamConfig, RunConfig, ShardingConfig
from dist_train.engine.deepspeed_config import engine_settings, used_stage
from dist_train.planning.checks import (
    Batches,
    check_best_metric,
    check_labels,
    check_length,
    check_networks,
    check_resolution,
    describe_untrained,
    plan_batches,
)
from dist_train.runtime.run_data import check_data, check_same_data
from dist_train.runtime.world import World
from dist_train.snapshots import check_previous
from models.objective import frozen_networks

PATIENCE = 15.0
"""Seconds to wait for a remote set that does not answer: somebody waits for the dry run."""


def check_run(config: RunConfig, run_dir: Path, world_size: int, *, data_later: bool) -> str:
    """Reject what ranks would reject before their first step, by the same functions.

    Neither engines nor networks with weights are made, no image is decoded, the backend's package
    is not needed, and checkpoints are checked by their sizes instead of their hashes.

    Args:
        config: The resolved configuration.
        run_dir: The run directory, which may exist.
        world_size: Number of ranks.
        data_later: Whether sets, and the stage that grids start from, cannot be seen yet.

    Returns:
        What training would warn of; "" for nothing.

    Raises:
        ValueError: It would be rejected.
        CheckpointError: No checkpoint is complete.
        Unreachable: A remote set cannot be read.
    """
    batches = check_settings(config, world_size)
    newest, _ = find_newest_complete(run_dir, World(0, 0, 1, torch.device("cpu")), contents=False)
    if data_later:
        return ""
    info = _described(config)
    check_data(run_dir, info)
    if newest is not None:
        check_length(config.total_images, batches.total, read_marker(newest).images_seen)
        check_same_data(newest, read_marker(newest).data_digest, info)
    check_previous(config.objective, config.logging)
    return _check_labels(config, info)


def check_present_data(config: RunConfig) -> str:
    """Check sets that are directories of this machine; returns what training would warn of.

    Raises:
        ValueError: They are damaged, or do not fit the run.
    """
    paths = [config.data.path, *(other.path for other in config.data.mix)]
    if not all(path and Path(path).is_dir() for path in paths):
        return ""
    return _check_labels(config, _described(config))


def _described(config: RunConfig) -> DatasetInfo:
    with TemporaryDirectory() as cache:  # that of remote sets may exist on nodes only
        patience = min(config.data.outage_seconds, PATIENCE)
        data = replace(config.data, cache=cache, outage_seconds=patience)
        return describe_data(data, config.global_batch_size)


def _check_labels(config: RunConfig, info: DatasetInfo) -> str:
    check_labels(config.data, config.objective.label_dim, info.class_names)
    return describe_untrained(config.objective.label_dim, info)


def check_settings(config: RunConfig, world_size: int) -> Batches:
    """Reject settings that do not fit each other or the number of ranks; returns how steps split.

    Raises:
        ValueError: They would be rejected before the first step, whatever the run and its data.
    """
    objective = config.objective.build()
    batches = plan_batches(
        config.global_batch_size, config.micro_batch_size, objective.batch_multiple, world_size
    )
    check_resolution(config.data, objective)
    check_best_metric(config)
    check_networks(config.optim, config.sharding, objective)
    with torch.device("meta"):
        objective.build_networks()
    frozen_networks(objective)
    for adam in config.optim.values():
        _check_deepspeed(config.sharding, adam, batches, world_size)
    return batches


def _check_deepspeed(
    sharding: ShardingConfig, adam: AdamConfig, batches: Batches, world_size: int
) -> None:
    """Raise ConfigError if settings in DeepSpeed's format contradict ours."""
    sharded = used_stage(sharding, world_size) > 0
    engine_settings(
        sharding,
        micro_batch_size=batches.micro,
        accumulation_steps=batches.accumulation_steps,
        clip=(adam.max_gradient_norm or 0.0) if sharded else 0.0,
    )
