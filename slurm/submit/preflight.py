"""What is refused before anything is queued: each check raises one clear line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.config_io import ConfigError
from slurm.jobs.records import JobFolder
from slurm.jobs.throughput import Speed, check_time, known_speed
from slurm.resources import Resources, parse_minutes
from slurm.site import Site
from slurm.slurm_cli import (
    SlurmError,
    have_slurm,
    nodes_are_away,
    queued,
    run_slurm,
    submission_problem,
)

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
    config: RunConfig,
    run_dir: Path,
    resources: Resources,
    site: Site,
    *,
    allow_changes: bool = False,
    correct: bool = False,
    data_later: bool = False,
) -> list[Path]:
    """Judge a run as its ranks will before their first step, by the same functions.

    Args:
        config: The resolved configuration.
        run_dir: The run folder, which may exist.
        resources: What the run asks for.
        site: Its container has packages of its own.
        allow_changes: Whether harmless settings may differ from those that the run began with.
        correct: Whether settings may be put right of a run that has not made its first step.
        data_later: Whether sets are only where and when the job runs; then they are not judged.

    Returns:
        The folders of local sets, which nodes must see.

    Raises:
        ValueError: It would be refused.
    """
    from data_pipelines.backends.build import import_backend
    from data_pipelines.packed.remote import Unreachable, is_remote
    from dist_train import build
    from dist_train.checkpoint.format import CheckpointError
    from dist_train.runtime.run_dir import judge_config

    judge_config(run_dir, config, allow_changes, correct=correct)
    if not site.container.image:
        import_backend(config.data.backend)
    try:
        build.check_run(config, run_dir, resources.world_size, data_later=data_later)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    except Unreachable as error:
        raise ConfigError(f"{error}; if nodes can read it, add --data-on-nodes") from None
    paths = [config.data.path, *(other.path for other in config.data.mix)]
    if data_later or config.data.backend == "synthetic":
        return []
    return [Path(path) for path in paths if not is_remote(path)]


def check_speed(
    config: RunConfig, run_dir: Path, resources: Resources, site: Site, expected: float | None
) -> str:
    """Check the time limit against the speed that is expected, or that runs have measured.

    Returns:
        What the user is to be told if no speed is known, "" otherwise.

    Raises:
        ValueError: The time limit is below one checkpoint interval.
    """
    speed = known_speed(run_dir, config.recipe, resources.world_size)
    if expected is not None:
        speed = Speed(expected, "by --images-per-second")
    seconds = check_time(resources, site, config.checkpoint_images, speed)
    if speed is not None:
        return ""
    return (
        f"no run of {config.recipe} has been timed in {run_dir} or beside it, so the time limit"
        f" was not judged: {config.checkpoint_images:,} images to each checkpoint in"
        f" {seconds / 60:.0f} minutes need {config.checkpoint_images / seconds:.3g} images/s;"
        " --images-per-second says what you expect,"
        f" `python -m dist_train plan {config.recipe}` estimates it"
    )


def check_idle(run_dir: Path) -> None:
    """Check that nobody trains the run, and no job of it is queued. Raises SlurmError otherwise."""
    from dist_train.runtime.run_dir import RunLock

    records = JobFolder(run_dir).records()
    ids = [r.job_id for r in records if r.cluster == "slurm" and r.kind == "train"]
    for job_id, job in (queued(ids) if ids else {}).items():
        raise SlurmError(
            f"{run_dir.name}: job {job_id} is {job.state.lower()} already; wait for it, or"
            f" `python -m slurm cancel {run_dir}` first"
        )
    if owner := RunLock.owner(run_dir):
        raise SlurmError(f"{run_dir} is in use by {owner}; stop it, or choose another run folder")
