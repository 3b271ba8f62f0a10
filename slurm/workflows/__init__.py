"""Pipelines: documented functions that return complete chains of jobs.

command.py     `python -m slurm pipeline NAME --root DIR`
papers.py      The two papers' experiments, from the downloaded images to the table of results
pipeline.py    Chains of jobs
quickstart.py  The quickstart as jobs
steps.py       The parts that pipelines are made of, each a step or two
"""

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
