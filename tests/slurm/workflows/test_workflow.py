"""The jobs of a workflow's steps: which of them are in the queue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slurm.jobs.jobs import CommandJob
from slurm.jobs.records import JobDir, JobRecord
from slurm.resources import Resources
from slurm.slurm_cli import QueuedJob
from slurm.workflows.workflow import Step, format_tree, job_in_queue


@pytest.mark.parametrize("tasks", [(), ("a", "b")])
def test_a_step_is_not_queued_as_a_job_of_another_that_has_its_id(
    tasks: tuple[str, ...], tmp_path: Path
) -> None:
    """Ids come again after slurmctld has lost its state: its step would never be submitted."""
    job = CommandJob("evaluation", ("reference",), tmp_path / "done")
    step = Step(
        name="reference", root=tmp_path, kind="reference", jobs=(job,), resources=Resources()
    )
    record = JobRecord(
        job_id="7", kind="reference", name="w-reference", cluster="slurm", submitted=1e9, cwd="",
        code="", logs="", resources=Resources(), tasks=tasks,
    )  # fmt: skip
    JobDir(tmp_path).write(record)
    ours = [
        QueuedJob(job_id, record.name, "RUNNING", "", "", "", "", "", submitted=1e9 + 5)
        for job_id in record.task_ids
    ]
    assert job_in_queue("w", step, {job.job_id: job for job in ours}) == "7"
    others = {job.job_id: replace(job, name="another", submitted=2e9) for job in ours}
    assert job_in_queue("w", step, others) == ""
    assert "running" not in format_tree("w", (step,), others)
    assert job_in_queue("w", step, {}) == ""
