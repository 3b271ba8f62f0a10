"""Tables as text, Markdown, LaTeX, HTML or CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.safe_files.atomic import atomic_file, check_replaceable_file


@dataclass(frozen=True)
class Block:
    """A table with remarks below it.

    Attributes:
        rows: Cells, the first row as header; [] for remarks alone.
        notes: Remarks, a line each.
    """

    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def render(blocks: Sequence[Block], form: str) -> str:
    """Return blocks one below the other, in one of FORMS but `csv`."""
    return "\n\n".join(RENDERERS[form](block) for block in blocks)


def _text(block: Block) -> str:
    return "\n".join([*_aligned(block.rows), *block.notes])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _markdown(block: Block) -> str:
    lines = [f"| {' | '.join(map(_escape_markdown, row))} |" for row in block.rows]
    if lines:
        numbers = "--:|" * (len(block.rows[0]) - 1)
        lines.insert(1, f"|---|{numbers}")
    notes = [f"{'' if number or not lines else chr(10)}- {_escape_markdown(note)}"
             for number, note in enumerate(block.notes)]  # fmt: skip
    return "\n".join([*lines, *notes])


def _escape_markdown(text: str) -> str:
    for character in "\\|*_`<":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$",
    "#": r"\#", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$",
    "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def _latex(block: Block) -> str:
    lines = [" & ".join(map(_escape_latex, row)) + r" \\" for row in block.rows]
    if lines:
        columns = "l" + "r" * (len(block.rows[0]) - 1)
        begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        lines = [begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", end]
    notes = [rf"\par\noindent\footnotesize {_escape_latex(note)}" for note in block.notes]
    return "\n".join(["{", *lines, *notes, r"\par}"])


def _escape_latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def _html(block: Block) -> str:
    lines = []
    if block.rows:
        header, *rows = [[html.escape(cell) for cell in row] for row in block.rows]
        head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
        lines = ["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
        for first, *cells in rows:
            values = "".join(f"<td>{cell}</td>" for cell in cells)
            lines.append(f'<tr><th scope="row">{first}</th>{values}</tr>')
        lines += ["</tbody>", "</table>"]
    notes = [f"<li>{html.escape(note)}</li>" for note in block.notes]
    return "\n".join([*lines, *(["<ul>", *notes, "</ul>"] if notes else [])])


RENDERERS: dict[str, Callable[[Block], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
    "html": _html,
}
FORMS = (*RENDERERS, "csv")


def write_tables(stem: Path, blocks: Sequence[Block], rows: str) -> list[Path]:
    """Write tables as Markdown, LaTeX and CSV; returns the files.

    Args:
        stem: The files without extension; their directory is created.
        blocks: The tables.
        rows: The same as CSV.

    Raises:
        NotOurs: Something else than such a table has the name of one.
    """
    texts = {"md": render(blocks, "markdown"), "tex": render(blocks, "latex"), "csv": rows}
    files = check_tables(stem, blocks[0].rows[0][0])
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind, path in files.items():
        with atomic_file(path) as file:
            file.write(f"{texts[kind]}\n".encode())
    return [*files.values()]


def check_tables(stem: Path, first: str) -> dict[str, Path]:
    """Return the files that `write_tables` writes, by kind.

    Args:
        stem: The files without extension.
        first: The header of the first column.

    Raises:
        NotOurs: Something else than such a table has the name of one.
    """
    starts = {"md": f"| {first} ", "tex": "{\n\\begin{tabular}", "csv": f"{first},"}
    return {
        kind: check_replaceable_file(
            stem.with_name(f"{stem.name}.{kind}"), _starting(start), "a table of ours"
        )
        for kind, start in starts.items()
    }


def _starting(text: str) -> Callable[[bytes], bool]:
    mark = text.encode()
    return lambda start: start.startswith(mark)


def write_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header of all their names; absent values are empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")
