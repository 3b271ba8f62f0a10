"""The papers' experiments as workflows."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from data_pipelines.pack.command import add_pack
from evaluation.arguments import parse
from slurm.jobs.jobs import CommandJob
from slurm.workflows.papers import WORKFLOWS
from slurm.workflows.steps import Inputs
from slurm.workflows.workflow import Workflow


def commands(workflow: Workflow) -> list[CommandJob]:
    return [job for step in workflow.steps for job in step.jobs if isinstance(job, CommandJob)]


@pytest.mark.parametrize("make", WORKFLOWS, ids=lambda make: make.__name__)
def test_arguments_of_all_steps_parse(make: object, tmp_path: Path) -> None:
    assert callable(make)
    (tmp_path / "source").touch()
    jobs = commands(make(Inputs(root=tmp_path, source=tmp_path / "source")))
    assert {job.module for job in jobs} == {"data_pipelines", "evaluation"}
    packing = argparse.ArgumentParser()
    add_pack(packing)
    for job in jobs:
        if job.module == "evaluation":
            parse(job.arguments)
        else:
            assert job.arguments[0] == "pack"
            packing.parse_args(job.arguments[1:])
