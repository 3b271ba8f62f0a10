"""The page: one HTML file with everything in it but pictures and JSON, which lie in `assets/`.

It runs from file:// and asks for nothing: its content policy allows the two scripts in it, by their
hashes, and its own pictures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from models.safe_files.atomic import atomic_directory, check_replaceable
from slurm.report.charts import (
    DARK,
    LIGHT,
    STEPS_DARK,
    STEPS_LIGHT,
    Chart,
    thinned,
    with_unique_keys,
)
from slurm.report.collect import Found, Run
from slurm.report.real_images import write_real_grid
from slurm.report.result_charts import metric_charts, precision_recall_chart, spectrum_charts
from slurm.report.sections import (
    Picture,
    Section,
    cards,
    chosen,
    dot,
    esc,
    facts_of,
    glance,
    grid_alt,
    heading,
    missing,
    results_table,
    samples,
    seen,
    settings_table,
)
from slurm.report.training_charts import loss_charts, optimiser_charts, speed_charts, time_chart

HERE = Path(__file__).parent
INDEX, ASSETS = "index.html", "assets"
MARK = '<meta name="generator" content="relaywave report">'
"""In the head of our pages; other directories are not replaced."""
WHAT = "a report"
MOST_GRIDS = 40
"""Of a run; of more, so many are chosen evenly."""
CLOCKS = {"images": "images seen", "steps": "steps", "hours": "hours since the first start"}


def check_out(out: Path) -> None:
    """Raise NotOurs if a directory holds other things than a report."""
    check_replaceable(out, is_report, WHAT)


def is_report(directory: Path) -> bool:
    """Tell whether a directory holds a report, and nothing else."""
    names = {entry.name for entry in directory.iterdir()}
    index = directory / INDEX
    if not names <= {INDEX, ASSETS} or not index.is_file():
        return False
    with open(index, "rb") as file:
        return MARK.encode() in file.read(4096)


def write_report(found: Found, paths: Sequence[Path], out: Path, follow: float | None) -> None:
    """Write a report, in the place of an older one.

    Args:
        found: What it is about.
        paths: Where that was found.
        out: The directory.
        follow: Seconds after which a page that is served looks for a newer one; None for never.

    Raises:
        NotOurs: The directory holds other things.
        ModuleNotFoundError: plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    with atomic_directory(out, is_report, WHAT) as directory:
        (directory / ASSETS / "data").mkdir(parents=True)
        pictures = {
            number: shown
            for number, run in enumerate(found.runs)
            if (shown := _copy_grids(run, number, directory))
        }
        sections, charts = _sections(found, pictures)
        made = time.time()
        data = {
            "name": str(out),
            "made": made,
            "follow": follow,
            "colours": {"light": [*LIGHT, *STEPS_LIGHT], "dark": [*DARK, *STEPS_DARK]},
            "clocks": CLOCKS,
            "charts": list(map(_chart_data, charts)),
            "runs": [_run_data(run, pictures.get(n, [])) for n, run in enumerate(found.runs)],
            "places": sorted({p.images_seen for shown in pictures.values() for p in shown}),
        }
        _write_data(directory / ASSETS / "data", found, charts)
        _write(directory / ASSETS / "made.json", {"made": made})
        page = _page(found, paths, sections, data, get_plotlyjs(), made)
        (directory / INDEX).write_bytes(page.encode("utf-8", "backslashreplace"))


def _sections(
    found: Found, pictures: Mapping[int, Sequence[Picture]]
) -> tuple[list[Section], list[Chart]]:
    """Return the parts of the page in their order, and the charts in them."""
    runs, results = found.runs, found.results
    places, progress = precision_recall_chart(results, runs), time_chart(runs)
    groups = with_unique_keys(
        [
            [*metric_charts(results, runs), *([places] if places else [])],
            loss_charts(runs),
            optimiser_charts(runs),
            speed_charts(runs),
            [progress] if progress else [],
            spectrum_charts(found.spectra),
        ]
    )
    metrics, losses, optimiser, speeds, times, spectra = groups
    no_lines = missing("No run has logged an interval yet.")
    sections = [
        Section("glance", "At a glance", glance(runs)),
        Section("samples", "Samples", samples(runs, pictures)),
        Section("results", "Results", results_table(results)),
        Section(
            "curves",
            "Metrics and sweeps",
            cards(metrics)
            if metrics
            else missing(
                "Curves need results at several snapshots, or of several sampler settings (NFE,"
                " eta); precision against recall needs the metric pr."
            ),
        ),
        Section("loss", "Loss", cards(losses) if losses else no_lines),
        Section("optimiser", "Gradients and rates", cards(optimiser) if optimiser else no_lines),
        Section("speed", "Speed", cards(speeds) if speeds else no_lines),
        Section(
            "time",
            "Restarts and roll-backs",
            cards(times)
            if times
            else missing("No run recorded its starts; runs of older versions did not."),
        ),
        Section(
            "spectra",
            "Spectra",
            cards(spectra)
            if spectra
            else missing("No spectra; make them with", "relaywave spectrum IMAGES RUN/spectrum"),
        ),
        Section("settings", "Settings", settings_table(runs)),
    ]
    return sections, [chart for group in groups for chart in group]


def _copy_grids(run: Run, number: int, directory: Path) -> list[Picture]:
    """Copy the pictures of a run; returns what the page shows of it."""
    by_place = {grid.images_seen: grid for grid in run.grids}
    wanted = chosen([Picture("", images) for images in sorted(by_place)], MOST_GRIDS)
    shown = []
    for picture in wanted:
        file = f"{ASSETS}/grids/{number}-{picture.images_seen:012}.png"
        (directory / file).parent.mkdir(exist_ok=True)
        try:
            shutil.copyfile(by_place[picture.images_seen].path, directory / file)
        except FileNotFoundError:  # moved aside meanwhile, by a roll-back
            continue
        shown.append(Picture(file, picture.images_seen))
    real = f"{ASSETS}/grids/{number}-real.png"
    if shown and write_real_grid(run, directory / real):
        shown[0] = replace(shown[0], real=real)
    return shown


def _chart_data(chart: Chart) -> dict[str, Any]:
    """Return what the script needs of a chart."""
    return {
        "key": chart.key,
        "figure": chart.figure(),
        "training": chart.of_training,
        "legend": chart.has_legend,
    }


def _run_data(run: Run, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return what the script needs of a run: other clocks of its intervals, and its grids."""
    kept = thinned(len(run.lines))
    steps = [line["step"] for line in run.lines]
    return {
        "clocks": {"steps": steps[kept], "hours": list(run.history.hours[kept])},
        "grids": [
            {
                "file": picture.file,
                "images_seen": picture.images_seen,
                "label": seen(picture.images_seen),
                "alt": grid_alt(run, picture),
            }
            for picture in pictures
        ],
    }


def _write_data(directory: Path, found: Found, charts: Sequence[Chart]) -> None:
    """Write the JSON behind each picture and table."""
    for chart in charts:
        _write(directory / f"{chart.key}.json", chart.figure())
    marks = {run.name: [asdict(mark) for mark in run.history.marks] for run in found.runs}
    _write(directory / "runs.json", {"runs": list(map(facts_of, found.runs)), "marks": marks})
    _write(directory / "results.json", {"results": found.results})
    _write(directory / "settings.json", {run.name: run.settings for run in found.runs})


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _page(
    found: Found,
    paths: Sequence[Path],
    sections: Sequence[Section],
    data: Mapping[str, Any],
    plotly: str,
    made: float,
) -> str:
    script, style = (HERE / "page.js").read_text(), (HERE / "page.css").read_text()
    title = heading(found.runs, paths)
    links = "".join(f'<a href="#{part.key}">{part.title}</a>' for part in sections)
    body = "".join(
        f'<section id="{part.key}" aria-labelledby="h-{part.key}">'
        f'<h2 id="h-{part.key}">{part.title}</h2>{part.body}</section>'
        for part in sections
    )
    skipped = "".join(f"<li>{esc(line)}</li>" for line in found.skipped)
    left_out = f"<p>Left out:</p><ul>{skipped}</ul>" if skipped else ""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(made))
    connect = "'self'" if data["follow"] else "'none'"
    policy = (
        f"default-src 'none'; script-src {_hashed(plotly)} {_hashed(script)};"
        f" style-src 'unsafe-inline'; img-src 'self' file: data: blob:; connect-src {connect};"
        " base-uri 'none'; form-action 'none'"
    )
    embedded = json.dumps(data).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{MARK}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{esc(title)} - relaywave report</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{esc(title)}</h1>
<p class="quiet small">relaywave report of {len(found.runs)} runs and {len(found.results)} results,
{when}</p></header>
<div class="bar"><div><nav aria-label="Sections">{links}</nav>{_controls(found.runs)}</div></div>
<main id="main">
<noscript><p class="missing">Charts need JavaScript; tables do not.</p></noscript>
{body}
</main>
<footer>{left_out}<p>Made by <code>relaywave report</code>; nothing is loaded from elsewhere.
Charts: plotly.js.</p></footer>
<script type="application/json" id="page-data">{embedded}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def _controls(runs: Sequence[Run]) -> str:
    """Return what chooses runs, the clock and the scale."""
    boxes = "".join(
        f'<label><input type="checkbox" name="run" value="{number}" checked>'
        f"{dot(number)}{esc(run.name)}</label>"
        for number, run in enumerate(runs)
    )
    clocks = "".join(f'<option value="{key}">{title}</option>' for key, title in CLOCKS.items())
    return (
        f'<fieldset id="runs"><legend>Runs</legend>{boxes}</fieldset>'
        f'<label>Over <select id="clock">{clocks}</select></label>'
        '<label><input type="checkbox" id="log">log scale</label>'
    )


def _hashed(script: str) -> str:
    """Return the source expression that allows an inline script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
