"""`relaywave train status RUN`: where a run stands, read from its directory alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dist_train.checkpoint.format import committed
from dist_train.runtime.metrics_file import read_metrics
from dist_train.runtime.run_dir import RunLock, read_run_config
from dist_train.runtime.run_files import read_settings, read_summary


def add_status(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `status`."""
    parser.description = "Print where a run stands."
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.set_defaults(run_command=print_status)


def print_status(options: argparse.Namespace) -> int:
    """Print one run's state.

    Raises:
        ConfigError: The directory is no run.
    """
    run_dir = options.run
    for name, value in describe_run(run_dir).items():
        print(f"{name:12} {value}")
    return 0


def describe_run(run_dir: Path) -> dict[str, str]:
    """Return what is known about a run, by subject."""
    watched = read_settings(run_dir).get("imports")  # whose code is not run just to look
    config = read_summary(run_dir) if watched else read_run_config(run_dir)
    lines = read_metrics(run_dir)
    last = lines[-1] if lines else {}
    seen = last.get("images_seen", 0)
    owner = RunLock.owner(run_dir)
    finished = seen >= config.total_images
    state = f"running ({owner})" if owner else "finished" if finished else "stopped"
    described = {
        "run": str(run_dir),
        "recipe": config.recipe,
        "state": state,
        "progress": f"{seen:,}/{config.total_images:,} images ({seen / config.total_images:.0%})",
        "checkpoints": _listed(committed(run_dir)),
        "snapshots": _listed(_snapshots(run_dir)),
    }
    if not last:
        return described
    losses = {k: v for k, v in last.items() if k.endswith("/loss") and v is not None}
    described["loss"] = "  ".join(f"{name} {value:.4g}" for name, value in losses.items())
    rate = last.get("speed/images_per_second") or 0
    described["speed"] = f"{rate:,.1f} images/s"
    if rate and not finished:
        described["time left"] = f"{(config.total_images - seen) / rate / 3600:.1f} h at this speed"
    skipped = sum(v for k, v in last.items() if k.endswith("/skipped_updates"))
    described["skipped"] = f"{skipped} updates, {last.get('data/replaced_samples', 0):.0f} samples"
    return described


def _snapshots(run_dir: Path) -> list[Path]:
    return sorted(path.parent for path in run_dir.glob("snapshots/[0-9]*/snapshot.json"))


def _listed(paths: Sequence[Path]) -> str:
    """Return "3, newest at 1,000 images (12.0 MB)"."""
    if not paths:
        return "none"
    size = sum(file.stat().st_size for file in paths[-1].iterdir()) / 1e6
    return f"{len(paths)}, newest at {int(paths[-1].name):,} images ({size:,.1f} MB)"
