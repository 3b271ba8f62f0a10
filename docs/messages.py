"""The lines with which commands fail, read from the source: what troubleshooting.md rests on.

A line is a template: `…` stands for each value that is put into it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "data_pipelines", "dist_train", "evaluation", "slurm")
VALUE = "…"


def _template(node: ast.expr) -> str | None:
    """Return the text of an expression that is written out, at least in part; else None."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(p.value) if isinstance(p, ast.Constant) else VALUE for p in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            texts = [_template(left), _template(right)]
            return None if texts == [None, None] else "".join(text or VALUE for text in texts)
    return None


def _trees() -> Iterator[tuple[str, ast.Module]]:
    """Yield (dotted name, syntax tree) of each of our modules."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name, ast.parse(path.read_text())


def texts() -> set[str]:
    """Return every text in the source, as templates."""
    nodes = (node for _, tree in _trees() for node in ast.walk(tree))
    return {text for node in nodes if isinstance(node, ast.expr) and (text := _template(node))}


def raised() -> dict[str, list[str]]:
    """Return the lines that each module raises as errors, in the order of the file."""
    lines: dict[str, list[str]] = {}
    for module, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = _template(node.exc.args[0])
                if text and text.strip(VALUE + " :;") and text not in lines.get(module, []):
                    lines.setdefault(module, []).append(text)
    return lines


def as_markdown() -> str:
    """Return all lines as Markdown, by package and module."""
    out: list[str] = []
    package = ""
    for module, lines in raised().items():
        if module.partition(".")[0] != package:
            package = module.partition(".")[0]
            out.append(f"### {package}")
        out.append(f"**{module}**")
        out.append("\n".join(f"- ``{' '.join(line.split())} ``" for line in lines))
    return "\n\n".join(out) + "\n"
