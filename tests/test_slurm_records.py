"""The batch scripts of every command are committed records: a change of them is seen in review.

To renew them: RELAYWAVE_RENEW_RECORDS=1 python -m pytest tests/test_slurm_records.py
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from slurm.__main__ import main
from slurm.code import code_digest

RECORDS = Path(__file__).parent / "records"
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
    "reference": ["reference", "{root}/data", "--out", "{root}/ref.npz", "--gpus-per-node=4"],
    "pack": ["pack", "photographs", "{root}/data", "--resolution", "64", "--tasks=4"],
    "pipeline": ["pipeline", "quickstart", "--root", "{root}/all", "--tasks=4"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_batch_scripts_are_as_recorded(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "data"):
        (tmp_path / folder).mkdir()
    site, runtime = tmp_path / "site.toml", name.rpartition("_")[2]
    container = CONTAINER.format(runtime=runtime) if runtime in ("pyxis", "apptainer") else ""
    site.write_text(SITE + container)
    words = [word.format(root=tmp_path) for word in COMMANDS[name]]
    assert main([*words, "--site", str(site), "--dry-run"]) == 0
    text = _normal(capsys.readouterr().out, tmp_path)
    record = RECORDS / f"{name}.sh"
    if os.environ.get("RELAYWAVE_RENEW_RECORDS"):
        record.write_text(text)
    assert text == record.read_text(), f"the batch script of {name} has changed"
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"site.toml"}, "--dry-run writes nothing"


def _normal(text: str, root: Path) -> str:
    """Take out what differs between machines and versions of the code."""
    text = text.replace(str(root), "/project").replace(sys.executable, "python")
    text = text.replace(code_digest(), "CODE")
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).rstrip() + "\n"
