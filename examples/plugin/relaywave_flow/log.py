"""A logger: `logging.loggers=["lines"]` prints each interval's loss to RUN/losses.txt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train.config_groups import LOGGERS


class LineLogger:
    """Appends lines to a file (dist_train.monitoring.loggers.Logger)."""

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        self._file = open(run_dir / "losses.txt", "a")  # noqa: SIM115 (until close)
        self._recipe = config["recipe"]

    def write(self, line: Mapping[str, float]) -> None:
        """Write one interval's losses."""
        losses = " ".join(f"{k}={v:.6g}" for k, v in line.items() if k.endswith("/loss"))
        self._file.write(f"{self._recipe} {line['images_seen']:.0f} {losses}\n")

    def show_grid(self, images_seen: int, grid: Path) -> None:
        """Write where a picture is."""
        self._file.write(f"{self._recipe} {images_seen} {grid}\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


LOGGERS.register("lines", LineLogger)
