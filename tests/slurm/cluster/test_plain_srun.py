"""Training that others' launchers start, without `relaywave slurm`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RELAYWAVE = str(Path(sys.executable).with_name("relaywave"))
TRAIN = [RELAYWAVE, "train", "rdm_debug_edm16", "logging.grid_seeds=0"]


def test_tasks_of_srun_are_no_worlds_of_one(cluster: Path) -> None:
    run_dir = cluster / "plain"
    command = ["srun", "--ntasks=2", *TRAIN, "--run-dir", str(run_dir)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "srun started 2 processes (SLURM_STEP_NUM_TASKS=2)" in ended.stderr
    assert not run_dir.exists()


def test_one_task_may_start_the_ranks_of_an_allocation(cluster: Path) -> None:
    run_dir = cluster / "allocated"
    train = " ".join([*TRAIN, "--run-dir", str(run_dir), "--ranks", "2"])
    job = ["sbatch", "--wait", "--ntasks=2", f"--output={cluster}/allocated.log", "--wrap", train]
    subprocess.run(job, check=True)
    assert (run_dir / "snapshots" / f"{64:012d}" / "snapshot.json").exists()
