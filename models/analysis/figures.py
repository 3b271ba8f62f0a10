"""Matplotlib's figures as files, which replace only such figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.safe_files.atomic import atomic_path, check_replaceable_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
PNG_DPI = 150
MADE_BY = b"Matplotlib"
"""What the first bytes of plots hold, in both formats."""


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG; returns the files.

    Args:
        figure: The figure.
        stem: The files without extension; their directory is created.

    Raises:
        NotOurs: Something else than a plot has the name of one.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS]
    targets = [
        check_replaceable_file(path, lambda start: MADE_BY in start, "a plot of ours")
        for path in paths
    ]
    for path, target in zip(paths, targets, strict=True):
        with atomic_path(target) as temporary:
            figure.savefig(temporary, dpi=PNG_DPI, format=path.suffix[1:])
    return paths
