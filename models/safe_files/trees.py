"""A bound on the size and depth of what a foreign file holds.

A pickle of 2 kB can hold an object that refers to another twice, which refers to a third twice, and
so on: 28 levels make 2^28 paths, which anything that walks along references would follow for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_ENTRIES = 1_000_000
MAX_DEPTH = 100


def check_tree(value: Any, max_entries: int = MAX_ENTRIES, max_depth: int = MAX_DEPTH) -> None:
    """Check that containers and objects, each counted as often as it is reached, are few.

    Raises:
        ValueError: There are more entries, or deeper ones, than any real file has.
    """
    open_levels: list[Iterator[Any]] = [iter((value,))]
    entries = 0
    while open_levels:
        for entry in open_levels[-1]:
            entries += 1
            if entries > max_entries:
                raise ValueError(f"it holds more than {max_entries} entries")
            children = _children(entry)
            if children is not None:
                if len(open_levels) > max_depth:
                    raise ValueError(f"it is nested more than {max_depth} deep")
                open_levels.append(iter(children))
                break
        else:
            open_levels.pop()


def _children(value: Any) -> Iterable[Any] | None:
    """Return what a container or object holds, None if it holds nothing that could hold others."""
    if isinstance(value, (str, bytes, bytearray, int, float, complex, type(None))):
        return None
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    dtype = getattr(value, "dtype", None)
    if dtype is not None:  # an array or a tensor
        return value.ravel() if getattr(dtype, "hasobject", False) else None
    attributes = getattr(value, "__dict__", None)
    return attributes.values() if isinstance(attributes, dict) and attributes else None
