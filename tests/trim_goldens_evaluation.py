"""Cut a full set of evaluation goldens to the committed subset.

    python tests/trim_goldens_evaluation.py FULL/evaluation tests/goldens/evaluation

Left out: the sets that cross a block size, the large images of the network and resize files.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

RESIZED_IMAGES = ("image0", "image1", "image3")
NETWORK_IMAGES = 2


def keep(file: str, name: str, array: np.ndarray) -> np.ndarray | None:
    """Return what the subset holds of an array, None for nothing."""
    if name.startswith(("pr_ref", "pr_gen", "pr_blocks")):
        return None
    if file == "resize.npz" and name.startswith("image"):
        return array if name.split("_")[0] in RESIZED_IMAGES else None
    if file == "network.npz":
        if name.startswith("image"):
            return array if int(name[5:]) < NETWORK_IMAGES else None
        if "_f32_" in name or "_f64_" in name:
            return array[:NETWORK_IMAGES]
    return array


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "README.md", target / "README.md")
    for path in sorted(source.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            kept = {name: keep(path.name, name, file[name]) for name in file.files}
        arrays = {name: array for name, array in kept.items() if array is not None}
        np.savez_compressed(target / path.name, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
