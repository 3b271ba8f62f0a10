"""From a data configuration to the pipeline of its backend."""

from __future__ import annotations

from pathlib import Path

import torch

from data_pipelines.backends.batches import Delivery
from data_pipelines.backends.dali import DaliPipeline
from data_pipelines.backends.dali_graph import import_dali
from data_pipelines.backends.ffcv import FfcvPipeline
from data_pipelines.backends.pillow import PillowPipeline
from data_pipelines.backends.synthetic import SyntheticPipeline, describe_synthetic
from data_pipelines.backends.webdataset import (
    WebDatasetPipeline,
    describe_webdataset,
    import_webdataset,
)
from data_pipelines.datasets import open_data
from data_pipelines.images import pixel_decoder
from data_pipelines.packed.beton import import_ffcv
from data_pipelines.packed.manifest import DatasetInfo
from data_pipelines.pipeline import BACKENDS, Backend, DataConfig, ImagePipeline, Share


def build_pipeline(
    config: DataConfig,
    *,
    seed: int,
    share: Share,
    device: torch.device | str = "cpu",
    records: Path | None = None,
) -> ImagePipeline:
    """Return the pipeline of the configured backend.

    Args:
        config: Its settings.
        seed: The run's seed.
        share: The rank's share of the global order.
        device: Where batches are delivered.
        records: Directory, shared by the ranks, for what a pass over the set finds out; None
            keeps it in memory.

    Raises:
        ValueError: The set at `config.path` is missing, damaged or of an unsuitable resolution, or
            the backend's package is not installed (says what to install).
    """
    device = torch.device(device)
    if kind := BACKENDS[config.backend]:
        return kind.build(config, seed, share, device)
    if config.backend == "synthetic":
        return SyntheticPipeline(
            share,
            device,
            resolution=config.resolution,
            seed=seed,
            shuffle=config.shuffle,
            flip=config.flip,
        )
    delivery = Delivery(
        share=share,
        device=device,
        workers=config.workers,
        prefetch=config.prefetch,
        max_corrupt=config.max_corrupt,
    )
    if config.streams_tars:
        return WebDatasetPipeline(config, seed, delivery, records)
    import_backend(config.backend)
    data = open_data(config, seed)
    if config.backend == "dali":
        return DaliPipeline(data, delivery, config.resolution)
    if config.backend == "ffcv":
        return FfcvPipeline(data, delivery, config.ffcv_cache_gb)
    decode = pixel_decoder(data.info.resolution, config.resolution, config.resize)
    return PillowPipeline(data, delivery, decode)


def import_backend(backend: Backend) -> None:
    """Import a backend's package. Raises ValueError, saying what to install, if it is missing."""
    if backend == "dali":
        import_dali()
    elif backend == "ffcv":
        import_ffcv()
    elif backend == "webdataset":
        import_webdataset()


def describe_data(config: DataConfig, global_batch: int = 1) -> DatasetInfo:
    """Return what a pipeline of this configuration would deliver, without the backend's package.

    Args:
        config: The settings.
        global_batch: Samples of a step, on which the order of a WebDataset's tars depends.

    Raises:
        ValueError: The sets are missing or damaged, or the settings do not match them.
        Unreachable: A remote set cannot be read.
    """
    if kind := BACKENDS[config.backend]:
        return kind.describe(config)
    if config.backend == "synthetic":
        return describe_synthetic(config.resolution)
    if config.streams_tars:
        return describe_webdataset(config, global_batch)
    data = open_data(config, seed=0)
    if data.prefetcher:
        data.prefetcher.close()
    data.samples.close()
    return data.info
