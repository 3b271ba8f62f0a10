"""Workflows: experiments as graphs of jobs, from the downloaded images to the table of results.

command.py     `relaywave slurm workflow NAME --root DIR`: validates all steps, then submits them
workflow.py    A graph of jobs: its steps, which are finished, queued or missing, and its report
steps.py       The kinds of steps: pack, train, sample, reference, evaluate, table
quickstart.py  The quickstart: both models on the embedded photographs
"""

from __future__ import annotations

from collections.abc import Callable

from models.config_io import ConfigError, did_you_mean
from models.plugins import Registry
from slurm.workflows import quickstart
from slurm.workflows.steps import Inputs
from slurm.workflows.workflow import Workflow

WORKFLOWS: Registry[Callable[[Inputs], Workflow]] = Registry(
    "workflow",
    Callable,
    {workflow.__name__: workflow for workflow in quickstart.WORKFLOWS},
)


def find_workflow(name: str) -> Callable[[Inputs], Workflow]:
    """Return the workflow of a name. Raises ConfigError, listing all names, if there is none."""
    if name not in WORKFLOWS:
        similar = did_you_mean(name, [*WORKFLOWS]) or f"; known are {', '.join(WORKFLOWS)}"
        papers = "the papers' experiments are in `relaywave paper list`"
        raise ConfigError(f"there is no workflow {name!r}{similar}; {papers}")
    return WORKFLOWS[name]
