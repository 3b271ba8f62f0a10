"""Results of the scheduled evaluations of a run, and how they get to the run's own loggers.

A record of wandb, and a directory of TensorBoard, have one writer at a time. While a run trains,
that is rank 0, which sends new results with each snapshot and at the end; otherwise it is the job
that evaluates, or `relaywave slurm reconcile`. So they stand in the run's own panels, over images
seen.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from models.safe_files.atomic import atomic_file
from models.safe_files.documents import Format, parse_json
from models.safe_files.locks import FileLock
from models.safe_files.transient import retried
from models.safe_files.typed_json import from_json

LOCK = "loggers.lock"
"""Held by the process that writes to the loggers of a run."""
SENT = ".mirrored.json"
"""Which results the loggers have: a list of (images seen, protocol)."""

Key = tuple[int, str]
"""Images seen and protocol of a result."""
Values = dict[str, float]
"""The values of a result by `protocol/metric.value`."""


@dataclass(frozen=True)
class _Metric:
    """What is needed of a metric in a result."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    values: dict[str, float]


@dataclass(frozen=True)
class _Result:
    """What is needed of a result; evaluation checks the rest."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    metrics: dict[str, _Metric]


RESULTS = Format(schema=_Result, remedy="move it away to have it computed again")


def all_values(run_dir: Path, without: Collection[Key] = ()) -> dict[Key, Values]:
    """Return the values of the results of a run, in order, of which some need not be read.

    Damaged results, and values that are not finite, are skipped by name.
    """
    found = {}
    for path in sorted(run_dir.glob("evaluation/[0-9]*/*.json")):
        protocol = path.name.removesuffix(".json")
        if "." in protocol:  # unfinished, or a claim
            continue
        key = int(path.parent.name), protocol
        if key not in without and (values := _read_values(path, protocol)) is not None:
            found[key] = values
    return found


def _read_values(path: Path, protocol: str) -> Values | None:
    try:
        result = RESULTS.read(path)
    except (OSError, ValueError) as error:
        _warn_once(f"{error}; the result is skipped")
        return None
    row = {
        f"{protocol}/{metric}.{name}": value
        for metric, entry in result.metrics.items()
        for name, value in entry.values.items()
    }
    if unusable := [name for name, value in row.items() if not math.isfinite(value)]:
        _warn_once(f"{path}: {', '.join(unusable)} is not finite and is skipped")
    return {name: value for name, value in row.items() if name not in unusable}


@functools.lru_cache(maxsize=1000)
def _warn_once(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


class UnsentResults:
    """The results of a run that its loggers lack; for the one process that writes to these.

    Args:
        run_dir: The run directory.

    Raises:
        OSError: The directory cannot be written.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._lock = FileLock(run_dir / LOCK)

    def take(self, patience: float = 0.0) -> bool:
        """Become that process; False if another still is after so many seconds."""
        return self._lock.take(patience)

    def release(self) -> None:
        """Leave it to others."""
        self._lock.release()

    def read(self) -> dict[Key, Values]:
        """Return the results that were not sent yet.

        Raises:
            ValueError: The list of what was sent is damaged; without it all would be sent again.
        """
        return all_values(self._run_dir, self._sent())

    def send(self, write: Callable[[Mapping[str, float]], object]) -> int:
        """Send each to `write`, as a line with its `images_seen`; returns how many there were.

        Raises:
            ValueError: As `read`.
        """
        new = self.read()
        for (images, _), values in new.items():
            write({"images_seen": images, **values})
        if new:
            with atomic_file(self._run_dir / "evaluation" / SENT) as file:
                file.write(json.dumps(sorted([*self._sent(), *new]), indent=1).encode() + b"\n")
        return len(new)

    def _sent(self) -> set[Key]:
        path = self._run_dir / "evaluation" / SENT
        try:
            content = retried(path.read_bytes, f"reading {path}")
        except FileNotFoundError:
            return set()
        try:
            pairs: tuple[Key, ...] = from_json(tuple[Key, ...], parse_json(content), "it")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, the list of results that were sent to the loggers, is damaged ({error});"
                " remove it to have all of them sent again"
            ) from None
        return set(pairs)
