"""Jobs work in a directory that holds a `models/`, `evaluation/` and `slurm.py` of the user's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.continuous_eval.command import scrontab_line
from slurm.continuous_eval.schedule import EvaluationSchedule, ScheduledProtocol, write_schedule
from slurm.jobs.interpreter import SOURCE, code_variables
from slurm.jobs.jobs import TrainJob
from slurm.jobs.records import JobDir
from slurm.resources import Resources
from slurm.site import Site
from slurm.submit.code_copy import copy_code
from slurm.submit.launcher import Submission, batch_script
from tests.slurm.project import make_foreign_modules, make_run

TINY = ["quickstart_edm16", "data.backend=synthetic", "objective.unet.model_channels=8",
        "objective.unet.label_dim=4", "global_batch_size=8", "total_images=16",
        "logging.wandb_project=null", "logging.every_images=8",
        "checkpoint.snapshot_every_images=16"]  # fmt: skip
FAKES = {
    "srun": """#!/bin/bash
while [ "$1" != "$PYTHON" ]; do shift; done
[ "$2 $3 $4 $5" = "-P -u -m submitit.core._submit" ] || exit 99
"$1" "$2" -c 'import data_pipelines, evaluation, models, slurm; print(models.__file__)' || exit 98
exit 7
""",
    "scontrol": """#!/bin/bash
[ "$1" = show ] && echo JobId=7 JobState=RUNNING Reason=None Restarts=0
exit 0
""",
}
"""Commands of Slurm: this srun checks that a task finds our packages, and ends like a crash."""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a directory with such modules; processes that start in it find ours by PYTHONPATH."""
    directory = make_foreign_modules(tmp_path / "foreign")
    monkeypatch.chdir(directory)
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    command = [sys.executable, "-m", "slurm", "status"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "the foreign slurm.py was imported" in done.stderr, "they do get in the way"
    return directory


def test_a_batch_script_finds_our_modules(foreign: Path, tmp_path: Path) -> None:
    """The port before the job, a task, and the end that requeues it, as bash runs them."""
    run_dir = make_run(tmp_path / "run")
    jobs = JobDir(run_dir)
    submission = Submission(
        kind="train", name="run", root=run_dir, jobs=[TrainJob(run_dir)], site=Site(),
        resources=Resources(tasks_per_node=2), code=copy_code(jobs.slurm_dir),
    )  # fmt: skip
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}",
                   "PYTHON": sys.executable, "SLURM_JOB_ID": "7"}  # fmt: skip
    environment.pop("PYTHONPATH")
    done = subprocess.run(["bash", "-c", batch_script(submission)], env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == str(submission.code / "models" / "__init__.py")  # type: ignore[operator]
    assert [a["event"] for a in jobs.attempts("7")] == ["crash"], done.stderr
    assert "exit code 7: it crashed; runs again in 60 s" in done.stderr


@pytest.mark.distributed
def test_a_local_job_and_what_it_starts_find_our_modules(foreign: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    protocol = ScheduledProtocol(name="quick", words=("--reference", "none.npz"))
    write_schedule(run_dir, EvaluationSchedule(protocols=(protocol,)))
    options = ["--nodes=1", "--gpus-per-node=0", "--tasks-per-node=2", "--time=10"]
    command = [sys.executable, "-P", "-m", "slurm", "train", *TINY, *options, "--cluster=local",
               "--run-dir", str(run_dir)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    reconciled = JobDir(run_dir).records_dir / "reconcile.log"
    deadline = time.monotonic() + 240
    snapshot = run_dir / "snapshots" / f"{16:012d}" / "snapshot.json"
    while not (reconciled.exists() and reconciled.read_text() and snapshot.exists()):
        logs = [path.read_text() for path in run_dir.glob("slurm/jobs/*.err")]
        assert "foreign" not in "".join(logs)
        assert time.monotonic() < deadline, logs
        time.sleep(0.2)
    assert reconciled.read_text().startswith(("error: ", "run: ")), "there may be no Slurm here"


def test_the_line_of_a_crontab_finds_our_modules(foreign: Path, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    line = scrontab_line([run_dir], 30, Site())
    schedule, _, command = line.partition(" cd ")
    assert schedule == "*/30 * * * *"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", f"cd {command}"], env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: "), "no Slurm, or no evaluation schedule"
    assert code_variables()["PYTHONPATH"] in command
