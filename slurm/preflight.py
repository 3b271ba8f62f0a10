"""What is refused before anything is queued: each check raises one clear line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.config_io import ConfigError, read_config
from slurm.cluster import Site
from slurm.folder import JobFolder
from slurm.queue import (
    SlurmError,
    have_slurm,
    nodes_are_away,
    queued,
    run_slurm,
    submission_problem,
)
from slurm.resources import Resources, parse_minutes
from slurm.speed import Speed, check_time, known_speed

if TYPE_CHECKING:
    from dist_train.config import RunConfig

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
    """Have Slurm itself judge the batch script. Raises SlurmError if it would refuse it.

    `sbatch --test-only` also refuses what has to wait for nodes that are down or reserved, which
    sbatch takes: while there are such nodes, only sbatch can say what is not to be had for ever.
    """
    problem = submission_problem(script)
    if problem and not ("not available" in problem and nodes_are_away()):
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


def check_run(
    config: RunConfig, run_dir: Path, resources: Resources, allow_changes: bool = False
) -> None:
    """Check that ranks can share the batch, and that the folder is not of another run.

    Raises:
        ConfigError: They cannot, or it is.
    """
    from dist_train.loop import plan_batches
    from dist_train.precision import settle_precision
    from dist_train.run_folder import HARMLESS
    from models.config_io import differences, to_json

    batch_multiple = config.objective.build().batch_multiple
    plan_batches(config, batch_multiple, resources.world_size)
    path = run_dir / "config.json"
    if not path.exists():
        return
    begun = read_config(type(config), path)
    if config.precision == "auto" and begun.precision != "auto":  # settled where it was begun
        config = settle_precision(replace(config, precision=begun.precision), bfloat16=False)
    changed = differences(to_json(begun), to_json(config))
    if changed and not (allow_changes and changed.keys() <= HARMLESS):
        listing = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items())
        raise ConfigError(f"{run_dir} is a run of other settings ({listing}); use another folder")


def check_data(config: RunConfig, *, later: bool) -> list[Path]:
    """Check that the packed sets are there and fit; returns their folders, which nodes must see.

    Args:
        config: The run; sets on servers are not looked at.
        later: Whether the sets are only where and when the job runs; then nothing is checked.

    Raises:
        ValueError: A set is missing or damaged, or the settings do not fit it.
    """
    from data_pipelines.datasets import open_data
    from data_pipelines.remote import is_remote

    paths = [config.data.path, *(other.path for other in config.data.mix)]
    if later or config.data.backend == "synthetic" or any(map(is_remote, paths)):
        return []
    open_data(config.data, config.seed).samples.close()
    return [Path(path) for path in paths]


def check_speed(
    config: RunConfig, run_dir: Path, resources: Resources, site: Site, expected: float | None
) -> None:
    """Check the time limit against the speed that is expected, or that runs have measured."""
    speed = known_speed(run_dir, config.recipe, resources.world_size)
    if expected is not None:
        speed = Speed(expected, "by --images-per-second")
    check_time(resources, site, config.checkpoint_images, speed)


def check_idle(run_dir: Path) -> None:
    """Check that no job of the run is in the queue. Raises SlurmError if one is."""
    records = JobFolder(run_dir).records()
    ids = [r.job_id for r in records if r.cluster == "slurm" and r.kind == "train"]
    for job_id, job in (queued(ids) if ids else {}).items():
        raise SlurmError(
            f"{run_dir.name}: job {job_id} is {job.state.lower()} already; wait for it, or"
            f" `python -m slurm cancel {run_dir}` first"
        )
