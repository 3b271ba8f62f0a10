"""What a job requests from the scheduler, and the limits of running it again."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from slurm.sbatch_keys import check_key
from slurm.site import Site

JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
REPLACES = {"mem-per-cpu": "mem", "mem-per-gpu": "mem", "cpus-per-gpu": "cpus_per_task",
            "gpus-per-task": "gpus_per_node"}  # fmt: skip
"""Options of sbatch that ask for the same as a field of `Resources`, by another measure."""
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The request of a job; empty text and 0 leave a value to the site profile or to Slurm.

    Attributes:
        nodes: Number of nodes, or the largest one if Slurm may choose.
        fewest_nodes: The smallest number that Slurm may choose; 0 insists on `nodes`.
        tasks_per_node: Ranks on each of them, one per GPU.
        gpus_per_node: GPUs on each of them; 0 without GPUs.
        gpu_type: Their type, as Slurm calls it (`a100`).
        minutes: Time limit.
        min_minutes: Shortest acceptable time limit, if that lets the job start sooner (before a
            maintenance reservation); 0 insists on `minutes`.
        dependency: Jobs to wait for, as Slurm writes it (`afterok:12`).
        begin: Earliest start, as Slurm writes it (`now+6hours`).
        array_parallelism: How many tasks of an array run at once.
        nice: Lowers the priority.
        fallback_nodes: Smaller numbers of nodes to try in order if the full one stays pending.
        shrink_minutes: How long each number of nodes may stay pending.
        signal_seconds: How long before the time limit a job gets the signal to save.
        sbatch: Further options of sbatch by its names (`{"licenses": "x:1"}`); "" is a bare one.
    """

    NEWER: ClassVar[frozenset[str]] = frozenset(
        ("fewest_nodes", "gpu_type", "signal_seconds", "sbatch")
    )

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 0
    minutes: int = 60
    min_minutes: int = 0
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    mem: str = ""
    comment: str = ""
    mail_type: str = ""
    mail_user: str = ""
    exclude: str = ""
    nodelist: str = ""
    exclusive: bool = False
    dependency: str = ""
    begin: str = ""
    array_parallelism: int = 0
    nice: int = 0
    fallback_nodes: tuple[int, ...] = ()
    shrink_minutes: int = 360
    fewest_nodes: int = 0
    gpu_type: str = ""
    signal_seconds: int = 0
    sbatch: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "minutes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("gpus_per_node", "cpus_per_task", "array_parallelism", "nice", "min_minutes",
                     "fewest_nodes", "signal_seconds"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.min_minutes > self.minutes:
            raise ValueError(f"min_minutes={self.min_minutes} is above minutes={self.minutes}")
        if self.fewest_nodes > self.nodes:
            raise ValueError(f"--nodes={self.fewest_nodes}-{self.nodes}: the first is the smaller")
        for key in self.sbatch:
            other = replaces(check_key(key), self.sbatch[key])
            if other in ("mem", "cpus_per_task") and getattr(self, other):
                option = f"--{other.replace('_', '-')}={getattr(self, other)}"
                raise ValueError(f"--{key} contradicts {option}; leave one out")
        for name, value in (asdict(self) | self.sbatch).items():
            if isinstance(value, str) and ("\n" in value or "\0" in value):
                raise ValueError(f"{name}={value!r} must be one line of text")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.tasks_per_node

    def without_gpus(self, **changes: int) -> Resources:
        """Return the request of one process on one node without GPUs, with some changes."""
        of_gpus = {"cpus-per-gpu", "mem-per-gpu"}
        kept = {key: text for key, text in self.sbatch.items()
                if replaces(key, text) != "gpus_per_node" and key not in of_gpus}  # fmt: skip
        size = {"nodes": 1, "fewest_nodes": 0, "tasks_per_node": 1, "gpus_per_node": 0}
        return Resources(**{**vars(self), "sbatch": kept, "gpu_type": "", **size, **changes})

    @property
    def fewest(self) -> int:
        """The smallest number of nodes that the job may start on."""
        return self.fewest_nodes or self.nodes

    def margin(self, site: Site) -> int:
        """Seconds before the time limit at which the job gets the signal to save."""
        return self.signal_seconds or site.signal_seconds

    def options(self, site: Site) -> dict[str, str]:
        """Return options that only sbatch reads: the site's where the request is silent, and own.

        Sizes count as requested always: the site's `gres` of GPUs has no effect.
        """
        asked = {"gpus_per_node", *(name for name, value in vars(self).items() if value)}
        asked |= {replaces(key, text) or key for key, text in self.sbatch.items()}
        of_site = {key: "" if value is True else str(value)
                   for key, value in site.sbatch.items() if value is not False}  # fmt: skip
        left = {k: text for k, text in of_site.items() if (replaces(k, text) or k) not in asked}
        return left | self.sbatch

    def parameters(self, site: Site) -> dict[str, Any]:
        """Return submitit's parameters of a Slurm job, with the site's defaults filled in."""
        options = self.options(site)
        chosen = {
            name: getattr(self, name) or getattr(site, name)
            for name in ("partition", "account", "qos", "constraint", "mem", "cpus_per_task")
        }
        own = {
            name: getattr(self, name)
            for name in ("comment", "mail_type", "mail_user", "exclude", "nodelist", "exclusive",
                         "dependency")
        }  # fmt: skip
        gpus = f"{self.gpu_type}:{self.gpus_per_node}" if self.gpu_type else self.gpus_per_node
        sizes = {
            "nodes": f"{self.fewest_nodes}-{self.nodes}" if self.fewest_nodes else self.nodes,
            "gpus_per_node": gpus if self.gpus_per_node else 0,
        }
        replaced = {replaces(key, text) for key, text in options.items()}
        further: dict[str, Any] = {
            "reservation": self.reservation,
            "begin": self.begin,
            "nice": self.nice,
            "time_min": self.min_minutes,
        }
        if self.dependency:  # otherwise a job whose predecessor failed would wait forever
            further["kill_on_invalid_dep"] = "yes"
        return {
            "time": self.minutes,
            "ntasks_per_node": self.tasks_per_node,
            "signal_delay_s": self.margin(site),
            "array_parallelism": self.array_parallelism or site.array_parallelism,
            "wckey": None,
            **{
                name: value
                for name, value in {**chosen, **own, **sizes}.items()
                if value and name not in replaced
            },
            "additional_parameters": {
                **{key: text or True for key, text in options.items()},
                "requeue": True,
                **{name: value for name, value in further.items() if value},
            },
        }


def replaces(key: str, text: str) -> str | None:
    """Return the field of `Resources` that an option of sbatch stands in for, None if none."""
    if key == "gres":
        return "gpus_per_node" if re.search(r"\bgpu\b", text) else None
    return REPLACES.get(key)


@dataclass(frozen=True)
class Policy:
    """The limits of running a job again.

    Attributes:
        max_stalled: Stop after this many starts in a row that crash, or reach their time limit, and
            save nothing new.
        max_crashes: Stop after more than this many crashes in a row; one that saved something new
            begins another row.
        backoff_seconds: Wait after a crash; doubles while nothing new is saved, up to an hour.
        gpu_hours: The budget of a run over all its starts; 0 is none.
        budget_warns: Whether a run continues, with a warning, when its budget is used up.
    """

    NEWER: ClassVar[frozenset[str]] = frozenset(("gpu_hours", "budget_warns"))

    max_stalled: int = 5
    max_crashes: int = 10
    backoff_seconds: int = 60
    gpu_hours: float = 0.0
    budget_warns: bool = False


def parse_minutes(text: str) -> int:
    """Parse a time limit as Slurm writes it; returns minutes, rounded up.

    `90`, `90:00`, `1:30:00`, `2-12`, `2-12:00` and `2-12:00:00` are valid.

    Raises:
        ValueError: The text is none of them, or zero.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"the time limit {text!r} is not like 90, 1:30:00 or 2-12:00:00")
    days, *rest = match.groups()
    first, second, third = (int(part) if part else 0 for part in rest)
    if days is not None:
        seconds = int(days) * 86400 + first * 3600 + second * 60 + third
    elif rest[2] is not None:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    if seconds == 0:
        raise ValueError(f"the time limit {text!r} must be positive")
    return -(-seconds // 60)


def check_job_name(name: str) -> str:
    """Return a job name if it is safe everywhere. Raises ValueError otherwise."""
    if not JOB_NAME.fullmatch(name):
        raise ValueError(
            f"the job name {name!r} may only have letters, digits, '.', '_' and '-', and starts"
            " with a letter or digit"
        )
    return name
