"""The metrics by name: what each needs, and how its value is called in results.

A metric is asked for as `kind` or `kind:tap`, e.g. `fd:block4`. Values are named by what they are:
`fid` only for the pool features of the FID Inception, else by extractor and tap.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dist_train.distributed import World
from evaluation.frechet import frechet
from evaluation.statistics import FeatureSet

Values = dict[str, float]


@dataclass(frozen=True)
class MetricRequest:
    """One metric of one tap.

    Attributes:
        kind: One of KINDS.
        tap: Feature tap; must be one that the detector has.
    """

    kind: str
    tap: str

    def name(self, detector: str) -> str:
        """Return the name in results."""
        known = FIELD_NAMES.get((detector, self.kind, self.tap))
        return known or f"{self.kind}_{detector}_{self.tap}"

    def compute(self, gen: FeatureSet, ref: FeatureSet, world: World) -> dict[str, Any]:
        """Return values, sizes and time. All ranks must call it; all get the result."""
        started = time.monotonic()
        values = KINDS[self.kind](gen, ref, self.tap, world)
        n_ref = ref.n
        seconds = round(time.monotonic() - started, 3)
        return {
            "values": values,
            "tap": self.tap,
            "n_gen": gen.n,
            "n_ref": n_ref,
            "seconds": seconds,
        }


def parse_request(text: str, taps: list[str]) -> MetricRequest:
    """Parse `kind` or `kind:tap`; the tap defaults to the detector's first.

    Raises:
        ValueError: The kind or the tap is unknown.
    """
    kind, _, tap = text.partition(":")
    if kind not in KINDS:
        raise ValueError(f"metric {kind!r} is not one of {', '.join(KINDS)}")
    tap = tap or taps[0]
    if tap not in taps:
        raise ValueError(f"metric {text!r}: the detector has the taps {', '.join(taps)}")
    return MetricRequest(kind, tap)


def _fd(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    value = frechet(gen, ref, tap) if world.rank == 0 else None
    return {"distance": world.broadcast_object(value)}


Compute = Callable[[FeatureSet, FeatureSet, str, World], Values]

KINDS: dict[str, Compute] = {
    "fd": _fd,
}

FIELD_NAMES = {
    ("inception", "fd", "pool"): "fid",
    ("inception", "fd", "spatial"): "sfid",
    ("dinov2", "fd", "cls"): "fd_dinov2",
}

DEFAULT_METRICS = {
    "effnet_lite0": ("fd:block4", "fd:block10", "fd:block15", "fd:head"),
}
