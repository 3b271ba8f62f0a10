"""From a configuration to the parts of a run; everything that does not fit is refused here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from data_pipelines.backends.build import build_pipeline, describe_data
from data_pipelines.pipeline import ImagePipeline, Share
from dist_train.checkpoint.format import find_newest_whole
from dist_train.config import RunConfig
from dist_train.engine.deepspeed_config import check_stage, engine_settings, used_stage
from dist_train.engine.engine import Engine
from dist_train.precision import check_precision, compute_dtypes
from dist_train.runtime.world import World
from dist_train.snapshots import check_previous
from models.config_io import ConfigError
from models.objective import Objective
from models.sample_rng import stream_seed


def plan_batches(config: RunConfig, batch_multiple: int, world_size: int) -> tuple[int, int]:
    """Return (micro_batch_size, accumulation_steps) for a number of ranks.

    Raises:
        ConfigError: The global batch cannot be split so; names sizes that can.
    """
    batch, micro = config.global_batch_size, config.micro_batch_size
    if micro is None:
        micro = max(batch // world_size, 1)
    unit = micro * world_size
    if batch % unit:
        fits = sorted({max(batch // unit, 1) * unit, -(-batch // unit) * unit})
        raise ConfigError(
            f"global_batch_size={batch} is not a multiple of micro_batch_size {micro} x"
            f" {world_size} ranks; set it to {' or '.join(map(str, fits))}"
        )
    if micro % batch_multiple:
        raise ConfigError(
            f"micro_batch_size={micro} is not a multiple of {batch_multiple}, the size of a"
            " minibatch-stddev group; change it, global_batch_size or the number of ranks"
        )
    return micro, batch // unit


def build_data(
    config: RunConfig, objective: Objective, world: World, micro_batch_size: int
) -> ImagePipeline:
    """Return the pipeline. Raises ConfigError if the data do not fit the objective."""
    check_resolution(config, objective)
    share = Share(world.rank, world.size, micro_batch_size)
    pipeline = build_pipeline(config.data, seed=config.seed, share=share, device=world.device)
    check_labels(config, pipeline.info.class_names)
    return pipeline


def check_resolution(config: RunConfig, objective: Objective) -> None:
    """Refuse images of another size than the objective's. Raises ConfigError."""
    if config.data.resolution != objective.resolution:
        raise ConfigError(
            f"data.resolution={config.data.resolution}, but the objective is for"
            f" {objective.resolution}x{objective.resolution} images; set both alike"
        )


def check_labels(config: RunConfig, class_names: Sequence[str]) -> None:
    """Refuse a set whose classes the networks cannot be told. Raises ConfigError."""
    classes, label_dim = len(class_names), config.objective.label_dim
    name = config.data.path or "the synthetic set"
    if label_dim and not classes:
        raise ConfigError(f"label_dim={label_dim}, but {name} has no labels; set it to 0")
    if label_dim and classes > label_dim:
        raise ConfigError(
            f"label_dim={label_dim}, but {name} has {classes} classes; set it to {classes}"
        )


def build_engines(
    config: RunConfig, objective: Objective, world: World, batches: tuple[int, int]
) -> dict[str, Engine]:
    """Return one engine per network, freshly initialised and alike on all ranks.

    Args:
        config: The run's configuration.
        objective: What it trains.
        world: The process group.
        batches: As returned by `plan_batches`.

    Raises:
        ConfigError: The settings do not fit each other, the objective or the device.
    """
    check_precision(config.objective, world.device)
    torch.manual_seed(stream_seed(config.seed, "initial weights", 0))
    networks = objective.build_networks()
    check_networks(config, objective, networks)
    policy = config.divergence
    return {
        name: Engine(
            network.to(world.device).train(),
            config.optim[name],
            world=world,
            zero_stage=config.sharding.zero_stage,
            micro_batch_size=batches[0],
            accumulation_steps=batches[1],
            offload=config.sharding.offload,
            scale_loss="float16" in compute_dtypes(config.objective),
            explosion=policy.explosion if policy.action == "skip" else None,
            extra=config.sharding.deepspeed,
        )
        for name, network in networks.items()
    }


def check_networks(config: RunConfig, objective: Objective, names: Collection[str]) -> None:
    """Refuse settings that do not fit the objective's networks. Raises ConfigError."""
    if set(names) != config.optim.keys():
        raise ConfigError(
            f"optim has settings for {sorted(config.optim)}, the objective has the networks"
            f" {sorted(names)}"
        )
    sharding = config.sharding
    check_stage(
        sharding.zero_stage, sharding.offload, len(names), second_order=bool(objective.second_order)
    )


def check_run(config: RunConfig, run_dir: Path, world_size: int, *, data_later: bool) -> None:
    """Refuse what ranks would refuse before their first step, by the same functions.

    Neither engines nor networks with weights are made, no image is decoded, the backend's package
    is not needed, and checkpoints are judged by their sizes instead of their hashes: this is for
    login nodes.

    Args:
        config: The resolved configuration.
        run_dir: The run folder, which may exist.
        world_size: Number of ranks.
        data_later: Whether sets, and the stage that grids go on from, are not to be seen yet.

    Raises:
        ValueError: It would be refused.
        CheckpointError: No checkpoint is whole.
        Unreachable: A remote set cannot be read.
    """
    objective = config.objective.build()
    micro, accumulation_steps = plan_batches(config, objective.batch_multiple, world_size)
    check_resolution(config, objective)
    with torch.device("meta"):
        check_networks(config, objective, objective.build_networks())
    sharded = used_stage(config.sharding.zero_stage, config.sharding.offload, world_size) > 0
    for adam in config.optim.values():
        engine_settings(
            config.sharding.deepspeed,
            zero_stage=config.sharding.zero_stage,
            micro_batch_size=micro,
            accumulation_steps=accumulation_steps,
            clip=(adam.max_gradient_norm or 0.0) if sharded else 0.0,
            offload=config.sharding.offload,
        )
    find_newest_whole(run_dir, World(0, 0, 1, torch.device("cpu")), contents=False)
    if data_later:
        return
    with TemporaryDirectory() as cache:  # that of remote sets may exist on nodes only
        info = describe_data(replace(config.data, cache=cache))
    check_labels(config, info.class_names)
    check_previous(config)


def called_networks(
    config: RunConfig, objective: Objective, engines: Mapping[str, Engine]
) -> dict[str, nn.Module]:
    """Return the networks as losses call them; R1's double backward cannot be compiled."""
    return {
        name: torch.compile(engine.called, dynamic=False)  # type: ignore[misc]
        if config.compute.compile and name not in objective.second_order
        else engine.called
        for name, engine in engines.items()
    }
