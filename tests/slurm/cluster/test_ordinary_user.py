"""A run of somebody who is not root, on a cluster that enforces its accounting."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.jobs.interpreter import SOURCE
from tests.slurm.cluster import helpers
from tests.tiny import last_of_each

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SHORT = ["total_images=160", "checkpoint.snapshot_every_images=160"]


@dataclass(frozen=True)
class User:
    """A user of this machine, with a home in the shared directory."""

    name: str
    home: Path
    python: str

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, who has the packages of these tests."""
        home, path = str(self.home), os.pathsep.join([str(SOURCE), sysconfig.get_path("purelib")])
        own = {"HOME": home, "USER": self.name, "LOGNAME": self.name, "XDG_CONFIG_HOME": home,
               "RELAYWAVE_CACHE": home, "TMPDIR": home, "PYTHONPATH": path}  # fmt: skip
        return subprocess.run(
            command, user=self.name, group=self.name, extra_groups=[], cwd=home,
            env=os.environ | own, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def relaywave(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `relaywave slurm ARGUMENTS`."""
        return self.run(self.python, "-P", "-m", "slurm", *arguments)

    def has_python(self) -> bool:
        """Whether the interpreter is one that this user may start, with the packages."""
        try:
            return self.run(self.python, "-c", "import slurm, submitit, torch").returncode == 0
        except OSError:
            return False


@pytest.fixture
def user(cluster: Path) -> Iterator[User]:
    """Make a user, whom accounting does not know."""
    name = f"relaywave{secrets.token_hex(3)}"
    subprocess.run(["useradd", "--create-home", f"--base-dir={cluster}", name], check=True)
    try:
        pythons = (sys.executable, "/usr/bin/python3")  # root's own may be in a home of root's
        users = (User(name, cluster / name, python) for python in pythons)
        found = next((user for user in users if user.has_python()), None)
        if found is None:
            pytest.skip(f"only root may start {sys.executable}, and there is no other one like it")
        yield found
    finally:
        subprocess.run(["userdel", "--force", name], check=True)


def test_a_user_trains_within_the_account(cluster: Path, user: User) -> None:
    run_dir = user.home / "run"
    arguments = [*helpers.TINY, *SHORT, *helpers.TWO_NODES, f"--run-dir={run_dir}"]
    train = ["train", *last_of_each(*arguments)]
    rejected = user.relaywave(*train)
    assert rejected.returncode == 2, rejected.stderr
    assert "Invalid account" in rejected.stderr
    assert not run_dir.exists(), "nothing was written"

    add = ["sacctmgr", "-i", "add", "user", user.name, "account=relaywave"]
    subprocess.run(add, check=True, stdout=subprocess.DEVNULL)
    helpers.wait_for("Slurm to know the user", lambda: user.relaywave(*train).returncode == 0, 60)
    job_id = helpers.last_job(run_dir)
    helpers.wait_for_images(run_dir, 24)
    assert user.run("scancel", "--signal=USR2", job_id).returncode == 0
    helpers.wait_for("the end", lambda: helpers.states(job_id)[-1] == "COMPLETED")
    assert len(helpers.starts(run_dir, job_id)) == 2, "its batch script requeued it"
    assert helpers.starts(run_dir, job_id)[1] >= 24, "saved at the step of the signal"
    assert {path.owner() for path in run_dir.rglob("*")} == {user.name}
    assert f"train {job_id}  COMPLETED" in user.relaywave("status", str(run_dir)).stdout
