"""On which hosts a job crashed, and which of them its next start does without."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from models.command_line import EXIT_LOST, EXIT_PREEMPTED
from slurm.slurm_cli import SlurmError, describe, host_names, partition_hosts, run_slurm

UNHEALTHY = "unhealthy"
"""Event: a node was found unfit before the ranks started (health.py), its `host`, and `why`."""
EXCLUDE = "exclude"
"""Event: hosts that the next starts of a job do without, `hosts`."""
WINDOW = 24 * 3600.0
"""Seconds in which crashes of a host are counted."""


def crashed_hosts(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the hosts on which a start crashed; none if all of several did: then it is no host's.

    Those that were found unfit; else those of ranks that failed; else those of ranks that ended
    without a note, as SIGKILL ends them.

    Args:
        notes: The notes of the start.
    """
    start = next((note for note in notes if note["event"] in ("start", UNHEALTHY)), {})
    everywhere = start.get("hosts", [])
    exits = {note["rank"]: note for note in notes if note["event"] == "exit"}
    unfit = {note.get("host", "") for note in notes if note["event"] == UNHEALTHY}
    lost = (0, EXIT_PREEMPTED, EXIT_LOST)  # these ended because another had
    ranks = start.get("ranks", 0)
    failed = {
        note.get("host") or _host_of(rank, ranks, everywhere)  # notes of older code have none
        for rank, note in exits.items()
        if note["code"] not in lost
    }
    killed = {_host_of(rank, ranks, everywhere) for rank in range(ranks) if rank not in exits}
    found = (unfit or failed or killed) - {""}
    return [] if len(found) > 1 and found == set(everywhere) else sorted(found)


def exclude(job_id: str, unfit: Sequence[str]) -> list[str]:
    """Let the next starts of a pending job do without hosts; returns those that were not before.

    Raises:
        SlurmError: Slurm does not answer, or the job could not start without them.
    """
    job = describe(job_id)
    known = _hosts_in(job.get("ExcNodeList", ""))
    wanted = known | set(unfit)
    if required := _hosts_in(job.get("ReqNodeList", "")) & set(unfit):
        raise SlurmError(f"the job insists on {', '.join(sorted(required))} (--nodelist)")
    nodes = int(job["NumNodes"].partition("-")[0])
    if len(partition_hosts(job["Partition"]) - wanted) < nodes:
        raise SlurmError(f"partition {job['Partition']} has no {nodes} other nodes")
    if wanted != known:
        names = ",".join(sorted(wanted))
        run_slurm(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={names}"])
    return sorted(wanted - known)


def _hosts_in(text: str) -> set[str]:
    """Return the hosts of a list in what scontrol shows of a job."""
    return host_names(text) if text not in ("", "(null)") else set()


def _host_of(rank: int, ranks: int, hosts: Sequence[str]) -> str:
    """Return the host of a rank: Slurm fills one node after the other, with equally many each."""
    return hosts[rank * len(hosts) // ranks] if hosts else ""


def crashes_by_host(attempts: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Return how often a job crashed on each host within the last day, by its notes."""
    recent = time.time() - WINDOW
    return Counter(
        host
        for note in attempts
        if note["event"] == "crash" and note["time"] > recent
        for host in note.get("hosts", ())
    )


def unfit_hosts(attempts: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """Return the hosts that a job's next start is to do without, by the notes of the last day.

    Args:
        attempts: The job's notes.
        most: With so many crashes a host is excluded; 0 never. One that was found unfit before the
            ranks started, and crashed its start by that, is excluded at once.
    """
    if not most:
        return []
    found_unfit = {note.get("host") for note in attempts if note["event"] == UNHEALTHY}
    crashes = crashes_by_host(attempts)
    return sorted(h for h, count in crashes.items() if count >= most or h in found_unfit)


def excluded_hosts(attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the hosts that the starts of a job do without by now, by its notes."""
    return sorted({host for note in attempts if note["event"] == EXCLUDE
                   for host in note.get("hosts", ())})  # fmt: skip
