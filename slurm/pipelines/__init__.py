"""Pipelines: documented functions that return complete chains of jobs."""

from __future__ import annotations

from collections.abc import Callable

from models.config_io import ConfigError
from slurm.pipelines import papers, quickstart
from slurm.pipelines.pipeline import Pipeline
from slurm.pipelines.steps import Inputs

PIPELINES: dict[str, Callable[[Inputs], Pipeline]] = {
    pipeline.__name__: pipeline for pipeline in (*quickstart.PIPELINES, *papers.PIPELINES)
}


def find_pipeline(name: str) -> Callable[[Inputs], Pipeline]:
    """Return the pipeline of a name. Raises ConfigError, listing all names, if there is none."""
    if name not in PIPELINES:
        raise ConfigError(f"there is no pipeline {name!r}; known are {', '.join(PIPELINES)}")
    return PIPELINES[name]
