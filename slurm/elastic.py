"""Going on with fewer nodes when the wanted number is not to be had: `train --min-nodes M`.

A pending job's request is lowered in place, so its id, its dependencies and its place in the queue
stay. It is done by whoever calls `reconcile`. The run takes up its state on any number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from models.config_io import ConfigError
from slurm.folder import JobFolder, JobRecord
from slurm.queue import QueuedJob, describe, run_slurm
from slurm.resources import Resources

if TYPE_CHECKING:
    from dist_train.config import RunConfig

WAITS_FOR_NODES = frozenset({"Resources", "Priority", "ReqNodeNotAvail", "BadConstraints"})
"""Reasons of a pending job that fewer nodes may cure."""


def node_counts(config: RunConfig, resources: Resources, min_nodes: int) -> tuple[int, ...]:
    """Return the numbers of nodes below the wanted one that the run can use, largest first.

    Raises:
        ConfigError: `min_nodes` is not below the wanted number, or no such number divides the
            batch.
    """
    from dist_train.loop import plan_batches

    if not 0 < min_nodes < resources.nodes:
        raise ConfigError(f"--min-nodes={min_nodes} must be positive and below {resources.nodes}")
    batch_multiple = config.objective.build().batch_multiple
    fit = []
    for nodes in range(resources.nodes - 1, min_nodes - 1, -1):
        try:
            plan_batches(config, batch_multiple, nodes * resources.tasks_per_node)
        except ConfigError:
            continue
        fit.append(nodes)
    if not fit:
        raise ConfigError(
            f"--min-nodes={min_nodes}: no number of nodes below {resources.nodes} divides"
            f" global_batch_size={config.global_batch_size}"
        )
    return tuple(fit)


def shrink_waiting(run_dir: Path, queue: Mapping[str, QueuedJob]) -> list[str]:
    """Lower the requests of a run's jobs that have waited too long; returns what was done."""
    folder = JobFolder(run_dir)
    told = []
    for record in folder.records():
        job = queue.get(record.job_id)
        if job and job.state == "PENDING" and job.reason.strip("()") in WAITS_FOR_NODES:
            nodes = _lower(folder, record)
            if nodes:
                told.append(f"job {record.job_id} now waits for {nodes} nodes only")
    return told


def _lower(folder: JobFolder, record: JobRecord) -> int:
    """Lower one job's request if it is time; returns the new number of nodes, or 0."""
    if not record.resources.fallback_nodes:
        return 0
    shown = describe(record.job_id)
    now = int(shown["NumNodes"].partition("-")[0])
    lower = [nodes for nodes in record.resources.fallback_nodes if nodes < now]
    since = time.mktime(time.strptime(shown["EligibleTime"], "%Y-%m-%dT%H:%M:%S"))
    shrunk = [a["time"] for a in folder.attempts(record.job_id) if a["event"] == "shrink"]
    waited = time.time() - max([since, *shrunk])
    if not lower or waited < record.resources.shrink_minutes * 60:
        return 0
    size = [f"NumNodes={lower[0]}", f"NumTasks={lower[0] * record.resources.tasks_per_node}"]
    run_slurm(["scontrol", "update", f"JobId={record.job_id}", *size])
    folder.note(record.job_id, "shrink", nodes=lower[0])
    return lower[0]
