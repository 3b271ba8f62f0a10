"""Directories that commands of the Slurm layer are tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dist_train.recipes import find_recipe
from dist_train.runtime.run_dir import settle_config
from models.config_io import override
from models.snapshot import write_snapshot


def make_run(run_dir: Path, *overrides: str, recipe: str = "rdm_debug_edm16") -> Path:
    """Make a run directory of a recipe with one snapshot, at 8 images."""
    config = override(find_recipe(recipe)(), overrides)
    settle_config(run_dir, config)
    objective = config.objective.build()
    weights = objective.build_networks()[objective.sampled_network].state_dict()
    write_snapshot(
        run_dir / "snapshots" / f"{8:012d}", weights, objective=config.objective,
        network=objective.sampled_network, images_seen=8, ema="", provenance={},
    )  # fmt: skip
    return run_dir


def make_reference(path: Path) -> None:
    """Write a batch of images that can be evaluated against."""
    np.savez(path, np.zeros((4, 16, 16, 3), np.uint8))


def make_foreign_modules(directory: Path) -> Path:
    """Make a directory with modules of somebody else's that are called as ours; none may run."""
    for name in ("models/__init__.py", "evaluation/__init__.py", "slurm.py"):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise RuntimeError('the foreign {name} was imported')\n")
    return directory
