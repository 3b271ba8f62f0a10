"""Slurm's own commands, called without a shell; answers are parsed into plain types."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol", "sinfo", "sacctmgr")

ROW, FIELD = "\x1e", "\x1f"
"""Separators of what Slurm lists: ASCII's own, as names may have any character that people type."""
MAINTENANCE = "MaintenanceHasBegun"
"""Our reason of a running job whose nodes are under maintenance; Slurm leaves it alone."""
REASONS = {
    MAINTENANCE: "on nodes that it runs on: `scancel --signal=USR2 ID` saves and requeues it now,"
    " otherwise it runs until they are taken down",
    "reserv": "its time limit reaches into a reservation, such as a maintenance: it starts after"
    " that, or before with a --time or --time-min that ends sooner",
    "JobArrayTaskLimit": "its array runs as many tasks at once as allowed",
    "DependencyNeverSatisfied": "a job that it waits for failed: cancel it, and submit it again",
    "Dependency": "it waits for other jobs",
    "BeginTime": "it starts later, as requested, or as after each requeue",
    "Held": "it is held: `scontrol release ID` releases it",
    "held": "it could not be started and is held: look at its nodes, then `scontrol release ID`",
    "Partition": "its partition is down, or does not allow that many nodes or that much time",
    "QOS": "a limit of the QOS is reached: it waits for its other jobs, or requests too much",
    "Assoc": "a limit of the account is reached: it waits for its other jobs, or requests too much",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved: see `sinfo -R`, and"
    " `scontrol show reservation`",
    "BadConstraints": "no nodes match its request: compare --constraint, --mem and --gpus-per-node",
    "Licenses": "it waits for licenses",
}
"""What Slurm's reasons of pending jobs mean, by a part of their text; the first match counts."""


class SlurmError(ValueError):
    """Slurm is missing, does not answer, or rejects a request; the message is one line."""


class SlurmMissing(SlurmError):  # noqa: N818 (says what is the matter)
    """A command of Slurm is not on this machine."""


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue: Slurm's id (`12` or `12_3`), state, reason, nodes, time used and left.

    `submitted` is in Unix seconds, of its last requeue if there was one; 0 if unknown.
    """

    job_id: str
    name: str
    state: str
    reason: str
    nodes: str
    elapsed: str
    left: str
    start: str
    submitted: float = 0.0


def explain(reason: str) -> str:
    """Return what a pending job's reason means and what to do, "" if that is clear."""
    return next((text for part, text in REASONS.items() if part in reason), "")


def have_slurm() -> bool:
    """Whether Slurm's commands are on this machine."""
    return shutil.which("sbatch") is not None and shutil.which("srun") is not None


def run_slurm(command: Sequence[str], timeout: float = 60.0) -> str:
    """Run a Slurm command and return its output.

    Raises:
        SlurmError: It is missing, failed, or did not answer in time.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise SlurmMissing(
            f"{command[0]} is not on this machine; log in to the cluster, or use --cluster local"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer in {timeout:.0f} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise SlurmError(f"{command[0]}: {lines[-1] if lines else 'failed without a message'}")
    return done.stdout


def queued(job_ids: Iterable[str] | None = None) -> dict[str, QueuedJob]:
    """Return the jobs in the queue by id: all of this user's, or those of `job_ids`.

    Pending tasks of an array have an entry each. Jobs that have left the queue are left out.
    """
    # the name, which may have any character, comes last
    fields = ("%i", "%T", "%r", "%N", "%M", "%L", "%S", "%V", "%j")
    command = ["squeue", "--noheader", "--array", "--me", f"--format={ROW}{FIELD.join(fields)}"]
    jobs = [_queued_job(row) for row in run_slurm(command).split(ROW)[1:]]
    if job_ids is None:
        return {job.job_id: job for job in jobs}
    wanted = set(job_ids)
    return {job.job_id: job for job in jobs if {job.job_id, job.job_id.split("_")[0]} & wanted}


def _queued_job(row: str) -> QueuedJob:
    fields = row.removesuffix("\n").split(FIELD, 8)
    job_id, state, reason, nodes, elapsed, left, start, submitted, name = fields
    return QueuedJob(
        job_id, name, state, reason, nodes, elapsed, left, start, seconds_of(submitted)
    )


def seconds_of(text: str) -> float:
    """Return the Unix time of Slurm's local time, 0 if it has none."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0


def describe(job_id: str) -> dict[str, str]:
    """Return what slurmctld knows about a job (`scontrol show job`), by field name.

    Comments and directories, which may look like fields, come after those that matter here.
    """
    found: dict[str, str] = {}
    for field in run_slurm(["scontrol", "show", "job", "--oneliner", job_id]).split():
        name, mark, value = field.partition("=")
        if mark:
            found.setdefault(name, value)
    return found


def host_names(text: str) -> set[str]:
    """Return the hosts of a list as Slurm writes it, such as `n[1-4],m1`."""
    return set(run_slurm(["scontrol", "show", "hostnames", text]).split())


def settings() -> dict[str, str]:
    """Return slurmctld's configuration (`scontrol show config`)."""
    lines = run_slurm(["scontrol", "show", "config"]).splitlines()
    pairs = (line.partition("=") for line in lines)
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def idle_nodes(partition: str) -> int:
    """Return how many nodes of a partition (or of several, `a,b`) run nothing."""
    return len(partition_hosts(partition, "--states=idle"))


def partition_hosts(partition: str, *options: str) -> set[str]:
    """Return the hosts of a partition (or of several, `a,b`), by further options of sinfo."""
    command = ["sinfo", "-hN", f"--partition={partition}", *options, "--format=%N"]
    return set(run_slurm(command).splitlines())


def under_maintenance() -> set[str]:
    """Return the ids of this user's running jobs on nodes where a maintenance has begun."""
    nodes = run_slurm(["sinfo", "--noheader", "--Node", "--states=maint", "--format=%N"]).split()
    if not nodes:
        return set()
    command = ["squeue", "--noheader", "--array", "--me", "--states=RUNNING", "--format=%i",
               f"--nodelist={','.join(sorted(set(nodes)))}"]  # fmt: skip
    return set(run_slurm(command).split())


def nodes_are_unavailable() -> bool:
    """Whether any node is down, drained or reserved now, or will be reserved."""
    states = run_slurm(["sinfo", "--noheader", "--Node", "--format=%T"]).split()
    if set(states) - {"idle", "mixed", "allocated", "completing"}:
        return True
    return "ReservationName=" in run_slurm(["scontrol", "show", "reservation", "--oneliner"])


def accounting(job_ids: Iterable[str], fields: Sequence[str]) -> list[dict[str, str]]:
    """Return sacct's rows of allocations (not steps), one for each time that a job ran.

    The last field may have any character; what stands behind a line end in it is left out.
    """
    ids = sorted(set(job_ids))
    if not ids:
        return []
    command = ["sacct", "--allocations", "--duplicates", "--parsable2", "--noheader",
               f"--delimiter={FIELD}", f"--jobs={','.join(ids)}",
               f"--format={','.join(fields)}"]  # fmt: skip
    lines = run_slurm(command).splitlines()
    split = (line.split(FIELD, len(fields) - 1) for line in lines)
    return [dict(zip(fields, row, strict=True)) for row in split if len(row) == len(fields)]


def submission_problem(script: str, environment: Mapping[str, str]) -> str:
    """Return why Slurm would reject a batch script, "" if it would not; queues nothing.

    Args:
        script: The batch script.
        environment: Variables that it is submitted with: sbatch obeys some above the script.
    """
    done = subprocess.run(
        ["sbatch", "--test-only"], input=script, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("allocation failure: ") if lines else "sbatch rejects it"
