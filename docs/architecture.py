"""Draws images/architecture.svg from the imports of all modules.

    python docs/architecture.py

One column a package, one box a module or sub-package directly within it. A box imports only boxes
in rows below its own. Arcs are imports between packages.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/images/architecture.svg"
PACKAGES = ("models", "data_pipelines", "dist_train", "evaluation", "slurm")
COLUMN, GAP, MARGIN = 228, 24, 16
BOX, LINE, HEADER, ARC = 20, 26, 124, 34
NOTE = 36
"""Characters in a line of what a package is."""
PER_LINE = 2
STYLE = """
svg { background: #fff; font: 11px sans-serif; fill: #222 }
.package { fill: #f4f5fb; stroke: #3f51b5 }
.box { fill: #fff; stroke: #9aa3d1 }
.title { font-size: 14px; font-weight: bold }
.note { fill: #666 }
.arc { fill: none; stroke: #3f51b5; stroke-width: 1.5; marker-end: url(#head) }
"""


def _modules() -> dict[str, ast.Module]:
    """Return the syntax trees of all modules by dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def _imports(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names that a module imports from our packages, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in PACKAGES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in PACKAGES:  # `from models import snapshot`
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif node.module.partition(".")[0] in PACKAGES:
                yield node.module


def _room(name: str) -> tuple[str, str]:
    """Return (package, module or sub-package directly within it) of a dotted name."""
    parts = [*name.split("."), "__init__"]
    return parts[0], parts[1]


def _rows(package: str, uses: dict[tuple[str, str], set[tuple[str, str]]]) -> list[list[str]]:
    """Return the rooms of a package by height, the highest first; the lowest import no other."""

    @cache
    def height(room: str) -> int:
        within = {name for owner, name in uses[package, room] if owner == package} - {room}
        return 1 + max((height(name) for name in within), default=0)

    rooms = sorted(name for owner, name in uses if owner == package and name != "__init__")
    top = max(map(height, rooms))
    return [[name for name in rooms if height(name) == level] for level in range(top, 0, -1)]


def draw() -> str:
    """Return the picture as SVG."""
    uses: dict[tuple[str, str], set[tuple[str, str]]] = {}
    between: set[tuple[str, str]] = set()
    for name, tree in _modules().items():
        imported = {_room(other) for other in _imports(tree)}
        uses.setdefault(_room(name), set()).update(r for r in imported if r[1] != "__init__")
        between.update({(name.partition(".")[0], owner) for owner, _ in imported})
    columns = [_column(package, _rows(package, uses)) for package in PACKAGES]
    arcs = [_arc(user, used) for user, used in sorted(between) if user != used]
    width = 2 * MARGIN + len(PACKAGES) * (COLUMN + GAP) - GAP
    height = HEADER + max(bottom for _, bottom in columns) + MARGIN
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"'
        ' markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#3f51b5"/></marker>',
        *arcs,
        *(drawing for drawing, _ in columns),
        "</svg>\n",
    ])  # fmt: skip


def _left(package: str) -> int:
    return MARGIN + PACKAGES.index(package) * (COLUMN + GAP)


def _column(package: str, rows: list[list[str]]) -> tuple[str, int]:
    """Return a package's drawing, and how far down it reaches."""
    left, y = _left(package), 58
    drawn = []
    for row in rows:
        for start in range(0, len(row), PER_LINE):
            names = row[start : start + PER_LINE]
            width = (COLUMN - 2 * 8 - 6 * (len(names) - 1)) / len(names)
            for i, name in enumerate(names):
                shown = name if (ROOT / package / f"{name}.py").exists() else f"{name}/"
                x = left + 8 + i * (width + 6)
                drawn.append(
                    f'<rect class="box" x="{x:g}" y="{HEADER + y}" width="{width:g}"'
                    f' height="{BOX}" rx="3"/><text x="{x + width / 2:g}" y="{HEADER + y + 14}"'
                    f' text-anchor="middle">{shown}</text>'
                )
            y += LINE
        y += 6
    doc = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
    notes = "".join(
        f'<text class="note" x="{left + 8}" y="{HEADER + 34 + 13 * i}">{escape(line)}</text>'
        for i, line in enumerate(wrap(doc.splitlines()[0].partition(":")[0].rstrip("."), NOTE))
    )
    frame = (
        f'<rect class="package" x="{left}" y="{HEADER}" width="{COLUMN}" height="{y}" rx="6"/>'
        f'<text class="title" x="{left + 8}" y="{HEADER + 18}">{package}/</text>{notes}'
    )
    return "\n".join([frame, *drawn]), y


def _arc(user: str, used: str) -> str:
    """Return the arc from a package to one that it imports."""
    distance = PACKAGES.index(user) - PACKAGES.index(used)
    start = _left(user) + COLUMN / 2 - 14 * distance
    end = _left(used) + COLUMN / 2 + 14 * distance
    top = HEADER - ARC * distance
    curve = f"M{start:g} {HEADER} C{start:g} {top} {end:g} {top} {end:g} {HEADER}"
    return f'<path class="arc" d="{curve}"/>'


if __name__ == "__main__":
    PICTURE.write_text(draw())
