"""The batch scripts of every command are committed records: a change of them is seen in review.

Commands that submit nothing (status, logs, history, cancel) have none.

To renew them: RELAYWAVE_RENEW_RECORDS=1 python -m pytest tests/slurm/submit/test_batch_scripts.py
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from slurm.__main__ import COMMANDS as COMMAND_TABLE
from slurm.__main__ import main
from slurm.continuous_eval import reconcile
from slurm.jobs.records import JobDir, JobRecord
from slurm.resources import Resources
from slurm.submit.code_copy import code_digest
from tests.paths import RECORDS
from tests.slurm.project import make_reference, make_run

SITE = """
partition = "gpu"
account = "diffusion"
qos = "normal"
evaluation_partition = "preempt"
mem = "200G"
cpus_per_task = 12
cpu_bind = "cores"
open_files = 65536
setup = ["module load cuda/12.4"]
network_interface = "ib0"
scratch = "/scratch/$SLURM_JOB_ID"
shared = ["/project"]
[environment]
NCCL_DEBUG = "WARN"
"""
CONTAINER = """
[container]
image = "/project/images/relaywave.sif"
runtime = "{runtime}"
mounts = ["/project:/project"]
"""
GPUS = ["--nodes=4", "--gpus-per-node=8", "--time=24:00:00", "global_batch_size=32"]
COMMANDS = {
    "train": ["train", "rdm_debug_edm16", "--run-dir", "{root}/run", *GPUS, "--constraint=a100",
              "--mail-type=END,FAIL", "--mail-user=me@example.org", "--comment=first try"],
    "train_pyxis": ["train", "rdm_debug_edm16", "--run-dir", "{root}/run", *GPUS],
    "train_apptainer": ["train", "rdm_debug_edm16", "--run-dir", "{root}/run", *GPUS],
    "sweep": ["sweep", "rdm_debug_edm16", "--out", "{root}/sweep", "--grid=seed=0,1,2",
              "--parallel=2", "--nodes=1", "--gpus-per-node=8", "--time=2-12"],
    "sample": ["sample", "{root}/run", "--seeds", "0-63", "--out", "{root}/samples",
               "--gpus-per-node=8"],
    "eval": ["eval", "{root}/run", "--reference", "ref.npz", "--out", "{root}/result.json",
             "--nodes=2", "--gpus-per-node=8"],
    "eval_sweep": ["eval-sweep", "{root}/run", "--reference", "ref.npz", "--seeds", "0-3",
                   "--grid=sampling.steps=2,3", "--out", "{root}/sweep", "--gpus-per-node=8"],
    "reference": ["reference", "{root}/data", "--out", "{root}/data.npz", "--gpus-per-node=4"],
    "pack": ["pack", "photographs", "{root}/set", "--resolution", "64", "--tasks=4"],
    "workflow": ["workflow", "quickstart", "--root", "{root}/all", "--tasks=4"],
    "paper": ["paper", "run", "rdm_figure2", "--root", "{root}/all", "--debug", "--cluster=slurm"],
    "resume": ["resume", "{root}/run"],
    "reconcile": ["reconcile", "{root}/run", "--plan", "{root}/plan.json"],
    "reconcile_every": ["reconcile", "{root}/run", "--every=30", "--partition=preempt"],
    "doctor": ["doctor", "--nodes=2", "--gpus-per-node=8", "--folder", "{root}"],
}  # fmt: skip
SCHEDULE = {
    "protocols": [
        {"name": "quick", "words": ["--reference", "ref.npz", "--seeds", "0-9999"]},
        {"name": "full", "words": ["--reference", "ref.npz"], "every_images": 8},
    ],
    "resources": {"gpus_per_node": 8, "tasks_per_node": 8, "minutes": 240},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project: a run of one snapshot that was submitted once, data, a schedule."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reconcile, "queued", lambda: {})
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "image.png")
    run_dir = make_run(tmp_path / "run", "global_batch_size=32")
    JobDir(run_dir).write(
        JobRecord(job_id="1", kind="train", name="run", cluster="slurm", submitted=0.0,
                  cwd=str(tmp_path), code="/project/run/slurm/code/OLD", logs="",
                  resources=Resources(nodes=2, tasks_per_node=8, gpus_per_node=8, minutes=1440,
                                      dependency="afterok:12", begin="now+6hours"))
    )  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(SCHEDULE))
    make_reference(tmp_path / "ref.npz")
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_batch_scripts_are_as_recorded(
    name: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, runtime = project / "site.toml", name.rpartition("_")[2]
    container = CONTAINER.format(runtime=runtime) if runtime in ("pyxis", "apptainer") else ""
    site.write_text(SITE + container)
    before = {path for path in project.rglob("*") if path.is_file()}
    arguments = [text.format(root=project) for text in COMMANDS[name]]
    assert main([*arguments, "--site", str(site), "--dry-run"]) == 0
    text = _normal(capsys.readouterr().out, project)
    record = RECORDS / f"{name}.sh"
    if os.environ.get("RELAYWAVE_RENEW_RECORDS"):
        record.write_text(text)
    assert text == record.read_text(), f"the batch script of {name} has changed"
    assert {p for p in project.rglob("*") if p.is_file()} == before, "--dry-run writes nothing"


def test_every_command_that_submits_has_a_record() -> None:
    submit_nothing = {"status", "logs", "history", "report", "cancel"}
    assert {
        arguments[0] for arguments in COMMANDS.values()
    } == COMMAND_TABLE.keys() - submit_nothing


def _normal(text: str, root: Path) -> str:
    """Replace what differs between machines and versions of the code."""
    text = text.replace(str(root), "/project").replace(sys.executable, "python")
    text = text.replace(code_digest(), "CODE")
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).rstrip() + "\n"
