"""Ranks get their share of the node's cores, unless the request says how many."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.resources import Resources
from slurm.site import Site
from slurm.submit.preflight import cores_per_gpu, with_cores

NODES = """96|gpu:a100:8(S:0-1),lustre:1
128|gpu:a100:8(S:0-1)
64|gpu:v100:4,gpu:t4:4
48|gpu:2
32|(null)
"""


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put commands onto the PATH that answer as those of a cluster with several kinds of nodes."""
    (tmp_path / "nodes").write_text(NODES)
    answer = (
        'case "$*" in\n'
        "*%P*) printf 'gpu*|3|infinite\\nold|1|infinite\\n' ;;\n"
        f"*--partition=old*) grep '^48' {tmp_path}/nodes ;;\n"
        f"*) cat {tmp_path}/nodes ;;\n"
        "esac\n"
    )
    for name in ("sbatch", "srun", "sinfo"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\n{answer}")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("partition", "gpu_type", "cores"),
    [("gpu", "a100", 12), ("", "v100", 16), ("gpu", "", 8), ("old", "", 24), ("gpu", "h100", 0)],
)
def test_cores_for_each_gpu_of_the_smallest_node(partition: str, gpu_type: str, cores: int) -> None:
    assert cores_per_gpu(partition, gpu_type) == cores


@pytest.mark.parametrize(("ranks", "cores"), [(8, 12), (4, 24)])
def test_ranks_share_the_cores_of_their_gpus(ranks: int, cores: int) -> None:
    request = Resources(gpus_per_node=8, tasks_per_node=ranks, gpu_type="a100")
    assert with_cores(request, Site()).cpus_per_task == cores


@pytest.mark.parametrize(
    ("request_", "site"),
    [
        (Resources(gpus_per_node=8, cpus_per_task=3), Site()),
        (Resources(gpus_per_node=8), Site(cpus_per_task=6)),
        (Resources(gpus_per_node=8, sbatch={"cpus-per-gpu": "5"}), Site()),
        (Resources(gpus_per_node=8), Site(sbatch={"cpus-per-gpu": 5})),
        (Resources(), Site()),
    ],
)
def test_what_is_said_stays(request_: Resources, site: Site) -> None:
    assert with_cores(request_, site) == request_


def test_one_core_for_a_rank_is_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    request = Resources(gpus_per_node=8, tasks_per_node=8, gpu_type="h100")
    assert with_cores(request, Site()) == request
    assert "each rank gets one core: set --cpus-per-task" in capsys.readouterr().err
