"""What a run leaves for others: snapshots of its averages, and grids of samples from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.pipeline import ImagePipeline
from dist_train.config import RunConfig
from dist_train.distributed import World
from dist_train.ema import ShardedEma
from dist_train.grids import GridDrawer
from models.snapshot import write_snapshot


class SnapshotWriter:
    """Writes `snapshots/IMAGES`, `ema/NAME/IMAGES` for the other averages, and `grids/IMAGES.png`.

    Args:
        config: The run's configuration.
        run_dir: The run folder.
        world: The process group.
        pipeline: The training set.
        on_snapshot: Called on rank 0 with the path of every snapshot of the main average.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        world: World,
        pipeline: ImagePipeline,
        on_snapshot: Callable[[Path], None] | None,
    ) -> None:
        self._config, self._run_dir, self._world = config, run_dir, world
        self._provenance = {
            "run": run_dir.name,
            "recipe": config.recipe,
            "dataset_digest": pipeline.info.digest,
            "class_names": list(pipeline.info.class_names),
            "torch": torch.__version__,
        }
        self._on_snapshot = on_snapshot
        self._grids = GridDrawer(config, run_dir, world, pipeline)

    def write(
        self, images_seen: int, emas: Mapping[str, ShardedEma], shapes: Mapping[str, torch.Size]
    ) -> Path | None:
        """Write what is not there yet; returns the new grid on rank 0, if any. Collective.

        Args:
            images_seen: The clock.
            emas: All averages by name; "ema" is the main one.
            shapes: Shape by name of the sampled network's parameters.
        """
        grid = None
        for name, ema in emas.items():
            folder = "snapshots" if name == "ema" else f"ema/{name}"
            path = self._run_dir / folder / f"{images_seen:012d}"
            if self._world.broadcast_object((path / "snapshot.json").exists()):
                continue
            weights = ema.gather(shapes, self._world)
            if self._world.rank == 0:
                self._write_one(path, weights, images_seen, ema)
            self._world.barrier()
            if name == "ema":
                grid = self._grids.draw(path)
        return grid

    def _write_one(
        self, path: Path, weights: Mapping[str, Tensor], images_seen: int, ema: ShardedEma
    ) -> None:
        write_snapshot(
            path,
            weights,
            objective=self._config.objective,
            network=self._config.objective.build().sampled_network,
            images_seen=images_seen,
            ema=ema.profile.describe(),
            provenance=self._provenance,
        )
        if self._on_snapshot is not None and path.parent.name == "snapshots":
            self._on_snapshot(path)
