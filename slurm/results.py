"""Results of scheduled evaluation: values along a run, and their copy in wandb and TensorBoard."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from slurm.folder import write_json


def values(run_dir: Path, key: str) -> dict[int, float]:
    """Return {images seen: value} of all results, for a key like `protocol:metric.value`."""
    protocol, _, path = key.partition(":")
    return {
        images: row[f"{protocol}/{path}"]
        for (images, name), row in all_values(run_dir).items()
        if name == protocol and f"{protocol}/{path}" in row
    }


def all_values(run_dir: Path) -> dict[tuple[int, str], dict[str, float]]:
    """Return {(images seen, protocol): {`protocol/metric.value`: number}}, in order."""
    found = {}
    for path in sorted(run_dir.glob("evaluation/[0-9]*/*.json")):
        protocol = path.name.removesuffix(".json")
        if "." in protocol:  # unfinished, or a mark
            continue
        result: dict[str, Any] = json.loads(path.read_text())
        found[int(path.parent.name), protocol] = {
            f"{protocol}/{metric}.{name}": float(value)
            for metric, entry in result["metrics"].items()
            for name, value in entry["values"].items()
        }
    return found


def mirror(run_dir: Path) -> int:
    """Copy new results to where the run's metrics are mirrored; returns how many there were.

    There is one writer at a time, in a record of its own beside that of training (which has
    another writer), with images seen as its axis. A result is never copied twice.
    """
    config = json.loads((run_dir / "config.json").read_text())
    if not (config.get("wandb_project") or config.get("tensorboard")):
        return 0
    folder = run_dir / "evaluation"
    with open(folder / ".mirror.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0  # the other writer finds them, or the next call
        return _mirror(run_dir, folder)


def _mirror(run_dir: Path, folder: Path) -> int:
    noted = folder / ".mirrored.json"
    done = {tuple(key) for key in json.loads(noted.read_text())} if noted.exists() else set()
    rows = all_values(run_dir)
    new = [key for key in rows if key not in done]
    if not new:
        return 0
    from dist_train.config import RunConfig
    from dist_train.mirrors import start_mirrors
    from models.config_io import read_config

    place = folder / "mirror" / f"{run_dir.name}-evaluation"
    place.mkdir(parents=True, exist_ok=True)
    mirrors = start_mirrors(read_config(RunConfig, run_dir / "config.json"), place)
    if not mirrors:
        return 0
    for images, protocol in new:
        for each in mirrors:
            each.write({"images_seen": images, **rows[images, protocol]})
    for each in mirrors:
        each.close()
    write_json(noted, sorted([*done, *new]))
    return len(new)
