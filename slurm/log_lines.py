"""The time of each line that ranks print, by which lines of several ranks are put in order."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any, TextIO, cast

STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}) ")
AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class TimedLines:
    """A stream of text that writes the time before each line; all else is the stream's own.

    Args:
        stream: Where it writes to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begins = stream, True

    def write(self, text: str) -> int:
        """Write text, with the time where a line of it begins."""
        if text:
            stamp = f"{datetime.now().isoformat(timespec='milliseconds')} "
            body, end = (text[:-1], "\n") if text.endswith("\n") else (text, "")
            body = body.replace("\n", f"\n{stamp}")
            self._stream.write(f"{stamp if self._begins else ''}{body}{end}")
            self._begins = bool(end)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write text in several parts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def time_lines() -> None:
    """Write the time before what this process prints, if it is of a job, from now on."""
    if "SUBMITIT_EXECUTOR" not in os.environ or isinstance(sys.stdout, TimedLines):
        return
    sys.stdout = cast(TextIO, TimedLines(sys.stdout))
    sys.stderr = cast(TextIO, TimedLines(sys.stderr))


def without_time(line: str) -> str:
    """Return a line as it was printed."""
    return STAMP.sub("", line, count=1) if STAMP.match(line) else line


def time_of(line: str) -> float | None:
    """Return the time of a line in Unix seconds, None of one that has none."""
    match = STAMP.match(line)
    try:
        return datetime.fromisoformat(match[1]).timestamp() if match else None
    except ValueError:
        return None


def parse_since(text: str) -> float:
    """Parse `90s`, `10m`, `2h` or `3d` ago, or a time like `2026-01-31T18:00`; in Unix seconds.

    Raises:
        ValueError: It is none of them.
    """
    if match := AGO.fullmatch(text):
        return time.time() - float(match[1]) * SECONDS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ValueError(f"{text!r:.80} is not like 10m, 2h or 2026-01-31T18:00") from None
