"""The site profile (TOML): facts of a cluster that hold for every job, kept out of recipes.

    partition = "gpu"
    account = "diffusion"
    shared = ["/project", "/home"]       # file systems that compute nodes see
    setup = ["module load cuda/12.4"] # lines of the batch script, before the job
    network_interface = "ib0"

It is `--site FILE`, else $RELAYWAVE_SITE, else relaywave/site.toml in $XDG_CONFIG_HOME or
~/.config; without any of them Slurm's own defaults hold. Every key is an attribute of `Site`; an
unknown one is an error.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from models.safe_files.user_toml import read_toml, user_file
from slurm.sbatch_keys import KEY, check_key

VARIABLE_OF_THE_FILE = "RELAYWAVE_SITE"
PER_JOB = frozenset(("nodes", "ntasks-per-node", "gpus-per-node", "gpus-per-task", "time",
                     "time-min", "signal", "dependency", "begin"))  # fmt: skip
OF_SRUN = frozenset(("output", "error", "input", "unbuffered", "cpus-per-task", "cpu-bind", "nodes",
                     "ntasks", "ntasks-per-node", "multi-prog"))  # fmt: skip
"""Options of srun that jobs depend on, or that another setting of the site profile sets."""
KINDS = ("pack", "train", "sample", "reference", "eval", "table", "convert", "time")
"""Kinds of steps of workflows: the commands that they are."""
VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
INTERFACES = re.compile(r"=?[^\s,^=/:]+(,[^\s,^=/:]+)*")
"""Names of network interfaces; NCCL's mark of exact names may stand before them."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container that tasks run in.

    Attributes:
        image: Image file or reference; "" runs without a container.
        runtime: `pyxis` (options of srun) or `apptainer` (a command around Python).
        mounts: Directories to mount, as `/outside:/inside`.
        python: Python inside the container.
    """

    image: str = ""
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    mounts: tuple[str, ...] = ()
    python: str = "python3"


@dataclass(frozen=True, kw_only=True)
class Site:
    """The site profile.

    Attributes:
        partition: Partition of jobs that request none; "" is Slurm's default.
        account: Account likewise.
        qos: Quality of service likewise.
        constraint: Node features likewise.
        evaluation_partition: Partition of scheduled evaluation (cheap, preemptible); "" is
            `partition`.
        evaluation_qos: Quality of service of scheduled evaluation; "" is `qos`.
        mem: Memory per node, as Slurm writes it (`64G`); "" is Slurm's default.
        cpus_per_task: Cores of each rank; 0 is Slurm's default.
        cpu_bind: Argument of srun's --cpu-bind; "" leaves binding to Slurm.
        open_files: Limit on open files per process; 0 leaves it.
        setup: Lines of the batch script before the job (modules, proxies).
        environment: Variables of every task.
        network_interface: Interface of NCCL and gloo, or several with commas, by their exact names;
            "" takes the one that reaches rank 0.
        scratch: Directory on each node's own disk for temporary files and caches; variables such
            as $SLURM_JOB_ID are expanded there. "" is the system's.
        shared: Roots of the file systems that all nodes see; run directories must be in one of
            them. Empty: only directories that are certainly local (such as /tmp) are rejected.
        health_check: Whether nodes are tried before the ranks of training start: for jobs with
            `gpus`, `always` or `never`.
        exclude_after: A job that crashed so often within a day on a host is requeued without it; 0
            excludes none.
        notify: Command that tells people about jobs: it gets the news (`finished`, `failed`,
            `crashed`, `stopped`, `lost`, `budget`), the directory and a line as its last arguments.
        signal_seconds: How long before the time limit a job gets the signal to save.
        sbatch: Further options of sbatch for every job, by its names: `licenses = "x:1"`.
        srun: Further options of srun for the ranks; `true` is one without a value.
        resources: What steps of workflows request, by their kind and sbatch's names of options:
            `[resources.pack]` with `time = "2:00:00"`.
        container: What tasks run in.
        array_parallelism: How many tasks of an array may run at once.
        source: The file that this was read from, for jobs that submit others; do not set it.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    evaluation_partition: str = ""
    evaluation_qos: str = ""
    mem: str = ""
    cpus_per_task: int = 0
    cpu_bind: str = ""
    open_files: int = 0
    setup: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    network_interface: str = ""
    scratch: str = ""
    shared: tuple[str, ...] = ()
    health_check: Literal["gpus", "always", "never"] = "gpus"
    exclude_after: int = 3
    notify: str = ""
    signal_seconds: int = 120
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    srun: dict[str, str | int | bool] = field(default_factory=dict)
    resources: dict[str, dict[str, str | int]] = field(default_factory=dict)
    container: Container = field(default_factory=Container)
    array_parallelism: int = 16
    source: str = ""

    def __post_init__(self) -> None:
        if self.signal_seconds < 1:
            raise ValueError(f"signal_seconds={self.signal_seconds} must be positive")
        if self.array_parallelism < 1:
            raise ValueError(f"array_parallelism={self.array_parallelism} must be positive")
        for name in ("cpus_per_task", "open_files", "exclude_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name, value in vars(self).items():
            texts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(text, str) and ("\n" in text or "\0" in text) for text in texts):
                raise ValueError(f"{name}={value!r:.100} must be one line of text")
        try:
            shlex.split(self.notify)
        except ValueError as error:
            raise ValueError(f"notify={self.notify!r:.100} is no command: {error}") from None
        if self.network_interface and not INTERFACES.fullmatch(self.network_interface):
            raise ValueError(
                f"network_interface={self.network_interface!r:.80} must be exact names, such as ib0"
                " or ib0,ib1"
            )
        for name in self.environment:
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"environment: {name[:80]!r} is no name of a variable")
        for key in self.sbatch:
            if check_key(key) in PER_JOB:
                raise ValueError(f"sbatch.{key} is of each job: give --{key} on the command line")
            if key.replace("-", "_") in vars(self):
                raise ValueError(f"sbatch.{key}: write {key.replace('-', '_')} outside of [sbatch]")
        for key in self.srun:
            if not KEY.fullmatch(key) or key in OF_SRUN:
                raise ValueError(f"srun.{key}: is no option of srun, or one that relaywave sets")
        for name, value in (self.sbatch | self.srun).items():
            if isinstance(value, str) and ("\n" in value or "\0" in value):
                raise ValueError(f"{name}={value!r:.100} must be one line of text")
        for kind in self.resources:
            if kind not in KINDS:
                raise ValueError(
                    f"resources.{kind}: no step is of that kind; {', '.join(KINDS)} are"
                )
        for root in self.shared:
            if not root.startswith("/"):
                raise ValueError(f"shared={root!r} must be an absolute directory")


def read_site(path: Path | None = None) -> Site:
    """Read the site profile from a file, or from the default places.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or has an unknown key or wrong value.
    """
    found = path or user_file("site.toml", VARIABLE_OF_THE_FILE)
    if not (path or os.environ.get(VARIABLE_OF_THE_FILE) or found.exists()):
        return Site()
    site: Site = read_toml(found, Site, "a site profile")
    return replace(site, source=str(found.absolute()))
