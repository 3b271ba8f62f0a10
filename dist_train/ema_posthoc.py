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
from models.snapshot import (
    Snapshot,
    SnapshotError,
    describe_mismatch,
    read_snapshot,
    write_snapshot,
)

MAX_BINS = 8192
"""Longer runs are described by so many bins of equal numbers of steps."""


MAX_ERROR = 0.1
"""Relative error of a profile above which an average is another one than was asked for."""


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
    parser.add_argument(
        "--max-error",
        type=float,
        default=MAX_ERROR,
        help="largest relative difference of the profile to accept (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="directory to write (default: in RUN/ema)")
    parser.set_defaults(run_command=reconstruct_command)


def reconstruct_command(options: argparse.Namespace) -> int:
    """Write the snapshot of an average that was not tracked; returns the exit code.

    Raises:
        ConfigError: The run has not stored enough averages, or none of the wanted time.
        SnapshotError: A stored average is damaged, not finite, or not what its place says.
    """
    config = read_run_config(options.run)
    stored = find_stored(options.run, config)
    target = _target(options)
    at = options.at if options.at is not None else max((s.images_seen for s in stored), default=0)
    basis = [s for s in stored if 0 < s.images_seen <= at]
    if not any(s.images_seen == at for s in basis):
        raise ConfigError(f"{options.run} has stored no average at {at:,} images; see --at")
    profiles = _Basis(basis, at, config.global_batch_size)
    coefficients, error = profiles.solve(target)
    if error > options.max_error:
        raise ConfigError(
            f"{target.describe()} at {at:,} images differs by {error:.2%} from what the"
            f" {len(basis)} stored averages can give, above --max-error {options.max_error:g};"
            f" possible are {describe_possible(target, profiles, options.max_error)};"
            " raise --max-error to accept the difference"
        )
    template = _checked(basis[-1])
    out = options.out or options.run / "ema" / f"posthoc_{target.describe()}".replace(" ", "_")
    write_snapshot(
        out / f"{at:012d}",
        combine(basis, coefficients),
        objective=template.objective,
        network=template.network,
        images_seen=at,
        ema=f"{target.describe()}, reconstructed",
        provenance={
            **template.provenance,
            "reconstruction_error": error,
            "reconstructed_from": len(basis),
        },
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
            if file.parent.name.isdecimal()
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
    """Return the basis' coefficients, which sum to 1, and the relative error of the profile.

    Each stored average counts the weights of all steps and the initial ones by 1 in total, and so
    does the combination: the least squares are those under this constraint. (Without it a poor
    basis gives a sum below 1, which scales all weights of the network.)
    """
    return _Basis(basis, at, batch).solve(target)


class _Basis:
    """Profiles of stored averages as the columns of a matrix.

    Args:
        basis: The averages.
        at: Images seen at the end of the wanted one.
        batch: Images per step.
    """

    def __init__(self, basis: Sequence[Stored], at: int, batch: int) -> None:
        self._at, self._batch = at, batch
        columns = [self._column(stored.profile, stored.images_seen) for stored in basis]
        self._matrix = np.stack(columns, axis=1)

    def solve(self, target: EmaProfile) -> tuple[NDArray[np.float64], float]:
        """Return what the function `solve` does."""
        wanted, columns = self._column(target, self._at), self._matrix.shape[1]
        even = np.full(columns, 1 / columns)
        # An orthonormal basis of the directions that keep the sum.
        free = np.linalg.svd(np.ones((1, columns)))[2][1:].T
        rest = wanted - self._matrix @ even
        moved = np.linalg.lstsq(self._matrix @ free, rest, rcond=1e-10)[0]
        coefficients: NDArray[np.float64] = even + free @ moved
        error = np.linalg.norm(self._matrix @ coefficients - wanted) / np.linalg.norm(wanted)
        return coefficients, float(error)

    def _column(self, profile: EmaProfile, images_seen: int) -> NDArray[np.float64]:
        steps = self._at // self._batch
        weights = profile_weights(profile, images_seen, steps, self._batch)
        return _binned(np.append(1 - weights.sum(), weights))  # what the initial weights count


def describe_possible(target: EmaProfile, basis: _Basis, limit: float) -> str:
    """Say which averages of the wanted kind the stored ones give within an error."""
    kind, candidates = _candidates(target)
    within = [value for value, profile in candidates if basis.solve(profile)[1] <= limit]
    return f"{kind} {', '.join(f'{value:g}' for value in within)}" if within else f"no {kind}"


def _candidates(target: EmaProfile) -> tuple[str, list[tuple[float, EmaProfile]]]:
    """Return the option of a kind of average, and some values of it."""
    if isinstance(target, PowerEma):
        widths = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.12, 0.15, 0.2, 0.25)
        return "--relative-width", [(w, PowerEma(relative_width=w)) for w in widths]
    if isinstance(target, ConstantEma):
        decays = (0.9, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99995, 0.99999)
        return "--decay", [(d, ConstantEma(decay=d)) for d in decays]
    lengths = [target.halflife_images * factor for factor in (0.01, 0.03, 0.1, 0.3, 3, 10, 30, 100)]
    halves = [(n, HalflifeEma(halflife_images=round(n))) for n in lengths if n >= 1]
    return "--halflife-images", [(float(n), profile) for n, profile in halves]


def combine(basis: Sequence[Stored], coefficients: NDArray[np.float64]) -> dict[str, Tensor]:
    """Return the combination of stored averages, summed in float64, one in memory at a time.

    Raises:
        SnapshotError: One is not what its place says, or its weights are damaged or not finite.
    """
    total: dict[str, Tensor] = {}
    for stored, coefficient in zip(basis, coefficients, strict=True):
        weights = _checked(stored).load_weights()
        if total and (problem := describe_mismatch(total, weights)):
            raise SnapshotError(
                f"{stored.path} is of another network than {basis[0].path}: {problem}"
            )
        for name, values in weights.items():
            scaled = values.to(torch.float64) * float(coefficient)
            total[name] = total[name] + scaled if name in total else scaled
    return {name: values.to(torch.float32) for name, values in total.items()}


def _checked(stored: Stored) -> Snapshot:
    """Return a stored average after comparing it with its place in the run."""
    snapshot = read_snapshot(stored.path)
    found = f"{snapshot.ema} at {snapshot.images_seen} images"
    expected = f"{stored.profile.describe()} at {stored.images_seen} images"
    if found != expected:
        raise SnapshotError(
            f"{stored.path} is the average {found}, expected {expected}: it was moved or replaced;"
            " put back what the run wrote"
        )
    return snapshot


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
