"""`events.jsonl` of a run: when processes started and ended, and roll-backs. For reports only.

Nothing that trains reads it, and a line that cannot be written stops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from models.safe_files.json_lines import read_lines
from models.safe_files.typed_json import ConfigError, from_json

EVENTS = "events.jsonl"
Kind = Literal["start", "roll_back", "end"]
MAX_TIME = 1e11


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a run.

    Attributes:
        event: What.
        time: Unix seconds.
        images_seen: Where training continues; of an end, the last interval that was logged.
        ranks: Of a start, the number of processes.
        why: Of a roll-back, what was wrong.
    """

    IGNORES_UNKNOWN: ClassVar[bool] = True
    event: Kind
    time: float
    images_seen: int
    ranks: int = 0
    why: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.time < MAX_TIME and self.images_seen >= 0 and self.ranks >= 0):
            raise ValueError(f"time={self.time}, images_seen={self.images_seen} are no event's")


def read_events(run_dir: Path) -> list[Event]:
    """Return the events of a run in their order, [] for runs of older versions.

    Damaged lines are left out.

    Raises:
        OSError: The file cannot be read.
    """
    return [_parse(line) for line in read_lines(run_dir / EVENTS, _is_event)]


def _parse(line: Mapping[str, Any]) -> Event:
    event: Event = from_json(Event, dict(line), EVENTS)
    return event


def _is_event(line: Mapping[str, Any]) -> bool:
    try:
        _parse(line)
    except ConfigError:
        return False
    return True
