"""Files of JSON lines, such as logs, to which a process adds while others read them.

A kill tears the last line, and a disk may damage any: what does not parse is left out, and counted
in one warning. The good lines behind it count.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from models.safe_files.atomic import atomic_file
from models.safe_files.documents import DocumentError
from models.safe_files.regular import open_file
from models.safe_files.transient import retried

logger = logging.getLogger(__name__)

MAX_BYTES = 1 << 29
MAX_LINE = 1 << 20
"""Bytes above which a line is none that was written, but damage: zeros, without an end."""


def read_lines(
    path: Path, is_valid: Callable[[Mapping[str, Any]], bool] = lambda entry: True
) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines, [] if there is none.

    Args:
        path: The file.
        is_valid: Tells whether an object has what a line needs; others are left out, too.

    Raises:
        OSError: The file cannot be read, also after several attempts.
        DocumentError: It is no regular file.
    """
    try:
        lines = retried(lambda: _lines(path), f"reading {path}")
    except FileNotFoundError:
        return []
    parsed = {number: _parse(line) for number, line in enumerate(lines, 1) if line.strip()}
    good = {n: entry for n, entry in parsed.items() if entry is not None and is_valid(entry)}
    if damaged := sorted(parsed.keys() - good.keys()):
        logger.warning(
            "%s: %d of %d lines are damaged or torn and left out, the first is line %d",
            path, len(damaged), len(parsed), damaged[0],
        )  # fmt: skip
    return list(good.values())


def write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines, atomically."""
    with atomic_file(path) as file:
        file.writelines(json.dumps(entry).encode() + b"\n" for entry in entries)


def stamped(event: str, **facts: Any) -> str:
    """Return a line about what happens now, with the time in Unix seconds, which people read."""
    return json.dumps({"event": event, "time": time.time(), **facts}) + "\n"


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a file; of those that are too long for an object, the beginning."""
    if path.exists() and not path.is_file():
        raise DocumentError(f"{path} is no file")  # a pipe would be waited for without end
    lines = []
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise DocumentError(f"{path} has more than {MAX_BYTES >> 20} MiB, which no log has")
        while line := file.readline(MAX_LINE):
            lines.append(line)
            while len(line) == MAX_LINE and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
    return lines


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line, None if it holds none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
