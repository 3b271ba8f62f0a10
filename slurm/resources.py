"""What a job requests from the scheduler, and the limits of running it again."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from slurm.site import Site

JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The request of a job; empty text and 0 leave a value to the site profile or to Slurm.

    Attributes:
        nodes: Number of nodes.
        tasks_per_node: Ranks on each of them, one per GPU.
        gpus_per_node: GPUs on each of them; 0 without GPUs.
        minutes: Time limit.
        min_minutes: Shortest acceptable time limit, if that lets the job start sooner (before a
            maintenance reservation); 0 insists on `minutes`.
        dependency: Jobs to wait for, as Slurm writes it (`afterok:12`).
        begin: Earliest start, as Slurm writes it (`now+6hours`).
        array_parallelism: How many tasks of an array run at once.
        nice: Lowers the priority.
        fallback_nodes: Smaller numbers of nodes to try in order if the full one stays pending.
        shrink_minutes: How long each number of nodes may stay pending.
    """

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

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "minutes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("gpus_per_node", "cpus_per_task", "array_parallelism", "nice", "min_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.min_minutes > self.minutes:
            raise ValueError(f"min_minutes={self.min_minutes} is above minutes={self.minutes}")
        for name, value in asdict(self).items():
            if isinstance(value, str) and ("\n" in value or "\0" in value):
                raise ValueError(f"{name}={value!r} must be one line of text")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.tasks_per_node

    def parameters(self, site: Site) -> dict[str, Any]:
        """Return submitit's parameters of a Slurm job, with the site's defaults filled in."""
        chosen = {
            name: getattr(self, name) or getattr(site, name)
            for name in ("partition", "account", "qos", "constraint", "mem", "cpus_per_task")
        }
        own = {
            name: getattr(self, name)
            for name in ("nodes", "gpus_per_node", "comment", "mail_type", "mail_user", "exclude",
                         "nodelist", "exclusive", "dependency")
        }  # fmt: skip
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
            "signal_delay_s": site.signal_seconds,
            "array_parallelism": self.array_parallelism or site.array_parallelism,
            "wckey": None,
            **{name: value for name, value in {**chosen, **own}.items() if value},
            "additional_parameters": {
                "requeue": True,
                **{name: value for name, value in further.items() if value},
            },
        }


@dataclass(frozen=True)
class Policy:
    """The limits of running a job again.

    Attributes:
        max_stalled: Stop after this many starts in a row that save nothing new.
        max_crashes: Stop after this many crashes in all.
        backoff_seconds: Wait after the first crash; doubles with each in a row, up to an hour.
    """

    max_stalled: int = 5
    max_crashes: int = 10
    backoff_seconds: int = 60


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
