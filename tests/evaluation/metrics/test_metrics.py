"""Moments, Fréchet distances and other statistics against closed forms and scipy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector
from evaluation.features import store as store_module
from evaluation.features.batches import BatchStore, MomentStore
from evaluation.features.extract import extract
from evaluation.metrics import nearest_neighbours
from evaluation.metrics.bootstrap import interval
from evaluation.metrics.extrapolate import limit
from evaluation.metrics.fd_per_class import per_class_distances
from evaluation.metrics.frechet import (
    GRAM_SIZE,
    frechet_distance,
    frechet_of_features,
    nuclear_norm,
)
from evaluation.metrics.inception_score import chunk_splits, contiguous_splits, split_scores
from evaluation.metrics.kid_cmmd import cmmd, kid
from evaluation.metrics.mind import mind
from evaluation.metrics.precision_recall import manifold_scores
from evaluation.metrics.registry import METRICS, MetricRequest
from evaluation.metrics.statistics import (
    FeatureSet,
    Gaussian,
    Moments,
    gaussian_of,
    moments_of,
    selection_of,
    stratified,
)

CPU = torch.device("cpu")
ALONE = World(rank=0, local_rank=0, size=1, device=CPU)
RNG = np.random.default_rng(0)


def normal(n: int, dim: int, mean: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return (mean + spread * RNG.normal(size=(n, dim))).astype(np.float32)


def test_merged_moments_are_single_pass_moments() -> None:
    x = normal(500, 8, mean=1000.0)
    merged = Moments.empty(8)
    for start in range(0, 500, 77):
        merged.merge(moments_of(x[start : start + 77]))
    gaussian = merged.gaussian()
    np.testing.assert_allclose(gaussian.mu, x.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(gaussian.sigma, np.cov(x.astype(np.float64).T), rtol=1e-9)
    assert gaussian.n == 500


def test_distance_of_diagonal_gaussians_is_closed_form() -> None:
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    x, y = Gaussian(np.zeros(3), np.diag(a), 9), Gaussian(np.ones(3), np.diag(b), 9)
    expected = 3 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_distance_agrees_with_the_matrix_square_root() -> None:
    x, y = normal(400, 20), normal(300, 20, 0.1, 1.3)
    a, b = gaussian_of(x), gaussian_of(y)
    root = scipy.linalg.sqrtm(a.sigma @ b.sigma).real
    expected = np.square(a.mu - b.mu).sum() + np.trace(a.sigma + b.sigma - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_of_features(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0, 6.0])
def test_large_matrices_lose_less_than_the_stated_accuracy(decay: float) -> None:
    """Gram route or not, whatever the spectrum: compared with the singular values themselves."""
    dim = GRAM_SIZE
    scales = np.arange(1, dim + 1) ** -decay
    matrix = (RNG.normal(size=(dim, dim)) / dim**0.5) * scales[:, None] * scales
    exact = float(np.linalg.svd(matrix, compute_uv=False).sum())
    assert abs(nuclear_norm(matrix, 1e-10 * exact) - exact) <= 1e-10 * exact


def test_distance_is_exact_for_fewer_samples_than_features() -> None:
    x, y = normal(30, 100), normal(25, 100, 0.2)
    traces = np.trace(gaussian_of(x).sigma) + np.trace(gaussian_of(y).sigma)
    from_moments = frechet_distance(gaussian_of(x), gaussian_of(y))
    assert from_moments == pytest.approx(frechet_of_features(x, y), abs=1e-10 * traces)
    assert abs(frechet_of_features(x, x)) < 1e-10 * traces


@pytest.mark.parametrize(
    ("mu", "sigma", "problem"),
    [
        ([0.0, np.nan], np.eye(2), "NaN"),
        ([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]], "not symmetric"),
        ([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], "eigenvalue"),
        ([0.0, 0.0, 0.0], np.eye(2), "shapes"),
    ],
)
def test_what_is_no_covariance_is_rejected(mu: list[float], sigma: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Gaussian(np.array(mu), np.array(sigma), 10).check("file")


def test_too_few_samples_are_rejected() -> None:
    with pytest.raises(ValueError, match="1 sample"):
        gaussian_of(normal(1, 4))
    with pytest.raises(ValueError, match="too few for k=3"):
        manifold_scores(normal(3, 4), normal(10, 4))
    with pytest.raises(ValueError, match="too few"):
        kid(normal(1, 4), normal(10, 4))
    with pytest.raises(ValueError, match="dimensions"):
        manifold_scores(normal(9, 4), normal(9, 5))


def test_precision_and_recall_of_known_sets() -> None:
    ref = normal(50, 3)
    assert manifold_scores(ref, ref).precision == 1.0
    far = manifold_scores(ref + 1000, ref)
    assert (far.precision, far.recall, far.density, far.coverage) == (0.0, 0.0, 0.0, 0.0)


def test_duplicates_are_neighbours_but_a_point_is_not_its_own() -> None:
    pairs = np.repeat(normal(6, 2), 2, axis=0)  # every point has one twin at distance 0
    shifted = pairs + np.float32(1e-3)
    assert manifold_scores(shifted, pairs, k=1).precision == 0.0
    assert manifold_scores(shifted, pairs, k=2).precision == 1.0


@pytest.mark.parametrize("block", [50, 96, 256])
def test_ties_are_settled_exactly_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Points on a lattice lie on balls' surfaces all the time; integers decide what is right."""
    monkeypatch.setattr(nearest_neighbours, "BLOCK", block)
    gen, ref = (RNG.integers(0, 7, size=(n, 5)) for n in (330, 260))

    def squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(a[:, None] - b[None]).sum(2)

    k = 3
    gen_radii, ref_radii = (np.sort(squares(x, x), axis=1)[:, k] for x in (gen, ref))
    cross = squares(gen, ref)
    scores = manifold_scores(gen.astype(np.float32), ref.astype(np.float32), k)
    assert astuple(scores) == (
        (cross <= ref_radii).any(1).mean(),
        (cross <= gen_radii[:, None]).any(0).mean(),
        (cross < ref_radii).sum(1).mean() / k,
        (cross < ref_radii).any(0).mean(),
    )


def test_precision_recall_far_from_the_origin_loses_nothing() -> None:
    x, y = normal(300, 16), normal(280, 16)
    moved = manifold_scores(x.astype(np.float64) + 1e4, y.astype(np.float64) + 1e4, k=3)
    assert moved == manifold_scores(x, y, k=3)


def test_inception_score_limits() -> None:
    sure = np.eye(10)[np.arange(1000) % 10] * 100.0
    assert split_scores(sure, contiguous_splits(1000, 1))[0] == pytest.approx(10, rel=1e-12)
    assert split_scores(np.zeros((50, 10)), chunk_splits(50, 20)) == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="too few"):
        split_scores(np.zeros((5, 10)), contiguous_splits(5, 10))


def test_the_limit_of_infinitely_many_samples_takes_the_bias_away() -> None:
    line = limit(lambda rows: 5 + 3 / len(rows), normal(400, 2), start=20)
    assert line == pytest.approx((5, 3))
    with pytest.raises(ValueError, match=r"smallest subset, 1, is not in 2\.\.5"):
        limit(float, normal(5, 2), start=1)


def test_precision_has_the_interval_of_a_share() -> None:
    x, y = normal(400, 2, 0.7), normal(300, 2)
    sets = [FeatureSet({}, len(s), {}, {"t": s}, range(len(s))) for s in (x, y)]
    metric = MetricRequest("pr", "t", bootstrap=400).compute(*sets, ALONE)
    precision = metric["values"]["precision"]
    spread = 1.96 * (precision * (1 - precision) / 400) ** 0.5
    assert metric["interval95"] == pytest.approx([precision - spread, precision + spread], abs=0.01)


def test_kernel_and_sliced_distances_vanish_on_equal_sets() -> None:
    x = normal(64, 8)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert cmmd(unit, unit) == pytest.approx(0, abs=1e-9)
    assert mind(x, x) == 0
    assert kid(x, x) < 0  # the unbiased estimate leaves the diagonals out


def test_bootstrap_interval_holds_the_value_and_narrows() -> None:
    widths = []
    for n in (100, 10_000):
        x = normal(n, 1)
        value = float(x.mean())
        low, high = interval(lambda rows: float(rows.mean()), x, value, count=100, world=ALONE)
        assert low < value < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.4)


def test_distances_per_class_find_the_bad_class() -> None:
    labels = np.repeat(np.arange(3), 40)
    ref, gen = normal(120, 6), normal(120, 6)
    gen[labels == 2] += 3.0
    sets = [
        FeatureSet({}, 120, {"t": gaussian_of(x)}, {"t": x}, range(120), labels) for x in (gen, ref)
    ]
    values = per_class_distances(sets[0], sets[1], "t")
    assert values["worst_class"] == 2
    assert values["class_2"] > 5 * values["class_0"]
    with pytest.raises(ValueError, match="labels"):
        per_class_distances(FeatureSet({}, 1), sets[1], "t")
    for shifted in (labels + 1, labels * 5, np.minimum(labels, 1)):
        other = dataclasses.replace(sets[0], labels=shifted)
        with pytest.raises(ValueError, match=r"\d classes have images in one of the sets only"):
            per_class_distances(other, sets[1], "t")


@pytest.mark.parametrize("split", [[0, 1, 2, 3, 4], [3, 0, 4, 2, 1]])
def test_streamed_moments_are_those_of_stored_features(tmp_path: Path, split: list[int]) -> None:
    """Two processes, killed and restarted in any order, count every batch once."""
    x = normal(47, 5)
    stores = [MomentStore(tmp_path, 5, stratified(47, 10), every=1) for _ in range(2)]
    stored = BatchStore(tmp_path / "stored", 5)
    for turn, batch in enumerate(split):
        indices = range(batch * 10, min(batch * 10 + 10, 47))
        store = stores[turn % 2]
        assert batch * 10 not in store.done()
        store.write(batch * 10, indices, x[indices])
        stored.write(batch * 10, indices, x[indices])
    gaussian, features, selected = stores[0].collect(47)
    complete, every, _ = stored.collect(47)
    np.testing.assert_allclose(gaussian.sigma, complete.sigma, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(every, x)
    assert selected.tolist() == stratified(47, 10)
    np.testing.assert_array_equal(features, x[selected])


@pytest.mark.parametrize(("total", "count"), [(0, 5), (3, 5), (47, 10), (1_281_167, 10_000)])
def test_selected_images_are_distinct_and_of_all_parts_of_a_set(total: int, count: int) -> None:
    chosen = np.array(stratified(total, count))
    count = min(count, total)
    edges = np.arange(count + 1) * total // max(count, 1)
    assert len(chosen) == count
    assert ((edges[:-1] <= chosen) & (chosen < edges[1:])).all()
    assert chosen.tolist() == stratified(total, count)
    assert selection_of(total, count) == ({} if total == count else {"selection": "stratified"})


@pytest.mark.parametrize("order", ["classes in order", "seed mod classes"])
def test_selected_images_are_of_all_classes(order: str) -> None:
    """Every 20th of 200,000 images with class = seed mod 1000 is of 50 of the 1000 classes."""
    chosen = np.array(stratified(200_000, 10_000))
    classes = chosen * 1000 // 200_000 if order == "classes in order" else chosen % 1000
    assert len(np.unique(classes)) > 990
    shares = np.bincount(classes // 100, minlength=10)
    np.testing.assert_allclose(shares, 1000, atol=100)


def test_the_inception_score_does_not_depend_on_the_order_of_classes() -> None:
    """In order, each of 10 splits would have one class, and score 1."""
    classes = np.arange(1000) // 100
    logits = (6 * np.eye(10)[classes] + 0.1 * normal(1000, 10)).astype(np.float32)
    ordered, mixed = (
        MetricRequest("is", "t").compute(
            FeatureSet({}, 1000, {}, {"t": x}), FeatureSet({}, 0), ALONE
        )
        for x in (logits, logits[np.random.default_rng(5).permutation(1000)])
    )
    assert split_scores(logits, contiguous_splits(1000)).mean() < 1.01
    assert ordered["values"]["score"] > 8
    assert ordered["values"]["score"] == pytest.approx(mixed["values"]["score"], rel=0.02)
    assert ordered["n_gen"] == 1000


def test_sizes_above_the_cap_are_those_of_the_features_that_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set too large to keep every feature: moments of all images, features of some."""
    monkeypatch.setattr(store_module, "STREAMING_IMAGES", 40)
    pixels = torch.from_numpy(RNG.integers(0, 256, (60, 3, 2, 2), dtype=np.uint8))
    images = TensorImages(pixels)
    detector = Detector({"name": "mean", "pipeline": "raw"}, {"t": 3}, lambda _: mean_network, CPU)
    (gen,) = extract(
        images, images.identity, [detector], tmp_path, ALONE, batch_size=7, num_kept=20
    )
    ref = FeatureSet({}, 60, {"t": gen.gaussian("t")}, {"t": gen.rows("t")}, gen.selected)
    sizes = {
        kind: (metric["n_gen"], metric["n_ref"])
        for kind in ("fd", "fd_biased", "fd_inf", "pr", "kid", "is_inf")
        if (metric := MetricRequest(kind, "t").compute(gen, ref, ALONE))
    }
    assert sizes == {
        "fd": (60, 60),
        "fd_biased": (60, 60),
        "fd_inf": (20, 60),
        "pr": (20, 20),
        "kid": (20, 20),
        "is_inf": (20, None),
    }
    for kind in ("is", "is_chunks"):
        with pytest.raises(ValueError, match="of all 60 images; of so large a set only 20"):
            MetricRequest(kind, "t").compute(gen, ref, ALONE)


class TensorImages:
    """A set of images in memory."""

    manifest = None

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels
        self.identity = {"kind": "tensor", "digest": "0", "num_images": len(pixels)}

    def __len__(self) -> int:
        return len(self.pixels)

    def labels(self, indices: Sequence[int]) -> None:
        del indices

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        return self.pixels[list(indices)]

    def name(self, index: int) -> str:
        return str(index)

    def batches(self, todo: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        return map(self.batch, todo)


def mean_network(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"t": x.mean((2, 3))}


def test_a_missing_or_repeated_image_is_not_reported_over(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, 2)
    store.write(0, range(3), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="image 3 0 times"):
        store.collect(4)


def test_metrics_give_the_values_that_they_name() -> None:
    draws = np.random.default_rng(0)
    gen, ref = (draws.random((1200, 4)).astype(np.float32) for _ in range(2))
    x, y = (
        FeatureSet({}, 1200, {"t": gaussian_of(rows)}, {"t": rows}, range(1200))
        for rows in (gen, ref)
    )
    named = {kind: METRICS[kind].values for kind in METRICS if METRICS[kind].values}
    given = {k: tuple(MetricRequest(k, "t").compute(x, y, ALONE)["values"]) for k in named}
    assert given == named
    assert {*METRICS} - {*named} == {"fd_per_class"}, "its classes are those of the images"
