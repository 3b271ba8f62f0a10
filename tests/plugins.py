"""Plugins in the process of the tests: what they add is forgotten afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_pipelines.pipeline import BACKENDS
from data_pipelines.sources.kinds import SOURCES
from dist_train.config_groups import LOGGERS
from dist_train.recipes import RECIPES
from evaluation.detectors.registry import DETECTORS
from evaluation.metrics.registry import METRICS
from evaluation.protocols import PROTOCOLS
from models import plugins
from models.families import OBJECTIVES
from models.plugins import Registry
from slurm.workflows import WORKFLOWS

REGISTRIES: list[Registry[Any]] = [
    OBJECTIVES, RECIPES, SOURCES, BACKENDS, METRICS, DETECTORS, PROTOCOLS, LOGGERS, WORKFLOWS
]  # fmt: skip


@contextmanager
def plugins_apart() -> Iterator[None]:
    """Have no plugins at first, and forget at the end what was imported."""
    before = [dict(registry) for registry in REGISTRIES]
    loaded, path, modules = dict(plugins.LOADED), list(sys.path), set(sys.modules)
    plugins.LOADED.clear()
    try:
        yield
    finally:
        for registry, things in zip(REGISTRIES, before, strict=True):
            registry.clear()
            registry.update(things)
        for name in sys.modules.keys() - modules:
            if name.startswith(("relaywave_import_", "relaywave_flow")):
                del sys.modules[name]
        plugins.LOADED.clear()
        plugins.LOADED.update(loaded)
        sys.path[:] = path
