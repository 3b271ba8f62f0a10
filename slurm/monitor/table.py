"""`relaywave slurm status --table`: runs side by side, such as those of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_train.monitoring.evaluations import all_values
from dist_train.runtime.run_files import read_settings
from evaluation.results.formats import FORMS, Block, render, write_csv
from models.config_io import ConfigError, differences
from slurm.monitor.watch import job_text

TABLE_FORMS = (*FORMS, "json")


def format_runs(statuses: Sequence[Mapping[str, Any]], form: str) -> str:
    """Return a table with a row per run.

    Args:
        statuses: As `run_status` returns them; directories that are no runs are left out.
        form: One of TABLE_FORMS.

    Raises:
        ValueError: None is a run.
    """
    runs = compared(statuses)
    if not runs:
        raise ValueError("there is no run among these directories, only jobs; leave --table out")
    if form == "json":
        return json.dumps(runs, indent=1)
    if form == "csv":
        return write_csv([_csv_row(run) for run in runs])
    problems = [f"{run['run']}: {run['problem']}" for run in runs if run["problem"]]
    return render([Block(_rows(runs), problems)], form)


def compared(statuses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what a table says of each run, as JSON.

    `settings` are those in which the runs differ, by dotted name; `results` are the newest value of
    each metric, by `protocol/metric.value`, with the images seen of its snapshot.
    """
    statuses = [status for status in statuses if "recipe" in status or "problem" in status]
    settings = [_settings(Path(status["folder"])) for status in statuses]
    names = differing([document for document in settings if document])
    return [
        {
            "run": Path(status["folder"]).name,
            "folder": status["folder"],
            "settings": {name: _at(document, name) for name in names} if document else {},
            "state": _state(status),
            "step": status.get("step"),
            "images_seen": status.get("images_seen"),
            "total_images": status.get("total_images"),
            "losses": status.get("losses", {}),
            "results": newest_results(Path(status["folder"])),
            "problem": status.get("problem", ""),
        }
        for status, document in zip(statuses, settings, strict=True)
    ]


def differing(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the dotted names of the settings in which any of the documents differ."""
    names = {name: None for other in documents[1:] for name in differences(documents[0], other)}
    return [name for name in names if not any(name.startswith(f"{above}.") for above in names)]


def newest_results(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return {`protocol/metric.value`: its value and images seen} of the newest results."""
    from evaluation.results.table import DETAILS  # imports torch, for which --help need not wait

    newest: dict[str, dict[str, Any]] = {}
    for (images, _), row in sorted(all_values(run_dir).items()):
        newest |= {
            name: {"value": value, "images_seen": images}
            for name, value in row.items()
            if not DETAILS.fullmatch(name.rpartition(".")[2])
        }
    return dict(sorted(newest.items()))


def _settings(run_dir: Path) -> dict[str, Any]:
    """Return the settings of a run, {} if they cannot be read: its status says so."""
    try:
        return read_settings(run_dir)
    except (ConfigError, OSError):
        return {}


def _at(document: Any, name: str) -> Any:
    """Return the value of a dotted name, None where there is none."""
    for part in name.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def _state(status: Mapping[str, Any]) -> str:
    """Return where a run stands: finished, stopped for good, or what its job does."""
    if "recipe" in status and status["images_seen"] >= status["total_images"]:
        return "finished"
    if "stopped" in status:
        return "stopped"
    return job_text(status) or "not queued"


def _rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    settings, losses, results = (_names(runs, part) for part in ("settings", "losses", "results"))
    header = ["run", *settings, "state", "step", "images", *losses, *results]
    return [header, *(_row(run, settings, losses, results) for run in runs)]


def _names(runs: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run[part]))


def _row(
    run: Mapping[str, Any], settings: Sequence[str], losses: Sequence[str], results: Sequence[str]
) -> list[str]:
    seen, total = run["images_seen"], run["total_images"]
    found = [run["results"].get(name) for name in results]
    return [
        run["run"],
        *(_text(run["settings"].get(name)) for name in settings),
        run["state"],
        _text(run["step"]),
        "-" if seen is None else f"{seen:,}/{total:,}",
        *(_text(run["losses"].get(name)) for name in losses),
        *(f"{_text(r['value'])} at {r['images_seen']:,}" if r else "-" for r in found),
    ]


def _csv_row(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's line: a value and its images seen are columns of their own."""
    settings = {name: _exact(value) for name, value in run["settings"].items() if value is not None}
    facts = {"state": run["state"], "step": run["step"], "images seen": run["images_seen"],
             "total images": run["total_images"]}  # fmt: skip
    results: dict[str, Any] = {}
    for name, found in run["results"].items():
        results |= {name: found["value"], f"{name} images seen": found["images_seen"]}
    return {"run": run["run"], **settings, **facts, **run["losses"], **results}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else _exact(value)


def _exact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
