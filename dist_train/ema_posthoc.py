"""`relaywave train ema RUN`: averages of other lengths, made after training.

An average is a weighted sum of the weights at all steps; its weights over time are its profile. The
averages that a run stored at intervals are a basis: any other profile is approximated by the
combination that is nearest to it in the least-squares sense, and the same combination of the stored
weights is the wanted average (Karras et al., "Analyzing and improving the training dynamics of
diffusion models", section 3.2). Profiles are computed exactly, step by step, from the run's own
schedule, so that nothing assumes continuous time or power functions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_train.config import RunConfig
from dist_train.ema import MAIN
from dist_train.ema_profiles import ConstantEma, EmaProfile, HalflifeEma, PowerEma
from dist_train.runtime.run_dir import read_run_config
from models.config_io import ConfigError
from models.snapshot import read_snapshot, write_snapshot

MAX_BINS = 8192
"""Longer runs are described by so many bins of equal numbers of steps."""


class Stored(NamedTuple):
    """A stored average: where it is, its profile, and when it was stored."""

    path: Path
    profile: EmaProfile
    images_seen: int


def add_ema(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ema`."""
    parser.description = (
        "Reconstruct an average of another length from those that a run has stored. The"
        " run must store two power profiles from its start:"
        ' ema.short={"type": "PowerEma", "relative_width": 0.05} ema.long=...'
    )
    parser.add_argument("run", type=Path, help="directory of the run")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--relative-width", type=float, help="width of a power profile, e.g. 0.07")
    kind.add_argument("--decay", type=float, help="decay of a constant profile, e.g. 0.9999")
    kind.add_argument("--halflife-images", type=int, help="half-life of a profile with ramp-up")
    parser.add_argument("--at", type=int, help="images seen at its end (default: the newest)")
    parser.add_argument("--out", type=Path, help="directory to write (default: in RUN/ema)")
    parser.set_defaults(run_command=reconstruct_command)


def reconstruct_command(options: argparse.Namespace) -> int:
    """Write the snapshot of an average that was not tracked; returns the exit code.

    Raises:
        ConfigError: The run has not stored enough averages, or none of the wanted time.
    """
    config = read_run_config(options.run)
    stored = find_stored(options.run, config)
    target = _target(options)
    at = options.at if options.at is not None else max((s.images_seen for s in stored), default=0)
    basis = [s for s in stored if 0 < s.images_seen <= at]
    if not any(s.images_seen == at for s in basis):
        raise ConfigError(f"{options.run} has stored no average at {at:,} images; see --at")
    coefficients, error = solve(target, at, basis, config.global_batch_size)
    template = read_snapshot(basis[-1].path)
    out = options.out or options.run / "ema" / f"posthoc_{target.describe()}".replace(" ", "_")
    write_snapshot(
        out / f"{at:012d}",
        combine(basis, coefficients),
        objective=template.objective,
        network=template.network,
        images_seen=at,
        ema=f"{target.describe()}, reconstructed",
        provenance={**template.provenance, "reconstruction_error": error},
    )
    print(f"{out / f'{at:012d}'}: {target.describe()} from {len(basis)} stored averages")
    print(f"its profile differs from the wanted one by {error:.2%}")
    return 0


def find_stored(run_dir: Path, config: RunConfig) -> list[Stored]:
    """Return all averages that the run has stored, oldest first."""
    parents = {
        "snapshots" if name == MAIN else f"ema/{name}": profile
        for name, profile in config.ema.items()
    }
    return sorted(
        (
            Stored(file.parent, profile, int(file.parent.name))
            for parent, profile in parents.items()
            for file in run_dir.glob(f"{parent}/[0-9]*/snapshot.json")
        ),
        key=lambda stored: (stored.images_seen, str(stored.path)),
    )


def profile_weights(
    profile: EmaProfile, images_seen: int, steps: int, batch: int
) -> NDArray[np.float64]:
    """Return how much the weights after each of the first `steps` steps count.

    The entries after `images_seen` are 0; they sum to 1, less what the initial weights count.

    Args:
        profile: Of the average.
        images_seen: When the average was stored.
        steps: Length of the result.
        batch: Images per step.
    """
    taken = images_seen // batch
    betas = np.array([profile.beta(step * batch, batch) for step in range(taken)])
    # The weight of step s is (1 - beta_s) times all later betas.
    later = np.append(np.cumprod(betas[:0:-1])[::-1], 1.0)
    return np.pad((1 - betas) * later, (0, steps - taken))


def solve(
    target: EmaProfile, at: int, basis: Sequence[Stored], batch: int
) -> tuple[NDArray[np.float64], float]:
    """Return the basis' coefficients, and the relative error of the combined profile."""
    steps = at // batch
    columns = [profile_weights(s.profile, s.images_seen, steps, batch) for s in basis]
    wanted = _binned(profile_weights(target, at, steps, batch))
    matrix = np.stack([_binned(column) for column in columns], axis=1)
    coefficients = np.linalg.lstsq(matrix, wanted, rcond=1e-10)[0].astype(np.float64)
    error = np.linalg.norm(matrix @ coefficients - wanted) / np.linalg.norm(wanted)
    return coefficients, float(error)


def combine(basis: Sequence[Stored], coefficients: NDArray[np.float64]) -> dict[str, Tensor]:
    """Return the combination of stored averages, summed in float64, one in memory at a time."""
    total: dict[str, Tensor] = {}
    for stored, coefficient in zip(basis, coefficients, strict=True):
        for name, weights in read_snapshot(stored.path).load_weights().items():
            scaled = weights.to(torch.float64) * float(coefficient)
            total[name] = total[name] + scaled if name in total else scaled
    return {name: values.to(torch.float32) for name, values in total.items()}


def _binned(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sums over bins of steps, scaled such that norms stay comparable."""
    width = -(-len(weights) // MAX_BINS)
    padded = np.pad(weights, (0, -len(weights) % width))
    sums: NDArray[np.float64] = padded.reshape(-1, width).sum(1) / width**0.5
    return sums


def _target(options: argparse.Namespace) -> EmaProfile:
    if options.relative_width is not None:
        return PowerEma(relative_width=options.relative_width)
    if options.decay is not None:
        return ConstantEma(decay=options.decay)
    return HalflifeEma(halflife_images=options.halflife_images)
