"""What has been run on a GPU machine and with what result; kept in one JSON file.

It is written at every step, so that a machine that goes away costs one task.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from models.safe_files.atomic import atomic_file
from tests.gpu.device import Device

ATTEMPTS = 2
"""How often a task is started that does not come to an end."""


@dataclass
class Outcome:
    """What a task has measured, and what it found wrong.

    Attributes:
        numbers: Measurements by name, as JSON.
        problems: One line for each bound that was missed; empty if the task passed.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def bound(self, name: str, value: float, most: float) -> None:
        """Note a number that must be at most `most` (NaN is not)."""
        self.numbers[name] = value
        if not value <= most:
            self.problems.append(f"{name}={value:.3g} is above {most:.3g}")


class Task(NamedTuple):
    """A piece of work of a minute or so; `part` is its letter in the table."""

    part: str
    name: str
    run: Callable[[Device, Path], Outcome]

    @property
    def key(self) -> str:
        return f"{self.part}/{self.name}"


class Ledger:
    """Results by task.

    Args:
        path: The file, which may exist: its results are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document: dict[str, Any] = {"machine": {}, "results": {}}
        if path.exists():
            self.document = json.loads(path.read_text())

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.document["results"]
        return found

    def describe(self, machine: dict[str, Any]) -> None:
        """Note the machine. Raises ValueError if the results are another one's."""
        known = self.document["machine"]
        if known and known != machine:
            raise ValueError(
                f"{self.path} holds results of {known}, this is {machine}; give another --out"
            )
        self.document["machine"] = machine
        self._write()

    def left(self, keys: Iterable[str]) -> list[str]:
        """Return the tasks that have no result yet."""
        return [key for key in keys if self.results.get(key, {}).get("state", "begun") == "begun"]

    def begin(self, key: str) -> bool:
        """Note that a task starts; False if it was started too often, which is its result."""
        attempts = self.results.get(key, {}).get("attempts", 0)
        if attempts >= ATTEMPTS:
            self.give_up(key, f"did not end in {attempts} attempts")
            return False
        self.results[key] = {"state": "begun", "attempts": attempts + 1, "at": time.time()}
        self._write()
        return True

    def end(self, key: str, outcome: Outcome) -> None:
        """Note a task's result."""
        entry = self.results[key]
        entry["seconds"] = round(time.time() - entry.pop("at"), 1)
        entry["state"] = "failed" if outcome.problems else "passed"
        entry |= {"numbers": outcome.numbers, "problems": outcome.problems}
        self._write()

    def give_up(self, key: str, problem: str) -> None:
        """Note that a task could not be brought to an end."""
        self.results[key] |= {"state": "broken", "problems": [problem]}
        self._write()

    def begun(self) -> list[str]:
        """Return the tasks that were started and have not ended: of one worker at most one."""
        return [key for key, entry in self.results.items() if entry["state"] == "begun"]

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as file:
            file.write(json.dumps(self.document, indent=1).encode())
