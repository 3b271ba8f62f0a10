"""What an experiment writes: a table and a figure, with the published values beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dist_train.planning.checks import trained_settings
from dist_train.recipes import find_recipe
from dist_train.runtime.run_dir import read_run_config
from dist_train.runtime.run_files import is_run
from evaluation.published import COLUMNS, RECALL, Row, Table, read_in, tables
from evaluation.results.formats import Block, write_csv, write_tables
from evaluation.results.result_file import Result, read_result
from evaluation.results.table import counterpart
from evaluation.samples.timing import Times, read_times
from models.analysis.figures import save_figure
from models.config_io import differences
from slurm.paper import debug
from slurm.paper.experiments import DATA, MODELS, Experiment
from slurm.paper.figures import Line, draw
from slurm.paper.plan import PaperInputs, Point, data_of, find_experiment, points_of
from slurm.paper.spectra import spectra_of, spectrum_block

FIRST = "method"
TITLES = {
    "fid": "FID", "sfid": "sFID", "is": "IS", "precision": "precision", "recall": "recall",
    "seconds": "s per batch", "parameters": "parameters (M)", "gmacs": "GMACs", "gigabytes": "GB",
}  # fmt: skip
"""Headers of columns."""
LABELS_SHOWN = 12
NO_MATTER = {"micro_batch_size", "sharding.nodes", "sharding.gpus_per_node"}
"""Settings of a run that change its values by rounding only."""


def write(name: str, paper: PaperInputs) -> list[Path]:
    """Write the table and the figure of an experiment from the results that exist.

    Returns:
        The files: `paper/NAME/table.md`, `.tex`, `.csv`, `figure.png`, `.svg`.
    """
    experiment, table = find_experiment(name, tiny=paper.debug), tables()[name]
    out = paper.out_dir(name)
    notes = [table.title + ".", *notes_of(name, paper, experiment, table)]
    if experiment.kind == "spectrum":
        edge = debug.EDGE if paper.debug else 256
        spectra = spectra_of(data_of(name, paper), edge)
        block, figure = spectrum_block(spectra)
        rows = write_csv([dict(zip(block.rows[0], row, strict=True)) for row in block.rows[1:]])
        written = write_tables(out / "table", [Block(block.rows, notes)], rows)
        return [*written, *save_figure(figure, out / "figure")]
    lines = lines_of(table, points_of(name, paper), paper)
    titles = {c: (TITLES[c], debug.TITLES.get(c, TITLES[c]) if paper.debug else TITLES[c])
              for c in experiment.columns}  # fmt: skip
    block = Block(rows_of(titles, lines), [*notes, *deviations_of(lines)])
    written = write_tables(out / "table", [block], csv_of(experiment, lines))
    figure = draw(experiment, table.title, lines, titles)
    return [*written, *save_figure(figure, out / "figure")]


def lines_of(table: Table, points: Sequence[Point], paper: PaperInputs) -> list[Line]:
    """Return the published rows with our values beside them, then results without such a row."""
    left = list(points)
    lines = []
    for row in table.rows:
        place = {key: float(v) for key, v in row.at.items() if isinstance(v, float | int)}
        ours = [p for p in left if p.entry.method == row.method and p.at == place]
        left = [point for point in left if point not in ours]
        lines.append(_line(row.method, place, row, table, ours, paper))
    others = [_line(p.entry.method, p.at, None, table, [p], paper) for p in left]
    return [*lines, *others]


def _line(
    method: str,
    at: Mapping[str, float],
    row: Row | None,
    table: Table,
    points: Sequence[Point],
    paper: PaperInputs,
) -> Line:
    ours: dict[str, float] = {}
    deviations: list[str] = []
    for file in (file for point in points for file in point.files if file.exists()):
        values, said = _measured(file, paper)
        ours |= values
        deviations += said
    sources = [read_in()[key] for key in row.read_in.split()] if row else []
    return Line(
        method=method,
        at=at,
        published=row.values if row else {},
        ours=ours,
        source=f"{row.place or table.place}; read in: {', '.join(sources)}" if row else "",
        deviations=tuple(dict.fromkeys(deviations)),
    )


def _measured(file: Path, paper: PaperInputs) -> tuple[dict[str, float], list[str]]:
    """Return the values of a file by column, and in what they deviate from the published."""
    if file.stem == "times":
        times = read_times(file)
        return _times(times), [_measured_on(times)]
    result = read_result(file)
    protocol = result["protocol"] or {"deviations": []}
    return _values(result, paper), [*protocol["deviations"]]


def _times(times: Times) -> dict[str, float]:
    values = {
        "seconds": times.seconds, "parameters": times.parameters / 1e6, "gmacs": times.gmacs,
    }  # fmt: skip
    return values | ({"gigabytes": times.gigabytes} if times.gigabytes is not None else {})


def _measured_on(times: Times) -> str:
    return (
        f"on {times.device}, batches of {times.batch_size}, the mean of {times.repeats} after"
        f" {times.warm_up} (published: A100-40GB, 100 or 25, 300 after 10)"
    )


def _values(result: Result, paper: PaperInputs) -> dict[str, float]:
    if paper.debug:
        names = {column: [name] for column, name in debug.COLUMNS.items()}
    else:
        names = {column: [name] for column, name in COLUMNS.items()}
        names["recall"].append(RECALL)
    found = {}
    for column, keys in names.items():
        for key in keys:
            _, value = counterpart(result, key)
            if value is not None:
                found[column] = value
    return found


def notes_of(name: str, paper: PaperInputs, experiment: Experiment, table: Table) -> list[str]:
    """Return what a reader has to know: of the paper's values, and of what was done here."""
    models = dict.fromkeys(entry.model for entry in experiment.entries)
    evaluated = dict.fromkeys(point.entry.model for point in points_of(name, paper))
    sets = dict.fromkeys(MODELS[model].data for model in models)
    own = [
        *(f"{model}: {MODELS[model].note}." for model in models if MODELS[model].note),
        *(f"{key}: {DATA[key].note}." for key in sets if DATA[key].note),
        *(text for model in evaluated for text in changes_of(model, paper)),
    ]
    if paper.debug:
        own = [debug.NOTE]
    elif paper.official is not None:
        missing = [model for model in models if model not in evaluated]
        own = ["The weights are those that the authors released; nothing was trained.", *own]
        own += [f"No weights of the authors: {', '.join(missing)}."] if missing else []
    return [*table.notes, *experiment.notes, *own]


def changes_of(model: str, paper: PaperInputs) -> list[str]:
    """Say with which settings other than the recipes' a model's runs were trained."""
    said = []
    for recipe in MODELS[model].recipes:
        run_dir = paper.root / recipe
        if not is_run(run_dir):
            continue
        theirs, ours = (
            trained_settings(replace(config, data=replace(config.data, path="")))
            for config in (find_recipe(recipe)(), read_run_config(run_dir))
        )
        changed = [
            f"{key} is {now}, not {was}"
            for key, (was, now) in differences(theirs, ours).items()
            if key not in NO_MATTER
        ]
        if changed:
            said.append(f"The run {recipe} differs from its recipe: {'; '.join(changed)}.")
    return said


def rows_of(titles: Mapping[str, tuple[str, str]], lines: Sequence[Line]) -> list[list[str]]:
    """Return the table's rows: for each column the published value and ours.

    Args:
        titles: By column, what the published value is called, and ours.
        lines: The rows.
    """
    axes = list(dict.fromkeys(key for line in lines for key in line.at))
    header = [FIRST, *axes]
    for published, ours in titles.values():
        header += [f"{published}, published", f"{ours}, ours"]
    rows = [header]
    for line in lines:
        row = [line.method, *(_text(line.at.get(axis), "{:.10g}") for axis in axes)]
        for column in titles:
            row.append(_text(line.published.get(column), "{:g}"))
            row.append(_text(line.ours.get(column), "{:.4g}"))
        rows.append(row)
    return rows


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def csv_of(experiment: Experiment, lines: Sequence[Line]) -> str:
    """Return the lines as CSV, with the source and the deviations of each."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        row: dict[str, Any] = {FIRST: line.method, **line.at}
        for column in experiment.columns:
            row[f"{column} published"] = line.published.get(column)
            row[f"{column} ours"] = line.ours.get(column)
        row |= {"source": line.source, "deviations": "; ".join(line.deviations)}
        rows.append(row)
    return write_csv(rows)


def deviations_of(lines: Sequence[Line]) -> list[str]:
    """Return the deviations, those of several lines together, and the sources of values."""
    lines_with: dict[str, list[str]] = {}
    for line in lines:
        for text in line.deviations:
            lines_with.setdefault(text, []).append(_label(line))
    texts_of: dict[tuple[str, ...], list[str]] = {}
    for text, labels in lines_with.items():
        texts_of.setdefault(tuple(labels), []).append(text)
    said = [f"Deviations of {_all(labels)}: {'; '.join(t)}." for labels, t in texts_of.items()]
    methods_of: dict[str, dict[str, None]] = {}
    for line in lines:
        if line.source:
            methods_of.setdefault(line.source, {})[line.method] = None
    return [*said, *(f"Published: {', '.join(m)}: {source}." for source, m in methods_of.items())]


def _label(line: Line) -> str:
    return ", ".join([line.method, *(f"{key} {value:g}" for key, value in line.at.items())])


def _all(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - LABELS_SHOWN} more" if len(labels) > LABELS_SHOWN else ""
    return "; ".join(labels[:LABELS_SHOWN]) + more
