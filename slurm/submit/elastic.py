"""Elastic jobs: continue on fewer nodes when the requested number is unavailable.

These are runs submitted by `train --min-nodes M`. Each call of `reconcile` changes a pending job's
request in place, so that its id, its dependencies and its place in the queue stay. A run resumes on
any number of ranks. When a job that has run on fewer nodes is back in the queue, and more nodes are
idle, its request grows again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.config_io import ConfigError
from slurm.jobs.records import JobDir, JobRecord
from slurm.resources import Resources
from slurm.slurm_cli import QueuedJob, describe, idle_nodes, run_slurm

if TYPE_CHECKING:
    from dist_train.config import RunConfig

WAITS_FOR_NODES = frozenset({"Resources", "Priority", "ReqNodeNotAvail", "BadConstraints"})
"""Reasons for which a job is pending that fewer nodes may resolve."""


def node_counts(config: RunConfig, resources: Resources, min_nodes: int) -> tuple[int, ...]:
    """Return the numbers of nodes below the requested one that the run can use, largest first.

    Raises:
        ConfigError: `min_nodes` is not below the requested number, or no such number divides the
            batch.
    """
    if not 0 < min_nodes < resources.nodes:
        raise ConfigError(f"--min-nodes={min_nodes} must be positive and below {resources.nodes}")
    if resources.fewest_nodes:
        raise ConfigError(
            f"--min-nodes={min_nodes}: --nodes={resources.fewest_nodes}-{resources.nodes} lets"
            " Slurm choose at the start already; leave one out"
        )
    below = range(resources.nodes - 1, min_nodes - 1, -1)
    fit = [nodes for nodes in below if not batch_problem(config, resources, nodes)]
    if not fit:
        raise ConfigError(
            f"--min-nodes={min_nodes}: no number of nodes below {resources.nodes} divides"
            f" global_batch_size={config.global_batch_size}"
        )
    return tuple(fit)


def check_node_range(config: RunConfig, resources: Resources) -> None:
    """Check that a run can use every number of nodes that Slurm may choose.

    Raises:
        ConfigError: It cannot use one of them.
    """
    for nodes in range(resources.fewest, resources.nodes):
        if problem := batch_problem(config, resources, nodes):
            raise ConfigError(
                f"--nodes={resources.fewest_nodes}-{resources.nodes}: on {nodes} nodes {problem};"
                " --min-nodes skips such numbers"
            )


def batch_problem(config: RunConfig, resources: Resources, nodes: int) -> str:
    """Return why a run's batch does not divide among the ranks of so many nodes, "" if it does."""
    from dist_train.planning.checks import plan_batches

    multiple = config.objective.build().batch_multiple
    ranks = nodes * resources.tasks_per_node
    try:
        plan_batches(config.global_batch_size, config.micro_batch_size, multiple, ranks)
    except ConfigError as error:
        return str(error)
    return ""


def resize_waiting(run_dir: Path, queue: Mapping[str, QueuedJob]) -> list[str]:
    """Change the requests of a run's pending jobs where it is due; returns a line for each."""
    jobs = JobDir(run_dir)
    messages = []
    for record in jobs.records():
        job = record.queued(queue).get(record.job_id)
        if job is None or job.state != "PENDING" or not record.resources.fallback_nodes:
            continue
        shown = describe(record.job_id)
        now = int(shown["NumNodes"].partition("-")[0])
        nodes = _more_nodes(jobs, record, shown["Partition"], now)
        if not nodes and job.reason.strip("()") in WAITS_FOR_NODES:
            nodes = _fewer_nodes(jobs, record, shown["EligibleTime"], now)
        if nodes:
            size = [f"NumNodes={nodes}", f"NumTasks={nodes * record.resources.tasks_per_node}"]
            run_slurm(["scontrol", "update", f"JobId={record.job_id}", *size])
            jobs.note(record.job_id, "resize", nodes=nodes)
            only = " only" if nodes < now else " again"
            messages.append(f"job {record.job_id} now waits for {nodes} nodes{only}")
    return messages


def _fewer_nodes(jobs: JobDir, record: JobRecord, eligible: str, now: int) -> int:
    """Return the next lower number of nodes if the present one was pending for long, else 0."""
    lower = [nodes for nodes in record.resources.fallback_nodes if nodes < now]
    since = time.mktime(time.strptime(eligible, "%Y-%m-%dT%H:%M:%S"))
    resized = [a["time"] for a in jobs.attempts(record.job_id) if a["event"] == "resize"]
    waited = time.time() - max([since, *resized])
    return lower[0] if lower and waited >= record.resources.shrink_minutes * 60 else 0


def _more_nodes(jobs: JobDir, record: JobRecord, partition: str, now: int) -> int:
    """Return the largest useful number of nodes that are idle if it is above the present one.

    Only once after each start: otherwise idle nodes that the job cannot get would hold it forever.
    """
    events = [a["event"] for a in jobs.attempts(record.job_id)]
    started_last = "start" in events and "resize" not in events[_last(events, "start") :]
    useful = (record.resources.nodes, *record.resources.fallback_nodes)
    if not started_last or now >= record.resources.nodes:
        return 0
    idle = idle_nodes(partition)
    return max((nodes for nodes in useful if now < nodes <= idle), default=0)


def _last(events: Sequence[str], event: str) -> int:
    return len(events) - 1 - events[::-1].index(event)
