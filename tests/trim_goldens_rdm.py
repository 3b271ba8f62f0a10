"""Make the committed subset of the RDM goldens: `python -m tests.trim_goldens_rdm FROM TO`.

Whole cases are left out; what stays is copied unchanged.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

DROPPED = {
    "dct.npz": r"\w+_(a|b|d)",
    "dct_blur.npz": r"\w+_(p2|p4|p4_f64)",
    "block_noise.npz": r"(g|out)_f32\w*",
    "alpha_t.npz": None,
    "loss_edm.npz": None,
    "sampler_edm.npz": r"(churn|cfg|sde)_\w+",
    "sampler_relay.npz": r"(main|ode|cfg_rho100|celeb|cond_nocfg|celebchurn|f32lat)_\w+",
    "postprocess.npz": None,
    "seeded_noise.npz": None,
    "schedules.npz": None,
    "unet_a.npz": None,
    "augment.npz": r"(p1_big|p02)/.*",
}  # file: names to leave out


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, dropped in DROPPED.items():
        with np.load(source / name, allow_pickle=False) as file:
            kept = {n: file[n] for n in file.files if not dropped or not re.fullmatch(dropped, n)}
        np.savez_compressed(target / name, **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
