"""Metrics: averaged without synchronising the device, kept in metrics.jsonl, mirrored to wandb."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dist_train.distributed import World


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
    """Rank 0's record of a run: metrics.jsonl, a progress bar or plain lines, and wandb.

    Args:
        run_dir: The run folder.
        images_seen: Where the run goes on: lines of an interrupted process after it are cut off.
        total_images: Length of the run, for the bar.
        wandb_project: Project to mirror to, or None.
        config: The run's configuration, for wandb.
    """

    def __init__(
        self,
        run_dir: Path,
        images_seen: int,
        total_images: int,
        wandb_project: str | None,
        config: Mapping[str, Any],
    ) -> None:
        path = run_dir / "metrics.jsonl"
        _cut_after(path, images_seen)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - closed by close()
        self._bar = _progress_bar(run_dir.name, images_seen, total_images)
        self._total = total_images
        self._name = run_dir.name
        self._wandb = _start_wandb(wandb_project, run_dir, config) if wandb_project else None

    def write(self, images_seen: int, step: int, metrics: Mapping[str, float]) -> None:
        """Record one interval's means."""
        line = {"images_seen": images_seen, "step": step, **metrics}
        finite = {
            k: (v if not isinstance(v, float) or math.isfinite(v) else None)
            for k, v in line.items()
        }
        self._file.write(json.dumps(finite) + "\n")
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in finite.items() if v is not None})
        self._show(images_seen, metrics)

    def say(self, message: str) -> None:
        """Print a line without tearing the progress bar."""
        if self._bar is None:
            print(message, flush=True)
        else:
            self._bar.write(message)

    def close(self) -> None:
        """Flush and close everything."""
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._file.close()

    def _show(self, images_seen: int, metrics: Mapping[str, float]) -> None:
        losses = {k: f"{v:.4g}" for k, v in metrics.items() if k.endswith("/loss")}
        if self._bar is not None:
            self._bar.set_postfix(losses, refresh=False)
            self._bar.update(images_seen - self._bar.n)
            return
        rate = metrics["speed/images_per_second"]
        left = (self._total - images_seen) / rate if rate else math.inf
        shown = "  ".join(f"{k} {v}" for k, v in losses.items())
        print(
            f"{self._name}  {images_seen:,}/{self._total:,} images"
            f" ({100 * images_seen / self._total:.0f}%)  {shown}"
            f"  {rate:,.0f} images/s  {left / 60:.1f} min left",
            flush=True,
        )


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


def _cut_after(path: Path, images_seen: int) -> None:
    """Drop the lines that an interrupted process wrote after the checkpoint it left."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["images_seen"] <= images_seen:
                kept.append(line + "\n")
        except ValueError:  # a line torn by a kill
            continue
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def _start_wandb(project: str, run_dir: Path, config: Mapping[str, Any]) -> Any:
    """Start or continue the run's wandb record; offline unless the user is logged in.

    The id lives in the run folder from the first second, so that a requeued job goes on with it.
    wandb is a mirror: if it cannot start, training goes on.
    """
    try:
        import wandb
    except ImportError:
        print("wandb is not installed: metrics go to metrics.jsonl only", file=sys.stderr)
        return None
    id_file = run_dir / "wandb_id"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    logged_in = wandb.login(prompt=False, verify=False)
    try:
        run = wandb.init(
            project=project,
            id=id_file.read_text().strip(),
            name=run_dir.name,
            dir=run_dir,
            config=dict(config),
            resume="allow",
            mode=None if logged_in or "WANDB_MODE" in os.environ else "offline",
            settings=wandb.Settings(silent=True, x_disable_stats=True),
        )
    except (wandb.Error, OSError) as error:
        print(f"wandb could not start ({error}): metrics go to metrics.jsonl only", file=sys.stderr)
        return None
    run.define_metric("images_seen")
    run.define_metric("*", step_metric="images_seen")
    return run
