from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.order import SampleOrder, permute
from data_pipelines.pipeline import Share


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
    whole = order.samples(np.arange(1000))
    scattered = np.array([901, 3, 3, 76, 77])
    assert np.array_equal(order.samples(scattered), whole[scattered])
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
