"""Paths that lead nowhere: said with the nearest thing that is there."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

MOST_NAMES = 10_000
"""Names of a directory that are compared: those of a directory of images are no help."""


def check_there(path: Path, expected: str, said: str = "") -> None:
    """Check that something is at a path.

    Args:
        path: The path.
        expected: What it should lead to, e.g. `a statistics file`.
        said: What the line says first; "" takes that the path does not exist.

    Raises:
        ValueError: Nothing is there; the line names what is there instead.
    """
    if not path.exists():
        raise ValueError(f"{said or f'{path} does not exist'}{_hint(path)}; give {expected}")


def _hint(path: Path) -> str:
    if path.is_symlink():
        return f": it is a link to {os.readlink(path)}, which is not there"
    if near := nearest(path):
        return f"; {near} is there: did you mean it?"
    parents = [parent for parent in path.parents if parent.exists()]
    return f"; of its path, {parents[0]} is there" if parents and parents[0] != path.parent else ""


def nearest(path: Path) -> Path | None:
    """Return what is there under a similar name, at the first part of a path that is not there."""
    missing = next((p for p in [*reversed(path.parents), path] if not p.exists()), None)
    if missing is None or not missing.parent.is_dir():
        return None
    try:
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(MOST_NAMES), strict=False)]
    except OSError:
        return None
    similar = difflib.get_close_matches(missing.name, sorted(names), n=1)
    if not similar:
        return None
    found = missing.with_name(similar[0])
    rest = found / path.relative_to(missing)
    return rest if rest.exists() else found
