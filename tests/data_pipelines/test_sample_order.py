from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.pipeline import Share
from data_pipelines.sample_order import (
    MixedOrder,
    SampleOrder,
    SelectedOrder,
    classes_per_batch,
    permute,
    quotas,
    subset,
)


def epochs(order: SampleOrder, count: int) -> NDArray[np.int64]:
    samples = order.samples(np.arange(count * order.num_samples))
    return samples.reshape(count, order.num_samples)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 1025, 65537])
def test_every_epoch_is_a_permutation(size: int) -> None:
    for epoch in epochs(SampleOrder(size, seed=3), 3):
        assert np.array_equal(np.sort(epoch), np.arange(size))


def test_seeds_and_epochs_give_different_permutations() -> None:
    first, second = epochs(SampleOrder(1000, seed=0), 2)
    (other,) = epochs(SampleOrder(1000, seed=1), 1)
    for left, right in [(first, second), (first, other), (second, other)]:
        assert np.mean(left == right) < 0.01


@pytest.mark.parametrize("size", [5, 12, 100])
def test_places_are_uniform(size: int) -> None:
    """Chi-squared of where each sample stands, over epochs: mean 1 per degree of freedom."""
    count = 4000
    drawn = epochs(SampleOrder(size, seed=8), count)
    table = np.stack([np.bincount(column, minlength=size) for column in drawn.T])
    expected = count / size
    chi_squared = ((table - expected) ** 2 / expected).sum() / (size - 1) ** 2
    assert chi_squared == pytest.approx(1, abs=6 * np.sqrt(2) / (size - 1))


def test_neighbours_are_uncorrelated() -> None:
    (epoch,) = epochs(SampleOrder(50_000, seed=2), 1)
    assert abs(np.corrcoef(epoch[:-1], epoch[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(epoch, np.arange(50_000))[0, 1]) < 0.02


def test_order_is_a_pure_function_of_the_position() -> None:
    order = SampleOrder(77, seed=5, flip=True)
    in_order = order.samples(np.arange(1000))
    scattered = np.array([901, 3, 3, 76, 77])
    assert np.array_equal(order.samples(scattered), in_order[scattered])
    assert np.array_equal(order.flips(scattered), order.flips(np.arange(1000))[scattered])


def test_far_positions_cost_no_more() -> None:
    order = SampleOrder(1_281_167, seed=5)
    far = order.samples(np.arange(10**15, 10**15 + 64))
    assert ((far >= 0) & (far < 1_281_167)).all()


def test_unshuffled_order_repeats_the_files() -> None:
    order = SampleOrder(5, seed=1, shuffle=False)
    assert order.samples(np.arange(12)).tolist() == [0, 1, 2, 3, 4] * 2 + [0, 1]


def test_flips_are_fair_and_keyed_by_the_position() -> None:
    flips = SampleOrder(10, seed=4, flip=True).flips(np.arange(20_000))
    assert flips.mean() == pytest.approx(0.5, abs=0.02)
    assert not SampleOrder(10, seed=4, flip=False).flips(np.arange(100)).any()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_global_order(world_size: int) -> None:
    micro_batch = 8 // world_size
    shares = [Share(rank, world_size, micro_batch) for rank in range(world_size)]
    steps = [p for k in range(3) for share in shares for p in share.positions(16, k)]
    assert steps == list(range(16, 40))


def test_permute_takes_a_key_per_value() -> None:
    keys = np.array([1, 2], np.uint64)
    values = np.array([7, 7])
    one, two = permute(values, 1000, keys)
    assert one == permute(values[:1], 1000, keys[:1])[0]
    assert two == permute(values[:1], 1000, keys[1:])[0]


def windowed(sizes: list[int], window: int) -> SampleOrder:
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    return SampleOrder(sum(sizes), seed=6, window=window, bounds=bounds)


@pytest.mark.parametrize("window", [1, 7, 16, 1000])
def test_windowed_epochs_are_permutations(window: int) -> None:
    order = windowed([10, 3, 0, 25, 12], window)
    for epoch in epochs(order, 3):
        assert np.array_equal(np.sort(epoch), np.arange(50))
    straddling = np.arange(45, 55)
    assert np.array_equal(order.samples(straddling), order.samples(np.arange(100))[straddling])


def test_window_bounds_the_shards_in_use() -> None:
    """Any stretch of `window` positions touches few shards; a full shuffle touches nearly all."""
    order = windowed([100] * 50, 200)
    stretch = order.samples(np.arange(200)) // 100
    assert len(np.unique(stretch)) <= 3
    full = SampleOrder(5000, seed=6).samples(np.arange(200)) // 100
    assert len(np.unique(full)) > 40


def mean_gap(order: SampleOrder) -> float:
    """Mean distance in the file of consecutive samples: (N + 1) / 3 if fully shuffled."""
    (epoch,) = epochs(order, 1)
    return float(np.abs(np.diff(epoch)).mean())


def test_shuffle_quality_is_as_documented() -> None:
    full = (5000 + 1) / 3
    assert mean_gap(SampleOrder(5000, seed=3)) == pytest.approx(full, rel=0.05)
    gaps = [mean_gap(windowed([100] * 50, window)) for window in (1, 200, 1000, 5000)]
    assert gaps == sorted(gaps)
    assert gaps[1] > 0.4 * full
    assert gaps[2] > 0.75 * full


def test_classes_per_batch_are_those_of_draws_without_replacement() -> None:
    """A class of n/100 is missed by a batch of b out of n with probability (1 - b/n)^(n/100)."""
    labels = np.arange(20_000) // 200
    expected = 100 * (1 - (1 - 100 / 20_000) ** 200)
    in_full = classes_per_batch(SampleOrder(20_000, seed=1), labels, 100)
    assert in_full == pytest.approx(expected, abs=5)
    orders = [windowed([200] * 100, window) for window in (1, 400, 1600)]
    in_windows = [classes_per_batch(order, labels, 100) for order in orders]
    assert 1 <= in_windows[0] < in_windows[1] < in_windows[2] < 20
    mixed = np.arange(20_000) % 100
    assert classes_per_batch(orders[2], mixed, 100) == pytest.approx(expected, abs=5)
    assert classes_per_batch(orders[0], labels, 20_000) == 100


def test_selection_keeps_the_file_numbers() -> None:
    selection = np.array([5, 8, 13])
    order = SelectedOrder(SampleOrder(3, seed=1, flip=True), selection)
    assert sorted(order.samples(np.arange(3)).tolist()) == [5, 8, 13]
    assert len(order.flips(np.arange(7))) == 7


def test_subset_is_always_the_same_and_spread_out() -> None:
    chosen = subset(1000, 100)
    assert np.array_equal(chosen, subset(1000, 100))
    assert len(np.unique(chosen)) == 100
    assert abs(chosen.mean() - 500) < 100


def test_mix_keeps_the_proportions_and_every_sets_epochs() -> None:
    parts = (SampleOrder(30, seed=1), SampleOrder(7, seed=2))
    order = MixedOrder(parts, sizes=(30, 7), quotas=quotas([3.0, 1.0], cycle=20), seed=9)
    assert order.quotas == (15, 5)
    samples = order.samples(np.arange(40 * 7))
    from_second = samples >= 30
    assert from_second.sum() == 70
    assert from_second[:20].sum() == 5
    counts = np.bincount(samples)
    assert counts[:30].tolist() == [7] * 30
    assert counts[30:].tolist() == [10] * 7
    scattered = np.array([77, 3, 200])
    assert np.array_equal(order.samples(scattered), samples[scattered])


def test_rare_sets_are_not_lost() -> None:
    assert quotas([1e6, 1.0])[1] == 1
