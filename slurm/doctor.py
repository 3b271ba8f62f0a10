"""`python -m slurm doctor`: is this site fit for training? Each check is a line: ok, warning, bad.

Some is asked of Slurm; the rest is tried by a job of a minute on the nodes themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.jobs.ranks import enter_rank, this_task
from slurm.jobs.records import JobRecord, write_json
from slurm.resources import Resources
from slurm.site import Site
from slurm.slurm_cli import COMMANDS, SlurmError, have_slurm, queued, run_slurm
from slurm.submit.arguments import Target, add_resources, resources_of, target_of
from slurm.submit.launcher import Submission, submit
from slurm.submit.preflight import partitions

NEEDED_KILL_WAIT = 30
"""Seconds between SIGTERM and SIGKILL in which a preempted run saves its state."""
VALUES = 1 << 24
"""Floats that the all-reduce adds up (64 MiB)."""


@dataclass(frozen=True)
class Finding:
    """The outcome of a check: `ok`, `warning` or `bad`, and what was seen."""

    verdict: str
    text: str


@dataclass(frozen=True)
class ProbeJob:
    """Look around on a node, and add up numbers with all other ranks.

    Attributes:
        folder: Shared folder; every rank writes its findings there.
        token: What the login node has written to `<folder>/token`.
    """

    folder: Path
    token: str

    @property
    def title(self) -> str:
        """What it does, in a few words, for people."""
        return "look around on the nodes"

    def finished(self) -> bool:
        """Never: a site may change."""
        return False

    def __call__(self) -> str:
        """Look around in this rank."""
        task = this_task()
        enter_rank(task)
        seen = {"rank": task.rank, "host": task.hosts[0], "name": socket.gethostname(),
                "sees_token": self._sees_token(), "cores": len(os.sched_getaffinity(0)),
                "interface": os.environ.get("GLOO_SOCKET_IFNAME", "")}  # fmt: skip
        write_json(self.folder / f"rank-{task.rank}.json", seen)
        seen |= _all_reduce()
        write_json(self.folder / f"rank-{task.rank}.json", seen)
        return "finished"

    def checkpoint(self) -> None:
        """Say, for submitit, that it is not run again."""
        return

    def _sees_token(self) -> bool:
        try:
            return (self.folder / "token").read_text() == self.token
        except OSError:
            return False


def _all_reduce() -> dict[str, Any]:
    """Add up a known tensor over all ranks; returns whether it is right, and how fast it was."""
    import torch

    from dist_train.runtime.world import init_world

    world = init_world()
    ones = torch.ones(VALUES, device=world.device)
    world.all_reduce_sum(ones)
    world.barrier()
    began = time.monotonic()
    total = world.all_reduce_sum(ones)
    right = bool((total == world.size).all())
    seconds = time.monotonic() - began
    world.close()
    return {"sum_is_right": right, "device": str(world.device), "seconds": seconds,
            "gpus": torch.cuda.device_count(), "ranks": world.size}  # fmt: skip


def site_findings(site: Site) -> Iterator[Finding]:
    """Yield what Slurm itself says."""
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
    settings = _settings()
    kill_wait = int(settings.get("KillWait", "30").split()[0])
    enough = kill_wait >= NEEDED_KILL_WAIT
    yield Finding("ok" if enough else "warning",
                  f"KillWait is {kill_wait} s: a preempted run has that long to save")  # fmt: skip
    accounting = settings.get("AccountingStorageType", "")
    works = accounting.endswith("slurmdbd")
    yield Finding("ok" if works else "warning",
                  f"accounting is {accounting or 'unknown'}; history needs slurmdbd")  # fmt: skip
    for name in ("JobRequeue", "PreemptMode", "PreemptType", "MaxArraySize"):
        yield Finding("ok", f"{name} is {settings.get(name, 'unknown')}")


def job_findings(folder: Path, resources: Resources) -> Iterator[Finding]:
    """Yield what the ranks of the probe saw."""
    seen = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    if len(seen) < resources.world_size:
        yield Finding("bad", f"{len(seen)} of {resources.world_size} ranks wrote to {folder}:"
                             " is it shared by all nodes? See the logs of the job")  # fmt: skip
    for rank in seen:
        who = f"rank {rank['rank']} on {rank['name']}"
        if not rank["sees_token"]:
            yield Finding("bad", f"{who} does not see what the login node wrote to {folder}")
        if "sum_is_right" not in rank:
            yield Finding("bad", f"{who} could not reach rank 0 at {rank['host']}, or failed"
                                 f" (interface {rank['interface'] or 'unknown'})")  # fmt: skip
            continue
        wrong = not rank["sum_is_right"]
        if wrong:
            yield Finding("bad", f"{who}: the all-reduce gave a wrong sum")
        if resources.gpus_per_node and not rank["gpus"]:
            yield Finding(
                "bad", f"{who} sees no GPU, although {resources.gpus_per_node} were asked"
            )
        size = VALUES * 4 / 1e9
        yield Finding("bad" if wrong else "ok",
                      f"{who}: {rank['device']}, {rank['gpus']} GPUs, {rank['cores']} cores,"
                      f" interface {rank['interface'] or 'default'}, all-reduce of {size:.2f} GB"
                      f" over {rank['ranks']} ranks in {rank['seconds']:.2f} s")  # fmt: skip


def doctor_command(args: argparse.Namespace) -> None:
    """Check the site and print the findings.

    Raises:
        SlurmError: A finding is bad.
    """
    target, folder = target_of(args), args.folder.absolute()
    resources = resources_of(args, minutes=5)
    if target.dry_run:
        target.launch(probe_submission(folder, "TOKEN", resources, target.site))
        return
    found = list(site_findings(target.site))
    if not args.no_job and have_slurm() and target.cluster == "slurm":
        target.check(resources, folder)
        found += _probe(folder, resources, target, args.patience)
    for finding in found:
        print(f"{finding.verdict:8} {finding.text}")
    bad = [finding for finding in found if finding.verdict == "bad"]
    if bad:
        raise SlurmError(f"{len(bad)} of {len(found)} checks found something bad")


def probe_submission(folder: Path, token: str, resources: Resources, site: Site) -> Submission:
    """Return the job that looks around on the nodes and writes to `doctor-<token>/` in a folder."""
    place = folder / f"doctor-{token}"
    return Submission(
        kind="doctor", name="doctor", folder=place, jobs=[ProbeJob(place, token)],
        resources=resources, site=site,
    )  # fmt: skip


def _probe(
    folder: Path, resources: Resources, target: Target, patience: float
) -> Iterator[Finding]:
    token = secrets.token_hex(8)
    submission = probe_submission(folder, token, resources, target.site)
    submission.folder.mkdir(parents=True)
    (submission.folder / "token").write_text(token)
    record = submit(submission)
    if _wait(record, patience):
        yield from job_findings(submission.folder, resources)
        return
    job = queued([record.job_id]).get(record.job_id)
    run_slurm(["scancel", record.job_id])
    why = f"{job.state}, {job.reason}" if job else "gone"
    yield Finding("bad", f"the job did not end in {patience:.0f} s ({why}); logs: {record.logs}")


def _wait(record: JobRecord, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if not queued([record.job_id]):
            return True
        time.sleep(1.0)
    return False


def _settings() -> dict[str, str]:
    """Return slurmctld's configuration."""
    lines = run_slurm(["scontrol", "show", "config"]).splitlines()
    pairs = (line.partition("=") for line in lines)
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the options of `doctor`."""
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="shared folder to try (default: this one)"
    )
    parser.add_argument("--no-job", action="store_true", help="only ask Slurm, submit nothing")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for the job")
    add_resources(parser)
    parser.set_defaults(command=doctor_command)
