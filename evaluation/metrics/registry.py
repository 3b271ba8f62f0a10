"""The metrics by name: what each computes, and how its value is called in results.

A metric is requested as `kind` or `kind:tap`, e.g. `fd:block4`. Values are named by what they are:
`fid` only for the pool features of the FID Inception with the published weights, by their digest;
else by kind, detector and tap, e.g. `fd_inception-1a2b3c4d_pool` of other weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector
from evaluation.metrics.bootstrap import RESAMPLED, interval
from evaluation.metrics.extrapolate import limit, smallest_subset
from evaluation.metrics.fd_per_class import per_class_distances
from evaluation.metrics.frechet import frechet, frechet_distance
from evaluation.metrics.inception_score import (
    chunk_splits,
    contiguous_splits,
    mean_score,
    split_scores,
)
from evaluation.metrics.kid_cmmd import cmmd, kid, kid_subsets
from evaluation.metrics.mind import mind
from evaluation.metrics.precision_recall import (
    PR_NEIGHBOURS,
    PRDC_NEIGHBOURS,
    adm_distance,
    half_precision_recall,
    manifold_scores,
    stylegan_distance,
)
from evaluation.metrics.statistics import FeatureSet, FloatArray, gaussian_of
from models.plugins import Registry

SHUFFLE_SEED = 2020
"""Of the order in which the Inception Score splits images; torch-fidelity's."""

Values = dict[str, float]
Compute = Callable[[FeatureSet, FeatureSet, str, World], Values]


@dataclass(frozen=True)
class MetricSettings:
    """Which metrics are computed.

    Attributes:
        names: Each `kind` or `kind:tap`; empty takes the detector's defaults.
        bootstrap: Resamples for 95 % intervals, 0 for none.
    """

    names: tuple[str, ...] = ()
    bootstrap: int = 0

    def requests(self, detector: Detector) -> dict[str, MetricRequest]:
        """Return the metrics of a detector by their names in results.

        Raises:
            ValueError: One is unknown, or of a tap that the detector lacks.
        """
        taps = list(detector.widths)
        names = self.names or detector.default_metrics
        requests = [parse_request(text, taps, self.bootstrap) for text in names]
        return {request.name(detector.label): request for request in requests}


@dataclass(frozen=True)
class MetricRequest:
    """One metric of one tap.

    Attributes:
        kind: One of METRICS.
        tap: Feature tap; must be one that the detector has.
        bootstrap: Resamples for a 95 % interval of the first value, 0 for none; only for kinds of
            RESAMPLED.
    """

    kind: str
    tap: str
    bootstrap: int = 0

    def name(self, detector: str) -> str:
        """Return the name in results.

        Args:
            detector: Its label (`Detector.label`): only known weights have names of the field.
        """
        known = FIELD_NAMES.get((detector, self.kind, self.tap))
        return known or f"{self.kind}_{detector}_{self.tap}"

    def compute(self, gen: FeatureSet, ref: FeatureSet, world: World) -> dict[str, Any]:
        """Return values, sizes and time. All ranks must call it; all get the result.

        Args:
            gen: Generated set.
            ref: Reference set.
            world: The ranks.
        """
        started = time.monotonic()
        kind = METRICS[self.kind]
        values = kind.compute(gen, ref, self.tap, world)
        result: dict[str, Any] = {
            "values": values,
            "tap": self.tap,
            "n_gen": self._size(gen, kind.generated),
            "n_ref": self._size(ref, kind.reference),
        }
        if self.bootstrap and self.kind in RESAMPLED:
            result["interval95"] = self._interval(gen, ref, world, values)
        return result | {"seconds": round(time.monotonic() - started, 3)}

    @property
    def takes_reference(self) -> bool:
        """Whether the value depends on a reference."""
        return METRICS[self.kind].reference != "none"

    def check_reference(self, ref: FeatureSet) -> None:
        """Raise ValueError if a reference lacks what the metric takes of it."""
        takes = METRICS[self.kind].reference
        if takes == "moments":
            ref.gaussian(self.tap)
        elif takes == "features":
            ref.rows(self.tap)
        if METRICS[self.kind].classes and ref.labels is None:
            raise ValueError(
                f"{self.kind} needs the classes of the reference's images, which"
                f" {ref.meta.get('source', 'it')} does not have"
            )

    def _size(self, images: FeatureSet, takes: str) -> int | None:
        """Return how many images of a set the value rests on (null: none, or not recorded).

        Moments are of all images; features, in large sets, only of the selected ones.
        """
        if takes == "moments":
            return images.gaussians[self.tap].n if self.tap in images.gaussians else None
        has_rows = takes != "none" and self.tap in images.features
        return len(images.features[self.tap]) if has_rows else None

    def _interval(
        self, gen: FeatureSet, ref: FeatureSet, world: World, values: Values
    ) -> list[float]:
        rows, statistic = RESAMPLED[self.kind](gen, ref, self.tap, world)
        value = next(iter(values.values()))
        return list(interval(statistic, rows, value, count=self.bootstrap, world=world))


def name_by(field_name: str, label: str) -> str:
    """Return the name that a metric such as `fid` has with weights that are not the published."""
    names = {name: (kind, tap) for (_, kind, tap), name in FIELD_NAMES.items()}
    kind, tap = names[field_name]
    return f"{kind}_{label}_{tap}"


def parse_request(text: str, taps: list[str], bootstrap: int = 0) -> MetricRequest:
    """Parse `kind` or `kind:tap`; the tap defaults to the detector's first.

    Raises:
        ValueError: The kind or the tap is unknown.
    """
    kind, _, tap = text.partition(":")
    if kind not in METRICS:
        raise ValueError(METRICS.unknown(kind))
    tap = tap or taps[0]
    if tap not in taps:
        raise ValueError(f"metric {text!r}: the detector has the taps {', '.join(taps)}")
    return MetricRequest(kind, tap, bootstrap)


def _on_rank_0(compute: Callable[[], Values], world: World) -> Values:
    values: Values = world.broadcast_object(compute() if world.rank == 0 else None)
    return values


def _fd(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    return _on_rank_0(lambda: {"distance": frechet(gen, ref, tap, world.device)}, world)


def _fd_biased(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    a, b = gen.gaussian(tap).biased(), ref.gaussian(tap).biased()
    return _on_rank_0(lambda: {"distance": frechet_distance(a, b, world.device)}, world)


def _fd_infinity(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    rows, gaussian, device = gen.rows(tap), ref.gaussian(tap), world.device

    def distance(subset: FloatArray) -> float:
        return frechet_distance(gaussian_of(subset, device), gaussian, device)

    return _at_infinity("distance", distance, rows, world)


def _is_infinity(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    del ref
    return _at_infinity("score", lambda subset: mean_score(subset, 1), gen.rows(tap), world)


def _at_infinity(
    name: str, statistic: Callable[[FloatArray], float], rows: FloatArray, world: World
) -> Values:
    start = smallest_subset(len(rows))
    intercept, slope = limit(statistic, rows, start=start, world=world)
    return {name: intercept, "slope": slope}


def _is(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    del ref, world
    logits = _complete_rows(gen, tap)
    order = np.random.RandomState(SHUFFLE_SEED).permutation(len(logits))  # classes may be in order
    scores = split_scores(logits[order], contiguous_splits(len(logits)))
    return {"score": float(scores.mean()), "std": float(scores.std())}


def _is_chunks(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    del ref, world
    logits = _complete_rows(gen, tap)
    return {"score": float(split_scores(logits, chunk_splits(len(logits))).mean())}


def _complete_rows(gen: FeatureSet, tap: str) -> FloatArray:
    """Return the features of all images: splits in order of index mean nothing in a selection."""
    rows = gen.rows(tap)
    if not gen.is_complete(tap):
        raise ValueError(
            f"the Inception Score needs the logits of all {gen.n} images; of so large a set only"
            f" {len(rows)} are stored: give fewer seeds, or compute is_inf, which takes a subset"
        )
    return rows


def _pr(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    scores = manifold_scores(gen.rows(tap), ref.rows(tap), PR_NEIGHBOURS, world)
    return {"precision": scores.precision, "recall": scores.recall}


def _prdc(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    return asdict(manifold_scores(gen.rows(tap), ref.rows(tap), PRDC_NEIGHBOURS, world))


def _pr_half(distance: Callable[..., Any]) -> Compute:
    def compute(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
        x, y = gen.rows(tap), ref.rows(tap)
        precision, recall = half_precision_recall(x, y, PR_NEIGHBOURS, distance, world)
        return {"precision": precision, "recall": recall}

    return compute


def _kid(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    return {"distance": kid(gen.rows(tap), ref.rows(tap), world)}


def _kid_subsets(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    values = kid_subsets(gen.rows(tap), ref.rows(tap), size=1000, cut_size=True, world=world)
    return {"distance": float(values.mean()), "std": float(values.std())}


def _cmmd(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    return {"distance": cmmd(gen.rows(tap), ref.rows(tap), world)}


def _mind(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    x, y, device = gen.rows(tap), ref.rows(tap), world.device
    return _on_rank_0(lambda: {"distance": mind(x, y, device=device)}, world)


def _fd_per_class(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> Values:
    return per_class_distances(gen, ref, tap, world)


@dataclass(frozen=True)
class Kind:
    """A kind of metric.

    Attributes:
        compute: Returns the values; all ranks call it.
        generated: What it takes of the generated set: `moments`, the `features` of any of its
            images, or of `all` of them.
        reference: What it takes of the reference: `none`, `moments` or `features`.
        classes: Whether it takes the classes of both sets' images.
        values: Names of what it returns, in order; empty if they depend on the images.
        highest: Whether more of the first value is better.
    """

    compute: Compute
    generated: Literal["moments", "features", "all"] = "features"
    reference: Literal["none", "moments", "features"] = "features"
    classes: bool = False
    values: tuple[str, ...] = ()
    highest: bool = False


DISTANCE, SCORE = ("distance",), ("score",)
PRECISION_RECALL = ("precision", "recall")

METRICS: Registry[Kind] = Registry("metric", Kind, {
    "fd": Kind(_fd, "moments", "moments", values=DISTANCE),
    "fd_biased": Kind(_fd_biased, "moments", "moments", values=DISTANCE),
    "fd_inf": Kind(_fd_infinity, "features", "moments", values=(*DISTANCE, "slope")),
    "fd_per_class": Kind(_fd_per_class, "features", "features", classes=True),
    "is": Kind(_is, "all", "none", values=(*SCORE, "std"), highest=True),
    "is_inf": Kind(_is_infinity, "features", "none", values=(*SCORE, "slope"), highest=True),
    "is_chunks": Kind(_is_chunks, "all", "none", values=SCORE, highest=True),
    "pr": Kind(_pr, values=PRECISION_RECALL, highest=True),
    "pr_adm": Kind(_pr_half(adm_distance), values=PRECISION_RECALL, highest=True),
    "pr_stylegan": Kind(_pr_half(stylegan_distance), values=PRECISION_RECALL, highest=True),
    "prdc": Kind(_prdc, values=(*PRECISION_RECALL, "density", "coverage"), highest=True),
    "kid": Kind(_kid, values=DISTANCE),
    "kid_subsets": Kind(_kid_subsets, values=(*DISTANCE, "std")),
    "cmmd": Kind(_cmmd, values=DISTANCE),
    "mind": Kind(_mind, values=DISTANCE),
})  # fmt: skip

FIELD_NAMES = {
    ("inception", "fd", "pool"): "fid",
    ("inception", "fd_biased", "pool"): "fid_biased",
    ("inception", "fd_inf", "pool"): "fid_inf",
    ("inception", "fd", "spatial"): "sfid",
    ("inception", "is", "logits_unbiased"): "is",
    ("inception", "is_inf", "logits_unbiased"): "is_inf",
    ("inception", "is_chunks", "logits_unbiased"): "is_chunks",
    ("inception", "is_chunks", "logits"): "is_chunks_biased_logits",
    ("inception", "pr", "pool"): "pr",
    ("inception", "pr_adm", "pool"): "pr_adm",
    ("inception", "prdc", "pool"): "prdc",
    ("inception", "kid", "pool"): "kid",
    ("inception", "kid_subsets", "pool"): "kid_subsets",
    ("dinov2", "fd", "cls"): "fd_dinov2",
    ("dinov2", "fd_inf", "cls"): "fd_dinov2_inf",
    ("dinov2", "prdc", "cls"): "prdc_dinov2",
    ("clip", "cmmd", "embedding"): "cmmd",
    ("vgg16", "pr_stylegan", "features"): "pr_vgg16_stylegan",
}
