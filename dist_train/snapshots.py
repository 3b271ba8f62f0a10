"""What a run leaves for others: snapshots of its averages, and grids of samples from them."""

from __future__ import annotations

import logging as python_logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from data_pipelines.packed.manifest import DatasetInfo
from data_pipelines.pipeline import ImagePipeline
from dist_train.checkpoint.format import CheckpointError, StorageError
from dist_train.config import ComputeConfig, LoggingConfig
from dist_train.ema import MAIN, ShardedEma
from dist_train.runtime.run_dir import RunDirError
from dist_train.runtime.world import World
from models.config_io import to_json
from models.families import AnyObjective
from models.objective import images_to_unit_range
from models.rdm.config import RelayConfig
from models.safe_files.atomic import NotOurs, atomic_file
from models.safe_files.transient import STORAGE, retried
from models.sample_rng import Draws
from models.sampler import Sampler, balanced_labels, sample
from models.snapshot import (
    SnapshotError,
    check_stages,
    load_sampler,
    read_snapshot,
    sampled_classes,
    write_snapshot,
)

logger = python_logging.getLogger(__name__)


class SnapshotWriter:
    """Writes `snapshots/IMAGES`, `ema/NAME/IMAGES` for the other averages, and `grids/IMAGES.png`.

    Args:
        objective: What is trained.
        logging: How many samples a grid has, and what a relay's start from.
        provenance: What snapshots record of the run.
        run_dir: The run directory.
        world: The process group.
        pipeline: The training set.
    """

    def __init__(
        self,
        objective: AnyObjective,
        logging: LoggingConfig,
        provenance: Mapping[str, Any],
        run_dir: Path,
        world: World,
        pipeline: ImagePipeline,
    ) -> None:
        self._objective, self._provenance = objective, dict(provenance)
        self._run_dir, self._world = run_dir, world
        self._grids = GridDrawer(objective, logging, run_dir, world, pipeline)

    def write(
        self,
        images_seen: int,
        emas: Mapping[str, ShardedEma],
        shapes: Mapping[str, torch.Size],
        *,
        required: bool = False,
    ) -> Path | None:
        """Write what is not there yet; returns the new grid on rank 0, if any. Collective.

        What cannot be written, after several attempts, is left out with a warning.

        Args:
            images_seen: The clock.
            emas: All averages by name.
            shapes: Shape by name of the sampled network's parameters.
            required: Whether nothing may be left out, as at the end of training.

        Raises:
            StorageError: What is required could not be written.
            CheckpointError: The same, because the directory holds others' files.
        """
        grid = None
        for name, ema in emas.items():
            parent = "snapshots" if name == MAIN else f"ema/{name}"
            path = self._run_dir / parent / f"{images_seen:012d}"
            if self._world.broadcast_object((path / "snapshot.json").exists()):
                continue
            weights = ema.gather(shapes, self._world)
            problem = None
            if self._world.rank == 0:
                problem = self._try_write(path, weights, images_seen, ema)
            problem = self._world.broadcast_object(problem)
            if problem is not None and required:
                raise problem
            if problem is None and name == MAIN:
                grid = self._grids.draw(path)
        return grid

    def set_aside(self, images_seen: int) -> list[str]:
        """Move aside what the run left at later times; returns what to say about it. Collective.

        See `set_aside`, of this module.

        Raises:
            RunDirError: On all ranks, if a directory cannot be moved.
        """
        note, problem = None, None
        if self._world.rank == 0:
            try:
                note = set_aside(self._run_dir, images_seen)
            except OSError as error:
                problem = f"snapshots in {self._run_dir} cannot be moved aside: {error}"
        note, problem = self._world.broadcast_object((note, problem))
        if problem is not None:
            raise RunDirError(problem)
        return [] if note is None else [note]

    def _try_write(
        self, path: Path, weights: Mapping[str, Tensor], images_seen: int, ema: ShardedEma
    ) -> CheckpointError | None:
        """Write one snapshot, and tell who wants to know; returns why it could not be written."""
        try:
            retried(
                lambda: write_snapshot(
                    path,
                    weights,
                    objective=self._objective,
                    network=self._objective.build().sampled_network,
                    images_seen=images_seen,
                    ema=ema.profile.describe(),
                    provenance=self._provenance,
                ),
                f"writing {path}",
                errors=STORAGE,
            )
        except (OSError, NotOurs, SnapshotError) as error:
            logger.warning("the snapshot %s could not be written: %s", path, error)
            kind = StorageError if isinstance(error, OSError) else CheckpointError
            return kind(f"the snapshot {path} could not be written: {error}")
        return None


def describe_run(
    run: str, recipe: str, compute: ComputeConfig, data: DatasetInfo
) -> dict[str, Any]:
    """Return what snapshots record of the run that wrote them."""
    return {
        "run": run,
        "recipe": recipe,
        "dataset_digest": data.digest,
        "class_names": list(data.class_names),
        "torch": torch.__version__,
        "compute": to_json(compute),
    }


DATED = (
    ("snapshots/*", re.compile(r"(\d{12})")),
    ("ema/*/*", re.compile(r"(\d{12})")),
    ("grids/*", re.compile(r"(\d{12})\.png")),
    ("evaluation/*", re.compile(r"(\d{12})(-.*)?")),
)
"""What a run directory holds by images seen, besides checkpoints and metrics."""


def set_aside(run_dir: Path, images_seen: int) -> str | None:
    """Move snapshots, averages, grids and results of later times to `abandoned/N` of the run.

    A run that continues at this time, after a roll-back, or because a checkpoint is older than a
    snapshot, has left them behind: they are of a branch that it may not take again (other data,
    other ranks), and an average made afterwards must not mix the two. What it does take again it
    writes again. Nothing is removed.

    Returns:
        A line that says what was moved where, None if there was nothing.

    Raises:
        OSError: They cannot be moved.
    """
    later = [
        entry
        for pattern, name in DATED
        for entry in sorted(run_dir.glob(pattern))
        if (match := name.fullmatch(entry.name)) and int(match[1]) > images_seen
    ]
    if not later:
        return None
    numbers = [int(p.name) for p in run_dir.glob("abandoned/*") if p.name.isdecimal()]
    target = run_dir / "abandoned" / str(max(numbers, default=0) + 1)
    for entry in later:
        place = target / entry.relative_to(run_dir)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(entry, place)
    names = ", ".join(str(entry.relative_to(run_dir)) for entry in later[:3])
    return (
        f"moved {len(later)} snapshots, grids and results after {images_seen:,} images to {target}"
        f" ({names}{', ...' if len(later) > 3 else ''}): training continues before them"
    )


BATCH = 16
"""Samples that a rank draws together."""


class GridDrawer:
    """Draws `grids/IMAGES.png`: sample k has the seed k, on any number of ranks.

    A relay starts from images: samples of `logging.grid_previous`, or else the first training
    images, reduced to the size of its first stage.

    Args:
        objective: What is trained.
        logging: Number of samples, and the stage before.
        run_dir: The run directory.
        world: The process group.
        pipeline: The training set.
    """

    def __init__(
        self,
        objective: AnyObjective,
        logging: LoggingConfig,
        run_dir: Path,
        world: World,
        pipeline: ImagePipeline,
    ) -> None:
        check_previous(objective, logging)
        self._world, self._count = world, logging.grid_seeds
        self._grid_dir = run_dir / "grids"
        self._stages: list[Path] = []
        self._reduced: _ReducedImages | None = None
        if isinstance(objective, RelayConfig) and self._count:
            if logging.grid_previous is not None:
                self._stages = [Path(logging.grid_previous)]
            else:
                self._reduced = _ReducedImages(objective, pipeline, self._count, world.device)

    def draw(self, snapshot: Path) -> Path | None:
        """Draw a snapshot's grid, each rank its share; returns the file on rank 0. Collective."""
        if not self._count:
            return None
        parts = self._world.gather_objects(self._try_draw(snapshot))
        if self._world.rank:
            return None
        drawn: dict[int, Tensor] = {}
        for part in parts:
            if isinstance(part, str):
                logger.warning("no grid of %s: %s", snapshot, part)
                return None
            drawn |= part
        file = self._grid_dir / f"{snapshot.name}.png"
        pixels = tile([drawn[seed] for seed in sorted(drawn)]).numpy()
        try:
            self._grid_dir.mkdir(exist_ok=True)
            with atomic_file(file) as opened:
                Image.fromarray(pixels).save(opened, format="PNG")
        except OSError as error:
            logger.warning("%s could not be written: %s", file, error)
            return None
        return file

    def _try_draw(self, snapshot: Path) -> dict[int, Tensor] | str:
        """Return this rank's samples by seed, or why the snapshot cannot be read."""
        images: dict[int, Tensor] = {}
        try:
            work = self._work(snapshot)
        except (OSError, SnapshotError) as error:
            return str(error)
        for seeds, labels, sampler in work:
            images |= dict(zip(seeds, sample(sampler, seeds, labels).cpu(), strict=True))
        return images

    def _work(self, snapshot: Path) -> list[tuple[list[int], Tensor | None, Sampler]]:
        """Return this rank's batches: seeds, labels, and the sampler that draws them."""
        if self._reduced is not None:
            last = read_snapshot(snapshot)
            network = last.load_network(self._world.device)
            return [
                (batch.seeds, batch.labels, last.objective.build_sampler(network, batch))
                for batch in self._reduced.batches()
            ]
        stages = [read_snapshot(stage) for stage in [*self._stages, snapshot]]
        sampler = load_sampler(stages, self._world.device)
        mine = list(range(self._world.rank, self._count, self._world.size))
        batches = [mine[k : k + BATCH] for k in range(0, len(mine), BATCH)]
        classes = sampled_classes(stages)
        return [(seeds, balanced_labels(seeds, classes), sampler) for seeds in batches]


def check_previous(objective: AnyObjective, logging: LoggingConfig) -> None:
    """Raise ValueError if grids cannot start from samples of `logging.grid_previous`."""
    if isinstance(objective, RelayConfig) and logging.grid_seeds and logging.grid_previous:
        stage = read_snapshot(Path(logging.grid_previous))
        check_stages([stage.objective, objective])


class _ReducedImages:
    """This rank's share of the first training images, reduced to the first stage's size."""

    def __init__(
        self, config: RelayConfig, pipeline: ImagePipeline, count: int, device: torch.device
    ) -> None:
        self._batches: list[_FixedImages] = []
        for batch in pipeline.batches(0):
            kept = [k for k, position in enumerate(batch.positions) if position < count]
            if kept:
                images = images_to_unit_range(batch.images[kept])
                self._batches.append(
                    _FixedImages(
                        functional.avg_pool2d(images, config.process.upscale).to(device),
                        [batch.positions[k] for k in kept],
                        batch.labels[kept]
                        if config.label_dim and batch.labels is not None
                        else None,
                        config.label_dim,
                    )
                )
            if max(batch.positions) >= count - 1:
                return

    def batches(self) -> list[_FixedImages]:
        return self._batches


class _FixedImages:
    """A first stage that returns these images (models.sampler.Sampler)."""

    def __init__(
        self, images: Tensor, seeds: Sequence[int], labels: Tensor | None, label_dim: int
    ) -> None:
        self.seeds, self.labels = list(seeds), labels
        self.resolution, self.label_dim = images.shape[-1], label_dim
        self.device, self.nfe = images.device, dict[str, int]()
        self._images = images

    def generate(self, draws: Draws, labels: Tensor | None = None) -> Tensor:
        """Return them."""
        del draws, labels
        return self._images


def tile(images: list[Tensor]) -> Tensor:
    """Lay out uint8 images [3, H, W] row by row in a near-square grid, [rows H, columns W, 3]."""
    columns = max(round(len(images) ** 0.5), 1)
    rows = -(-len(images) // columns)
    blank = torch.zeros_like(images[0])
    padded = images + [blank] * (rows * columns - len(images))
    lines = [torch.cat(padded[r * columns : (r + 1) * columns], 2) for r in range(rows)]
    return torch.cat(lines, 1).permute(1, 2, 0).contiguous()
