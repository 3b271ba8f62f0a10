"""Which tars a path names: one, a brace pattern, a directory, a command, or several of them."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from data_pipelines.remote_files import file_system, is_remote

TAR_NAME = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz))(\?[^/]*)?$")
PIPE = "pipe:"
PLACEHOLDER = "{}"
"""In `pipe:COMMAND` of a packed set: where the name of a file of the set goes."""
MANIFEST = "manifest.json"


def names_tars(path: str) -> bool:
    """Tell whether a path names tars of a WebDataset, not a packed set (which has a manifest)."""
    if path.startswith(PIPE):
        return PLACEHOLDER not in path
    if not is_remote(path) and Path(path).is_dir():
        return not (Path(path) / MANIFEST).exists() and bool(tars_in(Path(path)))
    return all(TAR_NAME.search(part) for part in path.split("::"))


def expand(path: str) -> list[str]:
    """Return the tars that a path names, in order.

    Args:
        path: A tar, a pattern in braces (`train-{0000..0899}.tar`) or with `*`, a directory of
            tars, `pipe:COMMAND`, or several of these joined by `::`, as WebDataset joins them.

    Raises:
        ValueError: It names no tar, or the same one twice.
    """
    import braceexpand

    found: list[str] = []
    for part in path.split("::"):
        for name in braceexpand.braceexpand(part):
            found += _matching(name)
    if not found:
        raise ValueError(f"{path} names no tar; give a tar, a pattern such as train-{{00..15}}.tar")
    if len(set(found)) < len(found):
        double = next(name for name in found if found.count(name) > 1)
        raise ValueError(f"{path} names {double} more than once; name each tar once")
    return found


def _matching(name: str) -> list[str]:
    if name.startswith(PIPE):
        return [name]
    if is_remote(name):
        if "*" not in name:
            return [name]
        system, pattern = file_system(name)
        return sorted(map(system.unstrip_protocol, system.glob(pattern)))
    if Path(name).is_dir():
        return [str(tar) for tar in tars_in(Path(name))]
    return sorted(glob.glob(name)) if "*" in name else [name]


def tars_in(directory: Path) -> list[Path]:
    """Return what is called like a tar in a directory, sorted by name."""
    named = [p for p in directory.glob("*") if p.name.endswith((".tar", ".tgz", ".tar.gz"))]
    return sorted(path for path in named if not path.name.startswith("."))
