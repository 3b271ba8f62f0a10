"""Driving jobs of the test cluster: tiny runs, waiting, and finding their processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_train.runtime.metrics_file import read_metrics
from slurm.__main__ import main
from slurm.jobs.records import JobDir
from slurm.slurm_cli import QueuedJob, SlurmError, queued
from tests.tiny import last_of_each

Wait = tuple[str, Callable[[], object]]
"""A description of what is waited for, and whether it has happened."""
Scenario = Iterator[Wait]
"""A test that yields what it waits for, so that others can run meanwhile."""

TINY = [
    "quickstart_edm16",
    "data.backend=synthetic",
    "objective.unet.model_channels=8",
    "objective.unet.label_dim=4",
    "logging.wandb_project=null",
    "global_batch_size=8",
    "logging.every_images=8",
    "checkpoint.every_images=80",
    "checkpoint.snapshot_every_images=640",
    "total_images=640",
]
TWO_NODES = ["--nodes=2", "--tasks-per-node=1", "--gpus-per-node=0", "--time=10"]


def train(run_dir: Path, *options: str) -> str:
    """Submit a tiny run on two nodes; returns its job id."""
    where = ["--backoff-seconds=1", f"--run-dir={run_dir}"]
    arguments = last_of_each(*TINY, *TWO_NODES, *where, *options)
    assert main(["train", *arguments]) == 0
    return last_job(run_dir)


def last_job(root: Path) -> str:
    return JobDir(root).records()[-1].job_id


def wait_for(what: str, condition: Callable[[], object], seconds: float = 240.0) -> None:
    run_together(iter([(what, condition)]), seconds=seconds)


def run_together(*scenarios: Scenario, seconds: float = 240.0) -> None:
    """Run scenarios at the same time; none may wait longer than `seconds` for one thing."""
    waits = [(scenario, next(scenario), time.monotonic()) for scenario in scenarios]
    while waits:
        scenario, (what, condition), since = waits.pop(0)
        if _holds(condition):
            waits += [(scenario, wait, time.monotonic()) for wait in _next(scenario)]
        else:
            assert time.monotonic() < since + seconds, f"waited {seconds:.0f} s for: {what}"
            waits.append((scenario, (what, condition), since))
            time.sleep(0.1 / len(waits))


def _holds(condition: Callable[[], object]) -> bool:
    """Whether it has happened; not while slurmctld does not answer, as when it has just started."""
    try:
        return bool(condition())
    except SlurmError:
        return False


def _next(scenario: Scenario) -> list[Wait]:
    """Let a scenario continue; returns what it waits for then, nothing at its end."""
    wait = next(scenario, None)
    return [] if wait is None else [wait]


def images(run_dir: Path) -> int:
    lines = read_metrics(run_dir)
    return int(lines[-1]["images_seen"]) if lines else 0


def reaches(run_dir: Path, count: int) -> Wait:
    return f"{run_dir.name} to reach {count} images", lambda: images(run_dir) >= count


def wait_for_images(run_dir: Path, count: int) -> None:
    wait_for(*reaches(run_dir, count))


def wait_for_end(*job_ids: str, seconds: float = 300.0) -> None:
    wait_for(f"jobs {job_ids} to end", lambda: not queued(job_ids), seconds)
    going = {"RUNNING", "PENDING"}  # accounting hears of it a little later
    wait_for("sacct", lambda: not any(states(job_id)[-1] in going for job_id in job_ids), 30)


def job(job_id: str) -> QueuedJob:
    return queued([job_id])[job_id]


def states(job_id: str) -> list[str]:
    """Return how each start of a job ended, by sacct."""
    command = ["sacct", "-X", "--duplicates", "-nP", "-j", job_id, "-o", "State"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in output.splitlines()]


def starts(run_dir: Path, job_id: str) -> list[int]:
    """Return the saved progress with which each start of a run began."""
    attempts = JobDir(run_dir).attempts(job_id)
    return [a["images_seen"] for a in attempts if a["event"] == "start"]


def rank_pids(run_dir: Path) -> dict[int, int]:
    """Return {rank: pid} of the run's living tasks."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"submitit.core._submit" in command and str(run_dir).encode() in b" ".join(command):
            if b"srun" in command[0]:
                continue
            settings = dict(v.split(b"=", 1) for v in variables if b"=" in v)
            found[int(settings[b"SLURM_PROCID"])] = int(process.name)
    return found


def alive(pids: Collection[int]) -> list[int]:
    """Return those that run; one that waits to be reaped does not."""
    return [pid for pid in pids if _status(pid).get("State", "Z")[0] != "Z"]


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@contextmanager
def frozen(pids: Collection[int], thaw: signal.Signals = signal.SIGCONT) -> Iterator[None]:
    """Stop processes for a while, and then let them continue, or kill them."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in alive(pids):
            os.kill(pid, thaw)


def restart_daemons(root: Path) -> None:
    """Start what is down of the cluster."""
    subprocess.run([Path(__file__).parent / "up", root / "slurm"], check=True)


@contextmanager
def gang_scheduling(root: Path) -> Iterator[None]:
    """Have Slurm suspend, or end by itself, what it preempts; no job may run at either end.

    slurmctld takes that at its start only.
    """
    try:
        _restart_controller(root, PREEMPT="REQUEUE,GANG")
        yield
    finally:
        _restart_controller(root, PREEMPT="REQUEUE")


def _restart_controller(root: Path, **variables: str) -> None:
    os.kill(pid := daemon_pid(root, "slurmctld"), signal.SIGTERM)
    wait_for("slurmctld to end", lambda: not alive([pid]), 60)
    up = Path(__file__).parent / "up"
    subprocess.run([up, root / "slurm"], env=os.environ | variables, check=True)


def reserve(name: str, nodes: str, start: str) -> None:
    """Make a maintenance reservation of half an hour."""
    settings = [f"reservationname={name}", f"starttime={start}", "duration=30", f"nodes={nodes}"]
    settings += ["flags=maint,ignore_jobs", "users=root"]
    subprocess.run(["scontrol", "create", "reservation", *settings], check=True)


def reschedule(name: str, start: str) -> None:
    """Change the start of a reservation that is still ahead."""
    command = ["scontrol", "update", f"reservationname={name}", f"starttime={start}"]
    subprocess.run(command, check=True)


def end_reservation(name: str) -> None:
    """Delete a reservation, if there is one."""
    subprocess.run(["scontrol", "delete", f"reservation={name}"], check=False)


def daemon_pid(root: Path, name: str) -> int:
    return int((root / "slurm" / f"{name}.pid").read_text())


def processes_of_node(root: Path, node: str) -> list[int]:
    """Return slurmd of a node, and all that it has started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    steps = [pid for pid in parents if _is_on(root, node, pid) or _is_step(root, node, pid)]
    return [daemon_pid(root, node), *(pid for pid in steps if pid != os.getpid())]


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _is_on(root: Path, node: str, pid: int) -> bool:
    """Whether a process is of a job on a node of this cluster; others may run on the machine."""
    variables = {f"SLURMD_NODENAME={node}", f"SLURM_CONF={root / 'slurm' / 'slurm.conf'}"}
    return {variable.encode() for variable in variables} <= set(_environ(pid))


def _is_step(root: Path, node: str, pid: int) -> bool:
    """Whether a process is a slurmstepd that a slurmd of this node has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        if not (Path(f"/proc/{pid}/comm").read_text().startswith("slurmstepd")):
            return False
        return any(_is_on(root, node, int(child)) for child in children.read_text().split())
    except OSError:
        return False


def assert_no_orphans(run_dir: Path) -> None:
    wait_for(f"processes of {run_dir.name} to end", lambda: not rank_pids(run_dir), 30)


def read_json(path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads(path.read_text())
    return content
