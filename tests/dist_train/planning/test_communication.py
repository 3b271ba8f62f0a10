"""Messages of a step by bucket, and what of them the backward pass hides."""

from __future__ import annotations

import pytest

from dist_train.config import ShardingConfig
from dist_train.planning.communication import Message, messages, outlasting, traffic
from dist_train.planning.hardware import GPUS, Machine

SIZE = 250_000_000
"""Parameters: five buckets."""
TWO_NODES = Machine(GPUS["a100-40g"], 2, 8, 100e9)


def _zero(stage: int, **deepspeed: object) -> ShardingConfig:
    extra = {"zero_optimization": deepspeed} if deepspeed else {}
    return ShardingConfig(zero_stage=stage, deepspeed=extra)  # type: ignore[arg-type]


def test_bytes_follow_the_published_formulas() -> None:
    assert traffic(_zero(1), [SIZE], 2, 4) == pytest.approx(1e9)  # 2P (N - 1) / N, 4 bytes each
    assert traffic(_zero(0), [SIZE], 2, 4) == pytest.approx(1e9)
    assert traffic(_zero(3), [SIZE], 2, 1) == pytest.approx(1.5e9)
    assert traffic(_zero(2), [SIZE], 2, 4) == pytest.approx(2.5e9)
    assert traffic(_zero(1), [SIZE, SIZE], 2, 1) == pytest.approx(2e9)
    assert traffic(_zero(3), [SIZE], 1, 4) == 0


def test_a_message_takes_its_slowest_link_and_the_hops_of_its_rings() -> None:
    assert Message(1e9, 0).seconds(TWO_NODES) == pytest.approx(0.01)  # the network, not NVLink
    one_node = Machine(GPUS["a100-40g"], 1, 8, 1.0)
    assert Message(1e9, 0).seconds(one_node) == pytest.approx(1e9 / 300e9)
    assert Message(0, 1).seconds(one_node) == pytest.approx(7 * 3.4e-6)
    assert Message(0, 2).seconds(TWO_NODES) == pytest.approx(2 * (13 * 3.4e-6 + 2 * 14e-6))
    assert Message(1e9, 1).seconds(Machine(GPUS["a100-40g"], 1, 1, 1.0)) == 0


def test_a_pass_hides_all_but_what_becomes_ready_at_its_end() -> None:
    assert outlasting([1.0] * 4, computing=8.0) == 1.0  # ready at 2, 4, 6, 8
    assert outlasting([3.0] * 4, computing=8.0) == 2 + 4 * 3 - 8  # one after the other, from 2 on
    assert outlasting([], computing=8.0) == 0


def test_the_engine_overlaps_nothing_up_to_zero_1() -> None:
    for stage in (0, 1):
        plan = messages(_zero(stage), SIZE, 16, passes=4)
        exposed = plan.exposed(4, 100.0, 200.0, TWO_NODES)
        assert exposed == pytest.approx(sum(m.seconds(TWO_NODES) for m in plan.at_the_end))
        assert not plan.reduced


def test_buckets_and_overlap_are_those_that_deepspeed_is_given() -> None:
    plain = messages(_zero(2), SIZE, 16, passes=4)
    assert len(plain.reduced) == 5
    assert not plain.overlap
    beside = messages(_zero(2, overlap_comm=True), SIZE, 16, passes=4)
    times = [plan.exposed(4, 1.0, 2.0, TWO_NODES) for plan in (beside, plain)]
    assert times[0] < times[1] / 2
    small = messages(_zero(2, reduce_bucket_size=10_000_000), SIZE, 16, passes=4)
    assert len(small.reduced) == 25
    assert small.sent(4) == pytest.approx(plain.sent(4))
    at_once = messages(_zero(2, use_multi_rank_bucket_allreduce=True), SIZE, 16, passes=1)
    assert at_once.reduced[0].sent == 2 * plain.reduced[0].sent
    assert at_once.reduced[0].rounds < plain.reduced[0].rounds == 16
    assert messages(_zero(3), SIZE, 16, passes=1).overlap  # DeepSpeed's default
    assert not messages(_zero(3, overlap_comm=False), SIZE, 16, passes=1).overlap
