"""Metrics: averaged without synchronising the device, then written, shown and copied."""

from __future__ import annotations

import contextlib
import functools
import json
import logging as python_logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dist_train.config import LoggingConfig
from dist_train.monitoring.evaluations import UnsentResults
from dist_train.monitoring.loggers import WANDB_TIMEOUT, Logger, has_loggers, start_loggers
from dist_train.runtime.events import EVENTS, Kind
from dist_train.runtime.metrics_file import METRICS, cut_metrics
from dist_train.runtime.world import World
from models.safe_files.json_lines import stamped

warnings = python_logging.getLogger(__name__)


class MetricAverages:
    """Running means of named tensors over micro-batches, steps and ranks, NaN left out."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in metrics of any shape; stays on their device."""
        for name, values in metrics.items():
            values = values.detach().to(torch.float32)
            counted = ~values.isnan()
            pair = torch.stack([values.nan_to_num(0.0, posinf=torch.inf).sum(), counted.sum()])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def reduce(self, world: World) -> dict[str, float]:
        """Return the means over all ranks (NaN if nothing was measured); start anew. Collective.

        All ranks must have added the same names.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        table = torch.stack([self._sums[name] for name in names]).to(torch.float64)
        totals = world.all_reduce_sum(table).tolist()
        self._sums = {}
        return {
            name: total / count if count else math.nan
            for name, (total, count) in zip(names, totals, strict=True)
        }


class MetricsLog:
    """Rank 0's record of a run: metrics.jsonl, a progress bar or plain lines, and loggers.

    metrics.jsonl is the truth; wandb and TensorBoard are copies: if one fails, training continues.

    Args:
        run_dir: The run directory.
        total_images: Length of training.
        logging: Which loggers there are.
        config: The whole configuration as JSON, for loggers to show.
    """

    def __init__(
        self, run_dir: Path, total_images: int, logging: LoggingConfig, config: Mapping[str, Any]
    ) -> None:
        self._run_dir = run_dir
        self._total, self._name = total_images, run_dir.name
        self._start_loggers = functools.partial(start_loggers, logging, config, run_dir)
        self._lines: AppendedLines | None = None
        self._events = AppendedLines(run_dir / EVENTS)
        self._logged = 0
        self._loggers: list[Logger] = []
        self._has_loggers = has_loggers(logging)
        self._results: UnsentResults | None = None
        self._bar: Any = None

    def open(self, images_seen: int, ranks: int = 1) -> None:
        """Start recording; lines that an interrupted process wrote after that are cut off."""
        self._open_file(images_seen)
        self._note("start", images_seen, ranks=ranks)
        self._bar = _progress_bar(self._name, images_seen, self._total)
        if self._has_loggers:
            self._results = self._take_results()
            self._loggers = self._start_loggers()

    def write(self, images_seen: int, step: int, metrics: Mapping[str, float]) -> None:
        """Record one interval's means."""
        line = {"images_seen": images_seen, "step": step, **metrics}
        finite = {
            k: (v if not isinstance(v, float) or math.isfinite(v) else None)
            for k, v in line.items()
        }
        assert self._lines is not None
        self._lines.append(json.dumps(finite))
        self._logged = images_seen
        shown = {k: v for k, v in finite.items() if v is not None}
        self._copy(lambda logger: logger.write(shown))
        self._show(images_seen, metrics)

    def show_grid(self, images_seen: int, grid: Path) -> None:
        """Send a grid of samples to the loggers."""
        self._copy(lambda logger: logger.show_grid(images_seen, grid))

    def send_results(self) -> None:
        """Send the loggers what has been found by evaluations since the last time."""
        if self._results is None or not self._loggers:
            return
        try:
            self._results.send(lambda line: self._copy(lambda logger: logger.write(line)))
        except (OSError, ValueError) as error:
            warnings.warning("%s", error)

    def _take_results(self) -> UnsentResults | None:
        """Become the one who writes to the loggers; another may be sending results just now."""
        try:
            results = UnsentResults(self._run_dir)
            if results.take(WANDB_TIMEOUT):
                return results
        except OSError as error:
            warnings.warning("%s: results of evaluations are not sent", error)
            return None
        results.release()
        return None

    def say(self, message: str) -> None:
        """Print a line without tearing the progress bar; a full disk under a log stops nothing."""
        with contextlib.suppress(OSError):
            if self._bar is None:
                print(message, flush=True)
            else:
                self._bar.write(message)

    def rewind(self, images_seen: int, why: str = "") -> None:
        """Forget the lines after `images_seen`: the run was rolled back."""
        self._open_file(images_seen)
        self._note("roll_back", images_seen, why=why)
        if self._bar is not None:
            self._bar.reset()
            self._bar.update(images_seen)

    def close(self) -> None:
        """Flush and close everything."""
        if self._bar is not None:
            self._bar.close()
        self.send_results()
        self._copy(lambda logger: logger.close())
        if self._results is not None:
            self._results.release()
        if self._lines is not None:
            self._lines.flush()
            self._note("end", self._logged)

    def _note(self, event: Kind, images_seen: int, **facts: Any) -> None:
        self._events.append(stamped(event, images_seen=images_seen, **facts).rstrip())

    def _open_file(self, images_seen: int) -> None:
        self._logged = images_seen
        cut_metrics(self._run_dir, images_seen)
        self._lines = AppendedLines(self._run_dir / METRICS)

    def _copy(self, action: Callable[[Logger], None]) -> None:
        """Do something with every logger; one that fails is given up, whatever it raises."""
        for logger in list(self._loggers):
            try:
                action(logger)
            except Exception as error:
                self._loggers.remove(logger)
                warnings.warning(
                    "%s failed (%s): metrics go to %s only", type(logger).__name__, error, METRICS
                )

    def _show(self, images_seen: int, metrics: Mapping[str, float]) -> None:
        losses = {k: f"{v:.4g}" for k, v in metrics.items() if k.endswith("/loss")}
        if self._bar is not None:
            self._bar.set_postfix(losses, refresh=False)
            self._bar.update(images_seen - self._bar.n)
            return
        rate = metrics["speed/images_per_second"]
        left = (self._total - images_seen) / rate if rate else math.inf
        shown = "  ".join(f"{k} {v}" for k, v in losses.items())
        self.say(
            f"{self._name}  {images_seen:,}/{self._total:,} images"
            f" ({100 * images_seen / self._total:.0f}%)  {shown}"
            f"  {rate:,.0f} images/s  {left / 60:.1f} min left"
        )


class AppendedLines:
    """A file that lines are appended to; those that cannot be written are written with later ones.

    Args:
        path: The file; it is opened anew for every line, as a stale handle would stay stale.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._pending = path, b""
        self._torn_at: int | None = None

    def append(self, line: str) -> None:
        """Write a line, or keep it for later with a warning."""
        self._pending += line.encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        try:
            if self._pending:
                self._write()
        except OSError as error:
            count = self._pending.count(b"\n")
            warnings.warning("%s: %s; %d lines wait", self._path, error.strerror, count)

    def _write(self) -> None:
        with open(self._path, "ab", buffering=0) as file:
            if self._torn_at is not None:
                file.truncate(self._torn_at)
            self._torn_at = os.fstat(file.fileno()).st_size
            written = 0
            while written < len(self._pending):
                written += file.write(self._pending[written:])
        self._pending, self._torn_at = b"", None


def _progress_bar(name: str, images_seen: int, total_images: int) -> Any:
    """Return a bar with images/s and time left on a terminal, None elsewhere."""
    if not sys.stderr.isatty():
        return None
    return tqdm(
        total=total_images,
        initial=images_seen,
        unit="img",
        unit_scale=True,
        desc=name,
        dynamic_ncols=True,
    )
