"""From a data configuration to the pipeline of its backend."""

from __future__ import annotations

from collections.abc import Callable

import torch

from data_pipelines.backends.synthetic import describe_synthetic
from data_pipelines.datasets import open_data
from data_pipelines.packed.manifest import DatasetInfo
from data_pipelines.pipeline import Backend, DataConfig, ImagePipeline, Share


def build_pipeline(
    config: DataConfig, *, seed: int, share: Share, device: torch.device | str = "cpu"
) -> ImagePipeline:
    """Return the pipeline of the configured backend.

    Raises:
        ValueError: The set at `config.path` is missing, damaged or of an unfit resolution, or the
            backend's package is not installed (says what to install).
    """
    Pipeline = _backend_class(config.backend)
    return Pipeline(config, seed, share, device)


def import_backend(backend: Backend) -> None:
    """Import a backend's package. Raises ValueError, saying what to install, if it is missing."""
    if backend == "dali":
        from data_pipelines.backends.dali_graph import import_dali

        import_dali()
    elif backend == "ffcv":
        from data_pipelines.packed.beton import import_ffcv

        import_ffcv()


def _backend_class(backend: str) -> Callable[..., ImagePipeline]:
    """Import one backend; the others' packages need not be installed."""
    if backend == "dali":
        from data_pipelines.backends.dali import DaliPipeline

        return DaliPipeline
    if backend == "webdataset":
        from data_pipelines.backends.webdataset import WebDatasetPipeline

        return WebDatasetPipeline
    if backend == "ffcv":
        from data_pipelines.backends.ffcv import FfcvPipeline

        return FfcvPipeline
    from data_pipelines.backends.synthetic import SyntheticPipeline

    return SyntheticPipeline


def look_at_data(config: DataConfig, seed: int) -> DatasetInfo:
    """Return what a pipeline of this configuration would deliver, without its backend's package.

    Raises:
        ValueError: It would be refused, for its files or its settings.
        Unreachable: A remote set cannot be read.
    """
    if config.backend == "synthetic":
        return describe_synthetic(config)
    data = open_data(config, seed)
    if data.prefetcher:
        data.prefetcher.close()
    data.samples.close()
    return data.info
