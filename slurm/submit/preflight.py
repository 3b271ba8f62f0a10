"""What is checked before anything is queued: a run, its time limit, and the request to Slurm.

Every check raises an error of one line that says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.command_line import say
from models.config_io import ConfigError
from slurm.jobs.interpreter import outside_environment
from slurm.jobs.records import JobDir
from slurm.jobs.throughput import Throughput, check_time, known_throughput
from slurm.resources import Resources, parse_minutes, replaces
from slurm.site import Site
from slurm.slurm_cli import (
    SlurmError,
    have_slurm,
    nodes_are_unavailable,
    queued,
    run_slurm,
    submission_problem,
)

if TYPE_CHECKING:
    from dist_train.config import RunConfig

GPUS = re.compile(r"\bgpu:(?:([^:,()]+):)?(\d+)")
"""GPUs of a node as sinfo lists them: their type, if they have one, and their number."""
LOCAL_ROOTS = ("/tmp", "/var/tmp", "/dev/shm", "/run")


@dataclass(frozen=True, kw_only=True)
class RunChecks:
    """How a run is checked at submission.

    Attributes:
        allow_changes: Whether harmless settings may differ from those that it was started with.
        correct: Whether settings of a run that has not made its first step may be corrected.
        data_later: Whether its sets are only on the nodes' own disks, or made by a job that it
            waits for: then they are not checked.
        images_per_second: Expected throughput; None takes what was measured.
    """

    allow_changes: bool = False
    correct: bool = False
    data_later: bool = False
    images_per_second: float | None = None


def check_run(
    config: RunConfig, run_dir: Path, resources: Resources, site: Site, checks: RunChecks
) -> list[Path]:
    """Check all that the ranks of a run would reject before their first step.

    Args:
        config: The run's configuration.
        run_dir: The run directory, which may not exist yet.
        resources: The request, which sets the number of ranks.
        site: The site profile; inside a container the data backend cannot be checked here.
        checks: What is allowed to differ or to be missing.

    Returns:
        The directories of local sets, which nodes must see.

    Raises:
        ValueError: They would reject it.
    """
    from data_pipelines.backends.build import import_backend
    from data_pipelines.remote_files import Unreachable, is_remote
    from dist_train import dry_run
    from dist_train.checkpoint.format import CheckpointError
    from dist_train.runtime.run_dir import validate_config

    validate_config(run_dir, config, checks.allow_changes, correct=checks.correct)
    if not site.container.image:
        import_backend(config.data.backend)
    try:
        if warning := dry_run.check_run(
            config, run_dir, resources.world_size, data_later=checks.data_later
        ):
            say(warning, "warning")
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    except Unreachable as error:
        raise ConfigError(f"{error}; if nodes can read it, add --data-on-nodes") from None
    paths = [config.data.path, *(other.path for other in config.data.mix)]
    if checks.data_later or config.data.backend == "synthetic":
        return []
    return [Path(path) for path in paths if path and not is_remote(path)]


def check_time_limit(
    config: RunConfig,
    run_dir: Path,
    resources: Resources,
    site: Site,
    images_per_second: float | None = None,
) -> str:
    """Check the time limit against the expected throughput, or else what runs have measured.

    Returns:
        A note for the user if no throughput is known, "" otherwise.

    Raises:
        ValueError: The time limit is below one checkpoint interval.
    """
    throughput = known_throughput(run_dir, config.recipe, resources.world_size)
    if images_per_second is not None:
        throughput = Throughput(images_per_second, "by --images-per-second")
    interval = config.checkpoint.every_images
    seconds = check_time(resources, site, interval, throughput)
    if throughput is not None:
        return ""
    return (
        f"the time limit was not checked, as no run of {config.recipe} has been timed in"
        f" {run_dir.parent}: {interval:,} images to each checkpoint in"
        f" {seconds / 60:.0f} minutes need {interval / seconds:.3g} images/s;"
        " set --images-per-second to what you expect;"
        f" `relaywave train plan {config.recipe}` estimates it"
    )


def check_idle(run_dir: Path) -> None:
    """Check that no process trains a run, and no job of it is queued. Raises SlurmError."""
    from dist_train.runtime.run_dir import RunLock

    jobs = JobDir(run_dir)
    records = [r for r in jobs.records() if r.cluster == "slurm" and r.kind == "train"]
    damaged = jobs.damaged() if have_slurm() else []  # whatever they are
    ids = [*(record.job_id for record in records), *damaged]
    queue = queued(ids) if ids else {}
    unknown = {job_id: job for job_id, job in queue.items() if job_id.split("_")[0] in damaged}
    own = {job_id: job for record in records for job_id, job in record.queued(queue).items()}
    for job_id, job in (own | unknown).items():
        raise SlurmError(
            f"{run_dir.name}: job {job_id} is {job.state.lower()} already; wait for it, or"
            f" `relaywave slurm cancel {run_dir}` first"
        )
    if owner := RunLock.owner(run_dir):
        raise SlurmError(
            f"{run_dir} is in use by {owner}; stop it, or choose another run directory"
        )


def check_request(resources: Resources, site: Site, paths: Sequence[Path]) -> None:
    """Check that Slurm is here and has what is asked for, and that nodes see the paths.

    Raises:
        SlurmError: Something does not exist or is above a limit; names what does, or the limit.
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
    """Have Slurm itself validate the batch script; raises SlurmError if it would reject it.

    `sbatch --test-only` also rejects what has to wait for nodes that are down or reserved, which
    sbatch accepts: while there are such nodes, only sbatch can tell which requests can never be
    satisfied.
    """
    problem = submission_problem(script, outside_environment())
    if problem and not ("not available" in problem and nodes_are_unavailable()):
        raise SlurmError(f"Slurm would reject this job: {problem}")


def with_cores(resources: Resources, site: Site) -> Resources:
    """Return a request whose ranks share the cores of their node's GPUs, unless it says how many.

    Slurm's own default is one core, which data loading on a GPU outgrows at once.
    """
    options = resources.options(site)
    said = {replaces(key, text) or key for key, text in options.items()}
    if not resources.gpus_per_node or resources.cpus_per_task or site.cpus_per_task:
        return resources
    if said & {"cpus_per_task", "cpus-per-gpu"} or not have_slurm():
        return resources
    per_gpu = cores_per_gpu(resources.partition or site.partition, resources.gpu_type)
    cores = per_gpu * resources.gpus_per_node // resources.tasks_per_node
    if cores <= 1:
        say("each rank gets one core: set --cpus-per-task, or cpus_per_task in the site profile",
            "warning")  # fmt: skip
        return resources
    return replace(resources, cpus_per_task=cores)


def cores_per_gpu(partition: str, gpu_type: str = "") -> int:
    """Return the cores of a partition's nodes for each of their GPUs, 0 if that is unknown.

    Args:
        partition: Names of partitions, with commas; "" is the default one.
        gpu_type: The type of GPUs that counts, as Slurm calls it; "" is any.
    """
    wanted = partition or ",".join(p.name for p in partitions() if p.default)
    command = ["sinfo", "--noheader", "--Node", f"--partition={wanted}", "--format=%c|%G"]
    shares = []
    try:
        lines = set(run_slurm(command).split())
    except SlurmError:  # what is wrong with the partition is said by its own check
        return 0
    for line in lines:
        cores, _, gres = line.partition("|")
        gpus = sum(int(count) for kind, count in GPUS.findall(gres) if gpu_type in ("", kind))
        if gpus and cores.isdigit():
            shares.append(int(cores) // gpus)
    return min(shares, default=0)


@dataclass(frozen=True)
class Partition:
    """A partition: its name, whether it is the default, its nodes, and its time limit."""

    name: str
    default: bool
    nodes: int
    max_minutes: int | None


def partitions() -> list[Partition]:
    """Return the partitions of the cluster."""
    found = []
    for line in run_slurm(["sinfo", "--noheader", "--format=%P|%D|%l"]).splitlines():
        name, nodes, limit = line.split("|")
        minutes = None if limit in ("infinite", "n/a") else parse_minutes(limit)
        found.append(Partition(name.rstrip("*"), name.endswith("*"), int(nodes), minutes))
    return _merged(found)


def _merged(found: Sequence[Partition]) -> list[Partition]:
    """Add up the counts of a partition's lines: sinfo has one for each state of nodes."""
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
        if resources.fewest > partition.nodes:
            raise SlurmError(
                f"--nodes={resources.fewest}: partition {name} has {partition.nodes} nodes"
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
    except SlurmError:  # no accounting here: sbatch itself will tell
        return
    known = sorted({line for line in answer.splitlines() if line})
    if wanted not in known:
        names = ", ".join(known) or "none"
        raise SlurmError(f"there is no {entity} {wanted!r}; known are {names}")


def check_shared(path: Path, site: Site) -> None:
    """Check that compute nodes see a directory, as far as its name and the site profile tell.

    `relaywave slurm doctor` tries it on the nodes. Raises SlurmError if they cannot.
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
                " shared directory, or list it under `shared` in the site profile if it is one"
            )
