"""From a configuration to a run: each part gets its own group of settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from data_pipelines.backends.build import build_pipeline
from data_pipelines.pipeline import ImagePipeline, Share
from dist_train.checkpoint.writer import CheckpointWriter
from dist_train.config import RunConfig
from dist_train.ema import ShardedEma
from dist_train.engine.engine import Engine
from dist_train.examples import ExampleStream
from dist_train.monitoring.divergence import DivergenceCheck
from dist_train.monitoring.metrics_log import MetricsLog
from dist_train.monitoring.profiler import StepProfiler
from dist_train.monitoring.reporter import Reporter
from dist_train.monitoring.throughput import Throughput
from dist_train.planning.checks import (
    Batches,
    check_best_metric,
    check_labels,
    check_networks,
    check_resolution,
    describe_untrained,
    plan_batches,
    trained_classes,
)
from dist_train.precision import check_precision, compute_dtypes
from dist_train.runtime.run_data import check_alike, check_data
from dist_train.runtime.watchdog import Watchdog
from dist_train.runtime.world import World
from dist_train.snapshots import SnapshotWriter, describe_run
from dist_train.trainer import Intervals, Parts, Trainer
from models.config_io import to_json
from models.objective import Objective, ReadsFrozenNetworks, frozen_networks
from models.sample_rng import stream_seed


def build_trainer(
    config: RunConfig, run_dir: Path, world: World, profile_steps: int = 0
) -> Trainer:
    """Return a run that is ready to train.

    Args:
        config: The resolved configuration.
        run_dir: The run directory.
        world: The process group.
        profile_steps: Steps of this process to trace into `profile/`; 0 traces none.

    Raises:
        ConfigError: The settings do not fit each other, the data, or the number of ranks, or
            the run was started with another set.
    """
    objective = config.objective.build()
    batches = plan_batches(
        config.global_batch_size, config.micro_batch_size, objective.batch_multiple, world.size
    )
    check_resolution(config.data, objective)
    check_best_metric(config)
    check_networks(config.optim, config.sharding, objective)
    share = Share(world.rank, world.size, batches.micro, batches.accumulation_steps)
    pipeline = build_pipeline(
        config.data, seed=config.seed, share=share, device=world.device, records=run_dir / "data"
    )
    check_alike(pipeline.info, world)
    check_data(run_dir, pipeline.info)
    check_labels(config.data, config.objective.label_dim, pipeline.info.class_names)
    label_dim = config.objective.label_dim
    provenance = describe_run(run_dir.name, config.recipe, config.compute, pipeline.info) | {
        "trained_classes": trained_classes(label_dim, pipeline.info),
        **({"imports": to_json(config.imports)} if config.imports else {}),
    }
    untrained = describe_untrained(label_dim, pipeline.info)
    snapshots = SnapshotWriter(
        config.objective, config.logging, provenance, run_dir, world, pipeline
    )
    engines = build_engines(config, objective, world, batches)
    owned = engines[objective.sampled_network].owned()
    frozen = {name: net.to(world.device) for name, net in frozen_networks(objective).items()}
    average = objective.average if isinstance(objective, ReadsFrozenNetworks) else None
    parts = Parts(
        objective=objective,
        examples=_examples(config, objective, pipeline),
        engines=engines,
        called=called_networks(engines, config.compute.compile, objective.second_order) | frozen,
        average=frozen[average] if average else None,
        optim=config.optim,
        emas={name: ShardedEma(owned, profile) for name, profile in config.ema.items()},
        reporter=_reporter(config, run_dir, world, objective, engines),
        checkpoints=CheckpointWriter(run_dir, world, config.checkpoint),
        snapshots=snapshots,
        profiler=StepProfiler(run_dir, world, profile_steps),
        watchdog=Watchdog(
            run_dir, world, config.divergence.hang_timeout, config.divergence.storage_timeout
        ),
        warnings=(f"warning: {untrained}",) if untrained else (),
    )
    intervals = Intervals(
        total=config.total_images,
        log=config.logging.every_images,
        checkpoint=config.checkpoint.every_images,
        snapshot=config.checkpoint.snapshot_every_images,
    )
    return Trainer(parts, batches, intervals, config.divergence, run_dir, world)


def build_engines(
    config: RunConfig, objective: Objective, world: World, batches: Batches
) -> dict[str, Engine]:
    """Return one engine per network, freshly initialised and alike on all ranks.

    Raises:
        ConfigError: Settings contradict each other, or the device lacks the precision.
    """
    dtypes, policy = compute_dtypes(config.objective), config.divergence
    check_precision(dtypes, world.device)
    torch.manual_seed(stream_seed(config.seed, "initial weights", 0))
    networks = objective.build_networks()
    return {
        name: Engine(
            network.to(world.device).train(),
            config.optim[name],
            config.sharding,
            world=world,
            micro_batch_size=batches.micro,
            accumulation_steps=batches.accumulation_steps,
            scale_loss="float16" in dtypes,
            explosion=policy.explosion if policy.action == "skip" else None,
        )
        for name, network in networks.items()
    }


def called_networks(
    engines: Mapping[str, Engine], compiled: bool, second_order: frozenset[str]
) -> dict[str, nn.Module]:
    """Return the networks as losses call them; R1's double backward cannot be compiled."""
    return {
        name: torch.compile(engine.called, dynamic=False)  # type: ignore[misc]
        if compiled and name not in second_order
        else engine.called
        for name, engine in engines.items()
    }


def _examples(config: RunConfig, objective: Objective, pipeline: ImagePipeline) -> ExampleStream:
    channels_last = config.compute.channels_last
    return ExampleStream(
        pipeline=pipeline,
        objective=objective,
        conditional=config.objective.label_dim > 0,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        seed=config.seed,
    )


def _reporter(
    config: RunConfig,
    run_dir: Path,
    world: World,
    objective: Objective,
    engines: Mapping[str, Engine],
) -> Reporter:
    scales = {name: engine.loss_scale for name, engine in engines.items()}
    return Reporter(
        world,
        engines,
        check=DivergenceCheck(config.divergence, objective.diagnose, scales),
        log=MetricsLog(run_dir, config.total_images, config.logging, to_json(config)),
        throughput=Throughput(
            config.objective, config.logging.peak_tflops, config.global_batch_size, world
        ),
        best_metric=config.checkpoint.keep_best,
    )
