"""What a run leaves for others: snapshots of its averages, and grids of samples drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data_pipelines.pipeline import DatasetInfo
from dist_train.config import RunConfig
from dist_train.distributed import World
from dist_train.ema import ShardedEma
from models.rdm.objective import RelayConfig
from models.sampler import sample
from models.snapshot import load_sampler, read_snapshot, write_snapshot


class SnapshotWriter:
    """Writes `snapshots/IMAGES`, `ema/NAME/IMAGES` for the other averages, and `grids/IMAGES.png`.

    Args:
        config: The run's configuration.
        run_dir: The run folder.
        world: The process group.
        data: The training set.
        on_snapshot: Called on rank 0 with the path of every snapshot of the main average.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        world: World,
        data: DatasetInfo,
        on_snapshot: Callable[[Path], None] | None,
    ) -> None:
        self._config, self._run_dir, self._world = config, run_dir, world
        self._provenance = {
            "run": run_dir.name,
            "recipe": config.recipe,
            "dataset_digest": data.digest,
            "class_names": list(data.class_names),
            "torch": torch.__version__,
        }
        self._on_snapshot = on_snapshot

    def write(
        self, images_seen: int, emas: Mapping[str, ShardedEma], shapes: Mapping[str, torch.Size]
    ) -> None:
        """Write what is not there yet. Collective.

        Args:
            images_seen: The clock.
            emas: All averages by name; "ema" is the main one.
            shapes: Shape by name of the sampled network's parameters.
        """
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
                self._draw_grid(path)

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

    def _draw_grid(self, path: Path) -> None:
        """Draw the same seeds as ever from a new snapshot, each rank its share of them."""
        config, world = self._config, self._world
        relay = isinstance(config.objective, RelayConfig)
        if not config.grid_seeds or (relay and config.grid_previous is None):
            return
        stages = [Path(config.grid_previous)] if relay and config.grid_previous else []
        sampler = load_sampler([read_snapshot(stage) for stage in [*stages, path]], world.device)
        mine = range(world.rank, config.grid_seeds, world.size)
        images = {seed: sample(sampler, [seed])[0].cpu() for seed in mine}
        parts = world.gather_objects(images)
        if world.rank == 0:
            drawn = {seed: image for part in parts for seed, image in part.items()}
            file = self._run_dir / "grids" / f"{path.name}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(tile([drawn[seed] for seed in sorted(drawn)]).numpy()).save(file)


def tile(images: list[Tensor]) -> Tensor:
    """Lay out uint8 images [3, H, W] row by row in a near-square grid, [rows H, columns W, 3]."""
    columns = max(round(len(images) ** 0.5), 1)
    rows = -(-len(images) // columns)
    blank = torch.zeros_like(images[0])
    padded = images + [blank] * (rows * columns - len(images))
    lines = [torch.cat(padded[r * columns : (r + 1) * columns], 2) for r in range(rows)]
    return torch.cat(lines, 1).permute(1, 2, 0).contiguous()
