"""What is refused before anything is queued: each check raises one clear line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.cluster import Site
from slurm.queue import SlurmError, have_slurm, run_slurm, submission_problem
from slurm.resources import Resources, parse_minutes

LOCAL_ROOTS = ("/tmp", "/var/tmp", "/dev/shm", "/run")


@dataclass(frozen=True)
class Partition:
    """A partition: its name, whether it is the default, its nodes, and its time limit."""

    name: str
    default: bool
    nodes: int
    max_minutes: int | None


def check_request(resources: Resources, site: Site, paths: Sequence[Path]) -> None:
    """Check that Slurm is here and has what is asked for, and that nodes see the paths.

    Raises:
        SlurmError: Something is not to be had; names what is.
    """
    if not have_slurm():
        raise SlurmError(
            "there is no Slurm on this machine (sbatch and srun are not found): log in to the"
            " cluster, or add --cluster local"
        )
    _check_partition(resources, resources.partition or site.partition)
    _check_name("account", "account", resources.account or site.account)
    _check_name("qos", "name", resources.qos or site.qos)
    for path in paths:
        check_shared(path, site)


def check_script(script: str) -> None:
    """Have Slurm itself judge the batch script. Raises SlurmError if it would refuse it."""
    problem = submission_problem(script)
    if problem:
        raise SlurmError(f"Slurm would refuse this job: {problem}")


def partitions() -> list[Partition]:
    """Return the partitions of the cluster."""
    found = []
    for line in run_slurm(["sinfo", "--noheader", "--format=%P|%D|%l"]).splitlines():
        name, nodes, limit = line.split("|")
        minutes = None if limit in ("infinite", "n/a") else parse_minutes(limit)
        found.append(Partition(name.rstrip("*"), name.endswith("*"), int(nodes), minutes))
    return _merged(found)


def _merged(found: Sequence[Partition]) -> list[Partition]:
    """Sinfo has a line for each state of nodes: add their counts up."""
    names = dict.fromkeys(partition.name for partition in found)
    rows = {name: [p for p in found if p.name == name] for name in names}
    return [
        Partition(name, row[0].default, sum(p.nodes for p in row), row[0].max_minutes)
        for name, row in rows.items()
    ]


def _check_partition(resources: Resources, wanted: str) -> None:
    known = partitions()
    for name in wanted.split(",") if wanted else [p.name for p in known if p.default]:
        match = [partition for partition in known if partition.name == name]
        if not match:
            names = ", ".join(partition.name for partition in known)
            raise SlurmError(f"there is no partition {name!r}; known are {names}")
        partition = match[0]
        if resources.nodes > partition.nodes:
            raise SlurmError(
                f"--nodes={resources.nodes}: partition {name} has {partition.nodes} nodes"
            )
        if partition.max_minutes is not None and resources.minutes > partition.max_minutes:
            raise SlurmError(
                f"--time={resources.minutes} minutes: partition {name} allows"
                f" {partition.max_minutes} minutes"
            )


def _check_name(entity: str, field: str, wanted: str) -> None:
    """Check that accounting knows an account or QOS."""
    if not wanted:
        return
    try:
        answer = run_slurm(["sacctmgr", "-nP", "show", entity, f"format={field}"])
    except SlurmError:  # no accounting here: sbatch itself will say
        return
    known = sorted({line for line in answer.splitlines() if line})
    if wanted not in known:
        names = ", ".join(known) or "none"
        raise SlurmError(f"there is no {entity} {wanted!r}; known are {names}")


def check_shared(path: Path, site: Site) -> None:
    """Check that compute nodes see a folder, as far as its name and the site profile tell.

    `python -m slurm doctor` tries it on nodes. Raises SlurmError if they cannot.
    """
    real = path.absolute()
    if site.shared:
        if not any(real.is_relative_to(root) for root in site.shared):
            raise SlurmError(
                f"compute nodes cannot see {real}: by the site profile they share"
                f" {', '.join(site.shared)}"
            )
        return
    for root in LOCAL_ROOTS:
        if real.is_relative_to(root):
            raise SlurmError(
                f"compute nodes cannot see {real}: {root} is local to each machine; choose a"
                " shared folder, or name it under `shared` in the site profile if it is one"
            )


def check_time(
    resources: Resources, site: Site, checkpoint_images: int, images_per_second: float | None
) -> None:
    """Check that a start of the job gets at least one checkpoint further.

    Args:
        resources: The request.
        site: The site profile.
        checkpoint_images: Interval of checkpoints in images.
        images_per_second: Measured or expected speed; None if nothing is known.

    Raises:
        ValueError: The time limit is too short.
    """
    seconds = resources.minutes * 60 - site.signal_seconds
    if seconds <= 0:
        raise ValueError(
            f"--time={resources.minutes} minutes: the site's signal_seconds={site.signal_seconds}"
            " before the limit leave no time to train"
        )
    if images_per_second and checkpoint_images / images_per_second > seconds:
        needed = checkpoint_images / images_per_second + site.signal_seconds
        raise ValueError(
            f"--time={resources.minutes} minutes is below one checkpoint interval:"
            f" {checkpoint_images:,} images at {images_per_second:.4g} images/s and the margin"
            f" before the limit take {needed / 60:.0f} minutes; ask for more time, or lower"
            " checkpoint_images"
        )
