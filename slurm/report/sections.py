"""The sections of the page, as HTML. Every text that comes from a file is escaped here."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.results.compare import values_of
from evaluation.results.formats import render
from evaluation.results.result_file import Result
from evaluation.results.table import table_blocks
from slurm.jobs.throughput import RATE
from slurm.report.charts import LIGHT, NO_RUN, Chart
from slurm.report.collect import Run

MOST_TILES = 12
"""Of a strip of one seed's samples over training."""


@dataclass(frozen=True)
class Section:
    """A part of the page: what links call it, its heading, and its HTML."""

    key: str
    title: str
    body: str


@dataclass(frozen=True)
class Picture:
    """A grid as the page shows it: a file beside the page, and the images seen of it.

    `real` is the same for images of the training set, "" where there are none.
    """

    file: str
    images_seen: int
    real: str = ""


def esc(value: object) -> str:
    """Escape a text for HTML, also within quotes."""
    return html.escape(str(value), quote=True)


def missing(words: str, command: str = "") -> str:
    """Return a line on what is not there, and the command that makes it."""
    code = f" <code>{esc(command)}</code>" if command else ""
    return f'<p class="missing">{esc(words)}{code}</p>'


def json_link(key: str, what: str) -> str:
    """Return a link to the JSON file of a picture."""
    return (
        f'<a class="json" href="assets/data/{key}.json" aria-label="JSON of {esc(what)}">JSON</a>'
    )


def cards(charts: Sequence[Chart]) -> str:
    """Return charts side by side, each with its words and a link to its JSON."""
    alone = " alone" if len(charts) == 1 else ""
    return f'<div class="cards{alone}">{"".join(map(_card, charts))}</div>'


def _card(chart: Chart) -> str:
    run = f' data-run="{chart.run}"' if chart.run != NO_RUN else ""
    note = f'<p class="quiet small">{esc(chart.note)}</p>' if chart.note else ""
    return (
        f'<figure class="card"{run}><figcaption><h3>{esc(chart.title)}</h3>'
        f"{json_link(chart.key, chart.title)}{note}</figcaption>"
        f'<div class="chart" id="chart-{chart.key}" role="img"'
        f' aria-label="{esc(chart.described())}"></div></figure>'
    )


def glance(runs: Sequence[Run]) -> str:
    """Return the table of runs: state, progress, speed, goodput and cost."""
    if not runs:
        return missing("There is no run here, only results.")
    columns = (
        "run", "state", "progress", "images/s", "left", "loss", "metric", "goodput",
        "rank-hours", "restarts", "peak GB",
    )  # fmt: skip
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    rows = [
        f'<tr data-run="{number}"><th scope="row">{dot(number)} {esc(run.name)}'
        f'<br><span class="quiet small">{esc(run.settings.get("recipe", ""))}</span></th>'
        + "".join(
            f'<td data-label="{label}"><div>{cell}</div></td>'
            for label, cell in zip(columns[1:], _cells(run), strict=True)
        )
        + "</tr>"
        for number, run in enumerate(runs)
    ]
    notes = [f"<li><b>{esc(run.name)}</b>: {esc(run.note)}</li>" for run in runs if run.note]
    listed = f'<ul class="quiet small">{"".join(notes)}</ul>' if notes else ""
    return (
        f'<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="Runs">'
        f'<table><caption class="quiet small">Goodput is the part of the time of all processes that'
        " was progress; rank-hours are that time, times ranks (a rank has one GPU)."
        f" {json_link('runs', 'the table of runs')}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{listed}</div>"
    )


def dot(number: int) -> str:
    """Return a dot in the colour of a run."""
    return f'<span class="dot" data-colour="{LIGHT[number % len(LIGHT)]}"></span>'


def _cells(run: Run) -> list[str]:
    """Return the row of a run behind its name, as HTML."""
    facts = facts_of(run)
    last = run.lines[-1] if run.lines else {}
    done = facts["progress"]
    bar = "" if done is None else f'<progress max="1" value="{done:.4f}" aria-label="progress of'
    bar += "" if done is None else f' {esc(run.name)}">{done:.0%}</progress> {done:.0%}'
    bar += f'<br><span class="quiet small">{run.images_seen:,} of {run.total_images:,}</span>'
    losses = [
        f"{esc(key.partition('/')[0]) + ' ' if len(run.settings.get('optim', {})) > 1 else ''}"
        f"{value:.4g}"
        for key, value in last.items()
        if key.endswith("/loss") and value is not None
    ]
    bound = "≤ " if run.history.is_bound else ""
    least = "≥ " if run.history.is_bound else ""
    cost = facts["rank_hours"]
    metric = facts["metric"]
    return [
        f'<span class="state {esc(run.state)}">{esc(run.state)}</span>',
        bar,
        _number(facts["images_per_second"], "{:,.4g}"),
        _duration(facts["seconds_left"]),
        "<br>".join(losses) or "–",
        f"{metric['value']:.4g}<br><span class='quiet small'>{esc(metric['name'])}</span>"
        if metric
        else "–",
        bound + _number(facts["goodput"], "{:.0%}") if facts["goodput"] is not None else "–",
        least + _number(cost, "{:,.3g}") if cost is not None else "–",
        _number(facts["restarts"], "{:d}"),
        _number(last.get("memory/peak_gb"), "{:.3g}"),
    ]


def facts_of(run: Run) -> dict[str, Any]:
    """Return the row of a run as JSON."""
    last = run.lines[-1] if run.lines else {}
    rate, left = last.get(RATE), run.total_images - run.images_seen
    newest = run.results[-1] if run.results else None
    values = list(values_of(newest).items()) if newest else []
    return {
        "name": run.name,
        "directory": str(run.root),
        "recipe": run.settings.get("recipe"),
        "state": run.state,
        "note": run.note,
        "images_seen": run.images_seen,
        "total_images": run.total_images,
        "progress": run.images_seen / run.total_images if run.total_images else None,
        "images_per_second": rate,
        "seconds_left": left / rate if rate and left > 0 else None,
        "metric": {"name": values[0][0], "value": values[0][1]} if values else None,
        "goodput": run.history.goodput,
        "goodput_is_upper_bound": run.history.is_bound,
        "rank_hours": run.history.rank_hours,
        "productive_seconds": run.history.productive,
        "restarts": run.history.restarts,
    }


def samples(runs: Sequence[Run], pictures: Mapping[int, Sequence[Picture]]) -> str:
    """Return the grids of all runs under one slider, and one seed's samples over training."""
    if not pictures:
        return missing(
            "No run has grids of samples; they are drawn with snapshots if logging.grid_seeds is"
            " positive."
        )
    places = sorted({picture.images_seen for shown in pictures.values() for picture in shown})
    last = len(places) - 1
    figures = "".join(
        f'<figure class="card" data-run="{number}" data-grids="{number}"><figcaption>'
        f"{dot(number)} <h3>{esc(runs[number].name)}</h3>"
        f'<span class="at quiet small">{seen(shown[-1].images_seen)}</span></figcaption>'
        f'<img src="{shown[-1].file}" alt="{esc(grid_alt(runs[number], shown[-1]))}"></figure>'
        for number, shown in pictures.items()
    )
    return (
        '<div class="slider"><label for="place">Training</label>'
        f'<input type="range" id="place" min="0" max="{last}" value="{last}" step="1">'
        f'<output id="place-shown" for="place">{places[-1]:,} images</output>'
        f'<span class="quiet small">Each run shows its newest grid up to there; place k of every'
        f' grid has seed k.</span></div><div class="grids">{figures}</div>'
        f"{_strips(runs, pictures)}"
    )


def _strips(runs: Sequence[Run], pictures: Mapping[int, Sequence[Picture]]) -> str:
    """Return a row per run with one seed's samples at several times of training."""
    most = max((runs[number].num_seeds for number in pictures), default=0)
    rows = []
    for number, shown in pictures.items():
        run = runs[number]
        grid = run.grids[-1]
        columns = run.grid_columns
        lines = -(-run.num_seeds // columns) if columns else 0
        if not columns or grid.width % columns or grid.height % lines:
            continue  # settings of another time: where the samples are is not known
        real = [(shown[0].real, "real", "real image of its training set")] if shown[0].real else []
        trained = [(p.file, _below_tile(p), seen(p.images_seen)) for p in chosen(shown, MOST_TILES)]
        tiles = "".join(
            f'<span><span class="tile" role="img" aria-label="{esc(run.name)}"'
            f' data-file="{file}" data-columns="{columns}" data-rows="{lines}"'
            f' data-seeds="{run.num_seeds}" data-label="{esc(f"{run.name}, {words}")}"></span>'
            f'<span class="quiet small">{below}</span></span>'
            for file, below, words in [*real, *trained]
        )
        rows.append(
            f'<div data-run="{number}"><span class="small">{dot(number)}'
            f' {esc(run.name)}</span><div class="strip scroll" tabindex="0" role="region"'
            f' aria-label="One seed of {esc(run.name)} over training">{tiles}</div></div>'
        )
    if not rows:
        return ""
    return (
        '<h3 style="margin:1.2rem 0 .5rem">One seed over training</h3>'
        '<div class="slider"><label for="seed">Seed</label>'
        f'<input type="number" id="seed" min="0" max="{most - 1}" value="0">'
        '<span class="quiet small">The same noise at all times of training (in images seen); real'
        f' images are of any class.</span></div><div class="card strips">{"".join(rows)}</div>'
    )


def _below_tile(picture: Picture) -> str:
    return f"{picture.images_seen:,}" if picture.images_seen else "untrained"


def chosen(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """Return at most so many, evenly from the first to the last."""
    last = len(pictures) - 1
    if last < most:
        return list(pictures)
    return [pictures[round(number * last / (most - 1))] for number in range(most)]


def seen(images: int) -> str:
    """Return the words for a time of training."""
    return f"{images:,} images seen" if images else "untrained"


def grid_alt(run: Run, picture: Picture) -> str:
    """Return what a grid shows, in words."""
    count = f"{run.num_seeds} samples" if run.num_seeds else "Samples"
    return f"{count} of {run.name}, {seen(picture.images_seen)}"


def results_table(results: Sequence[Result]) -> str:
    """Return the table of results, those of the papers beside them, and all deviations."""
    if not results:
        return missing(
            "No results yet; evaluate a snapshot:",
            "relaywave eval run RUN --reference FILE --out RUN/evaluation/NAME.json",
        )
    tables = render(table_blocks(results), "html")
    return (
        '<div class="card"><div class="scroll tables" tabindex="0" role="region"'
        f' aria-label="Results">{tables}</div>'
        f'<p class="small">{json_link("results", "all results")}</p></div>'
    )


def settings_table(runs: Sequence[Run]) -> str:
    """Return the settings in which runs differ; of one run, all."""
    known = [run for run in runs if run.settings]
    if not known:
        return missing("There are no settings to show.")
    flat = [flattened(run.settings) for run in known]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    different = [key for key in keys if len({_value(settings, key) for settings in flat}) > 1]
    shown = different if len(known) > 1 else keys
    head = "".join(f'<th scope="col">{esc(run.name)}</th>' for run in known)
    rows = "".join(
        f'<tr><th scope="row"><code>{esc(key)}</code></th>'
        + "".join(f"<td>{esc(_value(settings, key))}</td>" for settings in flat)
        + "</tr>"
        for key in shown
    )
    what = f"{len(shown)} of {len(keys)} settings differ" if len(known) > 1 else "All settings"
    if not shown:
        return missing("These runs have the same settings.")
    return (
        '<div class="slider"><label for="find-setting">Find</label>'
        '<input type="search" id="find-setting" placeholder="sampling, lr, ...">'
        f'<span class="quiet small">{what}; <output id="settings-shown" for="find-setting">'
        f"{len(shown)} shown</output>. {json_link('settings', 'all settings')}</span></div>"
        '<div class="card"><div class="scroll words" id="settings-table" tabindex="0" role="region"'
        f' aria-label="Settings"><table><thead><tr><th scope="col">setting</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def flattened(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of a JSON document."""
    if not isinstance(settings, Mapping) or not settings:
        return {prefix: settings}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flattened(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _value(settings: Mapping[str, Any], key: str) -> str:
    if key not in settings:
        return "–"
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float | int | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def heading(runs: Sequence[Run], paths: Sequence[Path]) -> str:
    """Return what the page is about."""
    names = [run.name for run in runs] or [path.name or str(path) for path in paths]
    some = ", ".join(names[:4])
    return some if len(names) <= 4 else f"{some} and {len(names) - 4} more"
