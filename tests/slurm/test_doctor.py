"""What the doctor says about Slurm's commands on nodes, and where jobs that need them run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from slurm import doctor
from slurm.continuous_eval.reconcile import ReconcileJob
from slurm.doctor import NODES, PROBES, NodeProbeJob, ProbeJob, job_findings, node_findings
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


PROBED: dict[str, Any] = {
    "rank": 0, "host": "n1", "name": "n1", "sees_token": True, "cores": 12, "interface": "ib0",
    "sum_is_right": True, "device": "cuda:0", "seconds": 0.01, "gpus": 8, "ranks": 2,
    "gpu": "NVIDIA H100 80GB HBM3", "bytes_per_second": 90e9, "locks": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "ok: the all-reduce sent 720 Gbit/s; `train plan` assumes 800"),
        ({"bytes_per_second": 5e9},
         "warning: the all-reduce sent 40 Gbit/s; `train plan` assumes 800"
         " (give it --network-gbit 40, or set network_interface)"),
        ({"cores": 1}, "warning: rank 0 on n1 has 1 core: data loading will hold up its GPU"),
        ({"links": False}, "bad: rank 0 on n1 cannot make hard links in"),
        ({"locks": False}, "warning: rank 0 on n1: flock in"),
        ({"sum_is_right": False}, "bad: rank 0 on n1: the all-reduce gave a wrong sum"),
        ({"gpus": 0, "gpu": ""}, "bad: rank 0 on n1 sees no GPU, although 8 were requested"),
        ({"sum_is_right": None}, "bad: rank 0 on n1 could not reach rank 0 at n1"),
        ({"commands": ["sbatch"]}, "ok: ranks see these commands of Slurm: sbatch"),
    ],
)  # fmt: skip
def test_what_ranks_of_the_probe_found(
    changed: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    resources = Resources(nodes=2, tasks_per_node=1, gpus_per_node=8)
    for rank in range(2):
        PROBES.write(tmp_path / f"rank-{rank}.json", PROBED | {"rank": rank} | changed)
    found = [f"{finding.verdict}: {finding.text}" for finding in job_findings(tmp_path, resources)]
    assert any(text.startswith(expected) for text in found), found
    unwell = [text for text in found if not text.startswith("ok")]
    assert bool(unwell) != expected.startswith("ok")


def test_one_node_is_compared_with_its_own_links(tmp_path: Path) -> None:
    for rank in range(2):
        PROBES.write(tmp_path / f"rank-{rank}.json", PROBED | {"rank": rank})
    resources = Resources(tasks_per_node=2, gpus_per_node=2)
    found = [f"{finding.verdict}: {finding.text}" for finding in job_findings(tmp_path, resources)]
    assert "warning: the all-reduce sent 720 Gbit/s; `train plan` assumes 3600" in found


def test_a_rank_tries_links_and_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("token")
    monkeypatch.setattr(doctor, "enter_rank", lambda task: None)
    ProbeJob(tmp_path, "token")()
    seen = PROBES.read(tmp_path / "rank-0.json")
    assert (seen.sees_token, seen.sum_is_right, seen.links, seen.locks) == (True,) * 4

    def cannot_link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", cannot_link)
    assert not doctor.links_work(tmp_path / "other")
    monkeypatch.setattr(os, "link", lambda *_: None)  # a file system that pretends
    assert not doctor.links_work(tmp_path / "other")


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
