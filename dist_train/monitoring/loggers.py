"""Copies of the metrics elsewhere: wandb, TensorBoard, plugins. Ours cannot stop a run."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dist_train.config import LoggingConfig
from dist_train.config_groups import LOGGERS
from models.safe_files.atomic import atomic_file

WANDB_TIMEOUT = 30.0
"""Seconds that wandb's server has to answer at the start; afterwards it retries by itself."""


WANDB_ID = re.compile("[A-Za-z0-9_-]{1,64}")
"""wandb makes it part of the names of directories."""


class Logger(Protocol):
    """Somewhere that metrics are copied to."""

    def write(self, line: Mapping[str, float]) -> None:
        """Record one interval's finite values, with `images_seen` among them."""

    def show_grid(self, images_seen: int, grid: Path) -> None:
        """Record a picture."""

    def close(self) -> None:
        """Send what is left."""


def has_loggers(logging: LoggingConfig) -> bool:
    """Tell whether the settings ask for any logger."""
    return bool(logging.wandb_project is not None or logging.tensorboard or logging.loggers)


def start_loggers(logging: LoggingConfig, config: Mapping[str, Any], run_dir: Path) -> list[Logger]:
    """Return the loggers that the settings ask for and that could be started.

    Args:
        logging: Which ones.
        config: The whole configuration as JSON, for wandb to show.
        run_dir: The run directory.
    """
    loggers: list[Logger | None] = []
    if logging.wandb_project is not None:
        loggers.append(_start_wandb(logging.wandb_project, run_dir, config))
    if logging.tensorboard:
        loggers.append(_start_tensorboard(run_dir))
    loggers += [LOGGERS[name](run_dir, dict(config)) for name in logging.loggers]
    return [logger for logger in loggers if logger is not None]


class WandbLogger:
    """A wandb run, whose step axis is images seen."""

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("images_seen")
        run.define_metric("*", step_metric="images_seen")

    def write(self, line: Mapping[str, float]) -> None:
        """Record one interval."""
        self._run.log(dict(line))

    def show_grid(self, images_seen: int, grid: Path) -> None:
        """Record a picture."""
        import wandb

        self._run.log({"samples": wandb.Image(str(grid)), "images_seen": images_seen})

    def close(self) -> None:
        """Send what is left; what cannot be sent stays in `wandb/` for `wandb sync`."""
        self._run.finish()


class TensorboardLogger:
    """A TensorBoard event file in `tensorboard/`."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, line: Mapping[str, float]) -> None:
        """Record one interval."""
        for name, value in line.items():
            self._writer.add_scalar(name, value, global_step=line["images_seen"])

    def show_grid(self, images_seen: int, grid: Path) -> None:
        """Record a picture."""
        with Image.open(grid) as picture:
            pixels = np.asarray(picture)
        self._writer.add_image("samples", pixels, global_step=images_seen, dataformats="HWC")

    def close(self) -> None:
        """Flush the file."""
        self._writer.close()


def _start_wandb(project: str, run_dir: Path, config: Mapping[str, Any]) -> Logger | None:
    """Start or continue the run's wandb record; offline unless the user is logged in.

    The id lives in the run directory from the first second, so that a requeued job continues it.
    """
    try:
        import wandb
    except ImportError:
        _say("wandb is not installed")
        return None
    try:
        logged_in = wandb.login(prompt=False, verify=False)
        run = wandb.init(
            project=project,
            id=_wandb_id(run_dir / "wandb_id"),
            name=run_dir.name,
            dir=run_dir,
            config=dict(config),
            resume="allow",
            mode=None if logged_in or "WANDB_MODE" in os.environ else "offline",
            settings=wandb.Settings(silent=True, x_disable_stats=True, init_timeout=WANDB_TIMEOUT),
        )
    except (wandb.Error, OSError) as error:
        _say(f"wandb could not start ({error})")
        return None
    return WandbLogger(run)


def _wandb_id(file: Path) -> str:
    """Return the id of the run's record, a new one if the file is not there or was damaged."""
    try:
        found = file.read_text(errors="replace").strip()
        if WANDB_ID.fullmatch(found):
            return found
        print(f"{file} holds no id of a wandb run: a new record is started", file=sys.stderr)
    except FileNotFoundError:
        pass
    new = secrets.token_hex(4)
    with atomic_file(file) as content:
        content.write(new.encode())
    return new


def _start_tensorboard(run_dir: Path) -> Logger | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _say("tensorboard is not installed (pip install 'relaywave[tensorboard]')")
        return None
    return TensorboardLogger(SummaryWriter(str(run_dir / "tensorboard")))


def _say(problem: str) -> None:
    print(f"{problem}: metrics go to metrics.jsonl only", file=sys.stderr)
