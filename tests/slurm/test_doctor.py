"""What the doctor says about Slurm's commands on nodes, and where jobs that need them run."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm import doctor
from slurm.continuous_eval.reconcile import ReconcileJob
from slurm.doctor import NODES, NodeProbeJob, node_findings
from slurm.jobs.jobs import CommandJob, Job
from slurm.resources import Resources
from slurm.site import Container, Site
from slurm.slurm_cli import SlurmMissing
from slurm.submit.launcher import Submission, batch_script
from slurm.workflows.workflow import ReportJob


@pytest.mark.parametrize(
    ("scontrol", "sbatch", "expected"),
    [
        ("", "", ["ok: n1 can requeue and submit jobs"]),
        ("no", "", ["warning: n1 cannot requeue jobs (no): what was stopped waits for it"]),
        ("", "no", ["warning: n1 cannot submit jobs (no): snapshots wait for their evaluation"]),
    ],
)
def test_what_nodes_cannot_do_is_said_with_what_to_do(
    scontrol: str, sbatch: str, expected: list[str], tmp_path: Path
) -> None:
    NODES.write(tmp_path / "node.json", {"name": "n1", "scontrol": scontrol, "sbatch": sbatch})
    found = [f"{finding.verdict}: {finding.text}" for finding in node_findings(tmp_path)]
    advice = "call `relaywave slurm reconcile RUN` on a login node, or by scrontab: "
    assert [text.replace(advice, "") for text in found] == expected
    assert all(advice in text for text in found if text.startswith("warning"))


def test_a_node_without_slurms_commands_is_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SlurmMissing("scontrol is not on this machine")

    monkeypatch.setattr(doctor, "describe", fail)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", "/nowhere")
    assert next(iter(node_findings(tmp_path))).verdict == "bad", "the job did not get that far"
    NodeProbeJob(tmp_path)()
    seen = NODES.read(tmp_path / "node.json")
    assert seen.scontrol == "scontrol is not on this machine"
    assert seen.sbatch == "sbatch is not there"


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
@pytest.mark.parametrize(
    ("job", "inside"),
    [
        (CommandJob("evaluation", ("sample",)), True),
        (ReconcileJob((Path("run"),), 30, Site(), Resources(), "reconcile"), False),
        (ReportJob("workflow", (), (), Path("done")), False),
        (NodeProbeJob(Path("probe")), False),
    ],
)
def test_jobs_that_call_slurm_run_outside_of_the_container(
    job: Job, inside: bool, runtime: str, tmp_path: Path
) -> None:
    container = Container(image="image.sif", runtime=runtime)  # type: ignore[arg-type]
    submission = Submission(
        kind="x", name="x", root=tmp_path, jobs=[job], resources=Resources(),
        site=Site(container=container),
    )  # fmt: skip
    text = batch_script(submission)
    assert ("image.sif" in text) is inside
    ends = [line for line in text.splitlines() if "slurm.jobs.batch_end" in line]
    assert len(ends) == 1, "every batch script settles its end, outside of the container"
    assert "image.sif" not in ends[0]
