"""`relaywave slurm doctor`: whether a site is fit for training.

Each check prints a line: ok, warning or bad. Some ask Slurm; the others are made on the nodes, by a
job of a minute.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from models.safe_files.documents import Format
from models.safe_files.locks import FileLock
from slurm.jobs.health import VALUES, all_reduce
from slurm.jobs.interpreter import outside_environment
from slurm.jobs.ranks import enter_rank, own_job_id, this_task
from slurm.jobs.records import JobRecord
from slurm.resources import Resources
from slurm.site import Site
from slurm.slurm_cli import (
    COMMANDS,
    SlurmError,
    describe,
    have_slurm,
    queued,
    run_slurm,
    settings,
    submission_problem,
)
from slurm.submit.arguments import Target, add_submit_options, submit_options
from slurm.submit.launcher import Submission, submit
from slurm.submit.preflight import partitions

NEEDED_KILL_WAIT = 30
"""Seconds between SIGTERM and SIGKILL in which a preempted run saves its state."""
LEAST_CORES = 2
"""Cores of a rank with a GPU below which data loading holds it up."""
ENOUGH = 1 / 3
"""Share of the bandwidth that `train plan` assumes which a short all-reduce should reach."""


@dataclass(frozen=True)
class Finding:
    """The outcome of a check: `ok`, `warning` or `bad`, and what was seen."""

    verdict: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a rank of the probe found; what it does with others is null if it did not get that far.

    `links` and `locks` are whether hard links and flock work in the shared directory; `commands`
    are those of Slurm that the rank sees, in its container if it has one.
    """

    IGNORES_UNKNOWN: ClassVar[bool] = True
    rank: int
    host: str
    name: str
    sees_token: bool
    cores: int
    interface: str
    sum_is_right: bool | None = None
    device: str = ""
    seconds: float = 0.0
    gpus: int = 0
    gpu: str = ""
    ranks: int = 0
    bytes_per_second: float = 0.0
    links: bool = True
    locks: bool | None = None
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeProbed:
    """What is wrong with Slurm's commands on a node; "" if nothing is."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    name: str
    scontrol: str
    sbatch: str


NODES = Format(schema=NodeProbed, remedy="run the doctor again")
PROBES = Format(schema=Probed, remedy="run the doctor again")


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """What to check.

    Attributes:
        shared_dir: Shared directory to try; the probe writes to `doctor-<token>/` there.
        submit_probe: Whether to try the nodes too, where Slurm can be asked.
        patience: Seconds to wait for the probe.
        resources: What the probe requests.
        target: The site, and where to submit to.
    """

    shared_dir: Path
    submit_probe: bool
    patience: float
    resources: Resources
    target: Target


def examine(request: DoctorRequest) -> None:
    """Check the site and print the findings.

    Raises:
        SlurmError: A finding is bad.
    """
    target, resources = request.target, request.resources
    if target.dry_run:
        target.launch(probe_submission(request.shared_dir, "TOKEN", resources, target.site))
        return
    found = list(site_findings(target.site))
    if request.submit_probe and have_slurm() and target.executor == "slurm":
        target.check(resources, request.shared_dir)
        found += _probe(request)
    for finding in found:
        print(f"{finding.verdict:8} {finding.text}")
    bad = [finding for finding in found if finding.verdict == "bad"]
    if bad:
        raise SlurmError(f"{len(bad)} of {len(found)} checks found something bad")


def _probe(request: DoctorRequest) -> Iterator[Finding]:
    token, patience = secrets.token_hex(8), request.patience
    submission = probe_submission(request.shared_dir, token, request.resources, request.target.site)
    submission.root.mkdir(parents=True)
    (submission.root / "token").write_text(token)
    records = [submit(submission), submit(_node_submission(submission))]
    if all(_wait(record, patience) for record in records):
        yield from job_findings(submission.root, request.resources)
        yield from node_findings(submission.root)
        return
    for record in records:
        if (job := queued([record.job_id]).get(record.job_id)) is not None:
            run_slurm(["scancel", record.job_id])
            why = f"{job.state}, {job.reason}"
            text = f"job {record.job_id} did not end in {patience:.0f} s ({why})"
            yield Finding("bad", f"{text}; logs: {record.logs}")


def probe_submission(shared_dir: Path, token: str, resources: Resources, site: Site) -> Submission:
    """Return the job that inspects the nodes and writes to `<shared_dir>/doctor-<token>/`."""
    probe_dir = shared_dir / f"doctor-{token}"
    return Submission(
        kind="doctor", name="doctor", root=probe_dir, jobs=[ProbeJob(probe_dir, token)],
        resources=resources, site=site,
    )  # fmt: skip


def _node_submission(probe: Submission) -> Submission:
    """Return the job that tries Slurm's commands on a node, beside the one of the ranks."""
    resources = replace(probe.resources, nodes=1, fewest_nodes=0, tasks_per_node=1)
    return replace(probe, name="doctor-node", jobs=[NodeProbeJob(probe.root)], resources=resources)


def site_findings(site: Site) -> Iterator[Finding]:
    """Yield the checks that ask Slurm."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        yield Finding("bad", f"commands are missing here: {', '.join(missing)}")
    if not have_slurm():
        return
    yield Finding("ok", run_slurm(["sbatch", "--version"]).strip())
    known = partitions()
    names = ", ".join(f"{p.name} ({p.nodes} nodes)" for p in known)
    yield Finding("ok", f"partitions: {names}")
    for wanted in {site.partition, site.evaluation_partition} - {""}:
        if wanted not in [partition.name for partition in known]:
            yield Finding("bad", f"the site profile's partition {wanted!r} does not exist")
    configured = settings()
    kill_wait = int(configured.get("KillWait", "30").split()[0])
    enough = kill_wait >= NEEDED_KILL_WAIT
    yield Finding("ok" if enough else "warning",
                  f"KillWait is {kill_wait} s: a preempted run has that long to save")  # fmt: skip
    accounting = configured.get("AccountingStorageType", "")
    works = accounting.endswith("slurmdbd")
    yield Finding("ok" if works else "warning",
                  f"accounting is {accounting or 'unknown'}; history needs slurmdbd")  # fmt: skip
    for name in ("JobRequeue", "PreemptMode", "PreemptType", "MaxArraySize"):
        yield Finding("ok", f"{name} is {configured.get(name, 'unknown')}")


def job_findings(shared_dir: Path, resources: Resources) -> Iterator[Finding]:
    """Yield the checks that the ranks of the probe made."""
    seen = []
    for number in range(resources.world_size):
        try:
            seen.append(PROBES.read(shared_dir / f"rank-{number}.json"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            yield Finding("bad", str(error))
    if len(seen) < resources.world_size:
        yield Finding("bad", f"{len(seen)} of {resources.world_size} ranks wrote to {shared_dir}:"
                             " is it shared by all nodes? See the logs of the job")  # fmt: skip
    for rank in seen:
        yield from _rank_findings(rank, shared_dir, resources)
    if seen and seen[0].bytes_per_second:
        yield from _bandwidth_findings(seen[0], resources.nodes)
    if seen:
        inside = ", ".join(seen[0].commands) or "none, nor need they"
        yield Finding("ok", f"ranks see these commands of Slurm: {inside}")


def _rank_findings(rank: Probed, shared_dir: Path, resources: Resources) -> Iterator[Finding]:
    who = f"rank {rank.rank} on {rank.name}"
    if not rank.sees_token:
        yield Finding("bad", f"{who} does not see what the login node wrote to {shared_dir}")
    if not rank.links:
        yield Finding("bad", f"{who} cannot make hard links in {shared_dir}: evaluations are"
                             " claimed by them, so that each runs once")  # fmt: skip
    if rank.sum_is_right is None:
        yield Finding("bad", f"{who} could not reach rank 0 at {rank.host}, or failed"
                             f" (interface {rank.interface or 'unknown'})")  # fmt: skip
        return
    if rank.locks is False:
        yield Finding("warning", f"{who}: flock in {shared_dir} keeps no other process out: nothing"
                                 " stops two jobs that train in one run directory")  # fmt: skip
    if not rank.sum_is_right:
        yield Finding("bad", f"{who}: the all-reduce gave a wrong sum")
    if resources.gpus_per_node and not rank.gpus:
        yield Finding(
            "bad", f"{who} sees no GPU, although {resources.gpus_per_node} were requested"
        )
    if rank.gpus and rank.cores < LEAST_CORES:
        yield Finding("warning", f"{who} has {rank.cores} core: data loading will hold up its GPU;"
                                 " set cpus_per_task in the site profile")  # fmt: skip
    yield Finding("ok" if rank.sum_is_right else "bad",
                  f"{who}: {rank.device}, {rank.gpus} GPUs, {rank.cores} cores,"
                  f" interface {rank.interface or 'default'}, all-reduce of {VALUES * 4 / 1e9:.2f}"
                  f" GB over {rank.ranks} ranks in {rank.seconds:.2f} s")  # fmt: skip


def _bandwidth_findings(rank: Probed, nodes: int) -> Iterator[Finding]:
    """Yield whether the all-reduce was as fast as `train plan` assumes of such machines."""
    from dist_train.planning.hardware import NETWORK_GBIT, find_gpu

    gpu, gigabits = find_gpu(rank.gpu), rank.bytes_per_second * 8 / 1e9
    if gpu is None:  # plans are for GPUs that are known
        return
    assumed = gpu.link_bytes * 8 / 1e9
    assumed = min(assumed, NETWORK_GBIT) if nodes > 1 else assumed
    text = f"the all-reduce sent {gigabits:.0f} Gbit/s; `train plan` assumes {assumed:.0f}"
    slow = gigabits < ENOUGH * assumed
    if slow and nodes > 1:
        text += f" (give it --network-gbit {gigabits:.0f}, or set network_interface)"
    yield Finding("warning" if slow else "ok", text)


def node_findings(probe_dir: Path) -> Iterator[Finding]:
    """Yield whether jobs can be requeued, and others submitted, from a node."""
    try:
        node = NODES.read(probe_dir / "node.json")
    except (FileNotFoundError, ValueError) as error:
        yield Finding("bad", f"no node could try Slurm's commands: {error}")
        return
    problems = {
        f"requeue jobs ({node.scontrol}): what was stopped waits for it": node.scontrol,
        f"submit jobs ({node.sbatch}): snapshots wait for their evaluation": node.sbatch,
    }
    for what, problem in problems.items():
        if problem:
            yield Finding("warning", f"call `relaywave slurm reconcile RUN` on a login node, or by"
                                     f" scrontab: {node.name} cannot {what}")  # fmt: skip
    if not any(problems.values()):
        yield Finding("ok", f"{node.name} can requeue and submit jobs")


@dataclass(frozen=True)
class NodeProbeJob:
    """Try on a node, outside of any container, what requeues jobs and submits others.

    Attributes:
        probe_dir: Where the findings go.
    """

    NEEDS_SLURM: ClassVar[bool] = True

    probe_dir: Path

    @property
    def title(self) -> str:
        """What it does, for people."""
        return "try Slurm's commands on a node"

    def finished(self) -> bool:
        """Never: a site may change."""
        return False

    def __call__(self) -> str:
        """Try the commands, and write what is wrong with them."""
        seen = {"name": socket.gethostname(), "scontrol": _problem_of_scontrol(),
                "sbatch": _problem_of_sbatch()}  # fmt: skip
        NODES.write(self.probe_dir / "node.json", seen)
        return "finished"

    def checkpoint(self) -> None:
        """Tell submitit that it is not run again."""
        return


def _problem_of_scontrol() -> str:
    try:
        describe(own_job_id())
    except SlurmError as error:
        return str(error)
    return ""


def _problem_of_sbatch() -> str:
    """Return why a job like this one could not be submitted from here."""
    own = {"partition": "SLURM_JOB_PARTITION", "account": "SLURM_JOB_ACCOUNT"}
    options = [f"#SBATCH --{key}={os.environ[name]}" for key, name in own.items()
               if os.environ.get(name)]  # fmt: skip
    script = "\n".join(["#!/bin/sh", "#SBATCH --time=1", *options, "true\n"])
    try:
        return submission_problem(script, outside_environment())
    except FileNotFoundError:
        return "sbatch is not there"


@dataclass(frozen=True)
class ProbeJob:
    """Inspect a node, and all-reduce with the other ranks.

    Attributes:
        shared_dir: Shared directory; every rank writes its findings there.
        token: What the login node has written to `<shared_dir>/token`.
    """

    shared_dir: Path
    token: str

    @property
    def title(self) -> str:
        """What it does, for people."""
        return "inspect the nodes"

    def finished(self) -> bool:
        """Never: a site may change."""
        return False

    def __call__(self) -> str:
        """Inspect the node of this rank."""
        task = this_task()
        enter_rank(task)
        seen = {"rank": task.rank, "host": task.hosts[0], "name": socket.gethostname(),
                "sees_token": self._sees_token(), "cores": len(os.sched_getaffinity(0)),
                "interface": os.environ.get("GLOO_SOCKET_IFNAME", ""),
                "links": links_work(self.shared_dir / f"link-{task.rank}"),
                "commands": [name for name in COMMANDS if shutil.which(name)]}  # fmt: skip
        PROBES.write(self.shared_dir / f"rank-{task.rank}.json", seen)
        seen |= _together(self.shared_dir / "lock")
        PROBES.write(self.shared_dir / f"rank-{task.rank}.json", seen)
        return "finished"

    def checkpoint(self) -> None:
        """Tell submitit that it is not run again."""
        return

    def _sees_token(self) -> bool:
        try:
            return (self.shared_dir / "token").read_text() == self.token
        except OSError:
            return False


def links_work(path: Path) -> bool:
    """Whether a name can be given to a file by a hard link, and to no second file."""
    try:
        path.touch()
        for _ in range(2):
            os.link(path, path.with_name(f"{path.name}-name"))
    except FileExistsError:
        return path.stat().st_nlink == 2
    except OSError:
        pass
    return False


def _together(lock: Path) -> dict[str, Any]:
    """All-reduce, and try to take a lock that rank 0 holds; returns what was seen."""
    import torch

    from dist_train.runtime.world import init_world

    world = init_world()
    reduced = all_reduce(world)
    held = FileLock(lock) if world.rank == 0 else None
    kept_out = held.take() and held.works if held else True
    world.barrier()  # it is taken
    own = FileLock(lock)
    kept_out = not own.take() and kept_out
    own.release()
    world.barrier()  # all have tried
    if held:
        held.release()
    world.close()
    return {"sum_is_right": reduced.is_right, "device": reduced.device, "gpus": reduced.gpus,
            "seconds": reduced.seconds, "ranks": reduced.ranks, "locks": kept_out,
            "bytes_per_second": reduced.bytes_per_second,
            "gpu": torch.cuda.get_device_name() if reduced.gpus else ""}  # fmt: skip


def _wait(record: JobRecord, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if not queued([record.job_id]):
            return True
        time.sleep(1.0)
    return False


def doctor_command(args: argparse.Namespace) -> None:
    """Check the site."""
    options = submit_options(args)
    examine(
        DoctorRequest(
            shared_dir=args.folder.absolute(),
            submit_probe=not args.no_job,
            patience=args.patience,
            resources=options.resources(minutes=5),
            target=options.target,
        )
    )


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the options of `doctor`."""
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="shared directory to try (default: this one)"
    )
    parser.add_argument("--no-job", action="store_true", help="only ask Slurm, submit nothing")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for the job")
    add_submit_options(parser)
    parser.set_defaults(command=doctor_command)
