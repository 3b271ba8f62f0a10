"""Make the committed WaveDiff goldens: `python -m tests.trim_goldens_wavediff FROM TO`.

Whole cases are left out; what stays is copied unchanged.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

DROPPED = {
    "dwt_a.npz": None,
    "diffusion_coeffs.npz": None,
    "qsample_posterior.npz": r"c1_.*",
    "sampling_loop.npz": r"c1_.*",
    "patchify.npz": r"c0_.*",
    "ema_lr.npz": r"(ema1|lr0)_.*",
    "init_stats.npz": r"[GD]_celeba_256/.*",
    "blocks.npz": r"(adagn|wres_diff|res_down|res_oneadagn|wres_same|attn_rescale0)/.*",
    "gen_wavelet_ablations.npz": r"c[12]/.*",
    "gen_variants.npz": r"c[12345]/.*",
    "disc_small.npz": r"c[01]/.*",
    "train_wavelet_small.npz": r".*(/grad/.*|params_after_flat.*)|(ep\d+|it[23]|final)/.*",
}  # file: names to leave out


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, dropped in DROPPED.items():
        with np.load(source / name, allow_pickle=False) as file:
            kept = {n: file[n] for n in file.files if not dropped or not re.fullmatch(dropped, n)}
        np.savez_compressed(target / name, **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
