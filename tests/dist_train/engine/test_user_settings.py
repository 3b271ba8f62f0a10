"""DeepSpeed's settings that users may give, on two ranks; the others are rejected and say why.

With every allowed setting, at every stage where it has an effect, the weights of a small network,
and what would be saved of it, are those without the setting.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dist_train.config import AdamConfig, ShardingConfig
from dist_train.engine.deepspeed_config import engine_settings
from dist_train.engine.user_settings import (
    ALLOWED,
    BLOCKS,
    INEFFECTIVE,
    OWNED,
    UNSAFE,
    ZERO,
    Switch,
)
from models.config_io import ConfigError
from tests.dist_train.engine.test_engine import MICRO, _batch, _networks
from tests.ranks import run_ranks

PLACES: list[dict[str, Any]] = [
    {"zero_stage": 0},
    *({"zero_stage": stage} for stage in (1, 2, 3)),
    *({"zero_stage": stage, "offload": "optimizer"} for stage in (1, 2, 3)),
    {"zero_stage": 3, "offload": "parameters"},
]
VALUES: dict[str, tuple[Any, ...]] = {
    **{key: (True, False) if isinstance(a, Switch) else (max(a.low, 10), 5e4)
       for key, a in ALLOWED.items()},
    f"{ZERO}.reduce_bucket_size": (1, 100, 5e4),
    f"{ZERO}.stage3_param_persistence_threshold": (0, 50, 5e4),
    f"{ZERO}.stage3_model_persistence_threshold": (0, 60, 5e4),
}  # fmt: skip
STEPS = 4


def _nested(key: str, value: object) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def _settings(extra: dict[str, Any], **sharding: Any) -> dict[str, Any]:
    ours: dict[str, Any] = {"clip": 0.0, "micro_batch_size": 2, "accumulation_steps": 3}
    return engine_settings(ShardingConfig(deepspeed=extra, **sharding), **ours)


def _effective(key: str) -> Iterator[dict[str, Any]]:
    return (place for place in PLACES if ALLOWED[key].place.holds(ShardingConfig(**place)))


# Every allowed setting, at every stage.


def _train(extra: dict[str, Any], place: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights, on whatever ranks, after some steps; those that would be saved."""
    from dist_train.engine.engine import Engine
    from dist_train.runtime.world import init_world

    network = _networks()["generator"]
    world = init_world()
    engine = Engine(
        network,
        AdamConfig(lr=1e-2),
        ShardingConfig(deepspeed=extra, **place),
        world=world,
        micro_batch_size=MICRO,
        accumulation_steps=2,
    )
    for step in range(STEPS):
        for k in range(2):
            x = _batch(step, (2 * k + world.rank) * MICRO, MICRO)
            engine.backward(engine.called(x).square().mean())
            engine.step(1e-2)
    saved = {name: torch.zeros(shape.numel()) for name, shape in engine.shapes.items()}
    for shard in engine.owned():
        saved[shard.name][shard.start : shard.start + shard.weight.numel()] = shard.weight
    saved = {name: world.all_reduce_sum(weight) for name, weight in saved.items()}
    for name, weight in engine.whole_parameters().items():
        assert torch.equal(weight.detach().flatten(), saved[name]), (extra, place, name)
    engine.close()
    return saved


def _distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def _check_allowed() -> None:
    untrained = {n: p.detach().flatten() for n, p in _networks()["generator"].named_parameters()}
    for place in PLACES:
        plain = _train({}, place)
        assert _distance(plain, untrained) > 1e-2
        for key in filter(lambda key: place in _effective(key), ALLOWED):
            for value in VALUES[key]:
                trained = _train(_nested(key, value), place)
                assert _distance(trained, plain) < 1e-6, (place, key, value)


@pytest.mark.distributed
def test_every_allowed_setting_trains_and_saves_the_same_weights() -> None:
    run_ranks(2, _check_allowed)


def _check_buckets() -> None:
    from dist_train.engine import deepspeed_config

    whole = {stage: _train({}, {"zero_stage": stage, "offload": "optimizer"}) for stage in (1, 2)}
    deepspeed_config.MAX_BUCKET = 100  # networks of more parameters than that
    try:
        for stage, weights in whole.items():
            in_buckets = _train({}, {"zero_stage": stage, "offload": "optimizer"})
            assert _distance(in_buckets, weights) < 1e-6, stage
    finally:
        deepspeed_config.MAX_BUCKET = 50_000_000


@pytest.mark.distributed
def test_offloading_accumulates_all_micro_batches_of_large_networks() -> None:
    run_ranks(2, _check_buckets)


# What is rejected.


@pytest.mark.parametrize(
    ("extra", "sharding", "message"),
    [
        ({"zero_optimisation": {}}, {}, "'zero_optimisation' is not a setting of DeepSpeed"),
        ({ZERO: {"overlap_com": True}}, {}, f"did you mean {ZERO}.overlap_comm"),
        ({"overlap_comm": True}, {}, f"did you mean {ZERO}.overlap_comm"),
        ({ZERO: {"round_robin_gradients": True}}, {}, "checkpoints would not hold the weights"),
        ({ZERO: {"offload_optimizer": {"device": "cpu"}}}, {}, "change sharding.offload"),
        ({ZERO: {"offload_optimizer": {"device": "nvme"}}}, {"zero_stage": 3}, "sharding.offload"),
        ({ZERO: {"offload_optimizer": {"nvme_path": "x"}}}, {"zero_stage": 3}, "NVMe"),
        ({ZERO: {"offload_optimizer": {"pin": True}}}, {}, "did you mean .*pin_memory|is not a"),
        ({ZERO: {"cpu_offload": True}}, {}, "change sharding.offload"),
        ({ZERO: {"overlap_comm": True}}, {}, "no effect with sharding.zero_stage=1 .*=2 or 3"),
        ({ZERO: {"sub_group_size": 9}}, {"zero_stage": 2}, "it needs zero_stage=3"),
        ({ZERO: {"max_live_parameters": 9}}, {"zero_stage": 3}, "stage3_max_live_parameters"),
        ({ZERO: {"overlap_comm": "auto"}}, {"zero_stage": 2}, "='auto' must be true or false"),
        ({ZERO: {"overlap_comm": 1}}, {"zero_stage": 2}, "must be true or false"),
        ({ZERO: {"reduce_bucket_size": True}}, {"zero_stage": 2}, "must be a whole number from 1"),
        ({ZERO: {"reduce_bucket_size": "5e8"}}, {"zero_stage": 2}, "must be a whole number from"),
        ({ZERO: {"reduce_bucket_size": 1.5}}, {"zero_stage": 2}, "must be a whole number from 1"),
        ({ZERO: {"reduce_bucket_size": 10**12}}, {"zero_stage": 2}, "to 500000000"),
        ({ZERO: {"allgather_bucket_size": 3}}, {}, "must be a multiple of 2"),
        ({ZERO: {"stage": True}}, {}, "stage=True contradicts the recipe, which sets 1"),
        ({ZERO: {"stage": "auto"}}, {}, "stage='auto' contradicts"),
        ({ZERO: True}, {}, "zero_optimization=True must be an object"),
        ({ZERO: {"offload_param": None}}, {"zero_stage": 3}, "offload_param=None must be an"),
        ({"fp16": {"enabled": False}}, {}, "change compute.precision"),
        ({"train_batch_size": 8}, {}, "change global_batch_size"),
        ({"gradient_accumulation_steps": "auto"}, {}, "contradicts the recipe, which sets 3"),
        ({"wall_clock_breakdown": True}, {}, "use --profile-steps"),
        ({"communication_data_type": "fp16"}, {"zero_stage": 2}, "cannot be used"),
    ],
)
def test_what_is_rejected_says_why(
    extra: dict[str, Any], sharding: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as rejected:
        _settings(extra, **sharding)
    assert "\n" not in str(rejected.value)


def test_what_relaywave_sets_may_be_repeated_and_allowed_settings_are_passed_on() -> None:
    extra = {"train_micro_batch_size_per_gpu": 2, ZERO: {"stage": 2, "reduce_bucket_size": 1e3}}
    settings = _settings(extra, zero_stage=2)
    assert settings[ZERO]["reduce_bucket_size"] == 1000
    assert settings[ZERO]["use_multi_rank_bucket_allreduce"] is False
    pinned = {ZERO: {"offload_optimizer": {"device": "cpu", "pin_memory": False}}}
    offloading = _settings(pinned, zero_stage=2, offload="optimizer")
    assert offloading[ZERO]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}


@pytest.mark.parametrize("key", ALLOWED)
def test_allowed_settings_are_rejected_where_they_have_no_effect(key: str) -> None:
    effective = [*_effective(key)]
    assert effective
    for place in PLACES:
        extra = _nested(key, VALUES[key][0])
        if place in effective:
            _settings(extra, **place)
        else:
            with pytest.raises(ConfigError, match="has no effect with"):
                _settings(extra, **place)


# Every setting that the installed version knows.


class _Recorder(dict[str, Any]):
    """Settings that remember which names DeepSpeed looks up."""

    names: set[str] = set()  # noqa: RUF012

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.names.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> _Recorder:
        return _Recorder(self)


def _check_known(known: set[str]) -> None:
    from dist_train.engine.engine import _import_deepspeed
    from dist_train.runtime.world import init_world

    deepspeed = _import_deepspeed(init_world())
    config = deepspeed.runtime.config
    settings = _Recorder(train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=1)
    config.DeepSpeedConfig(settings)
    assert {"fp16", "zero_optimization", "aio"} <= settings.names
    unknown = (settings.names | {*config._REMOVED_TOP_LEVEL_CONFIG_KEYS}) - known
    assert not unknown, unknown
    zero = deepspeed.runtime.zero.config.DeepSpeedZeroConfig
    offload = deepspeed.runtime.zero.offload_config
    models = {
        ZERO: zero,
        f"{ZERO}.offload_optimizer": offload.DeepSpeedZeroOffloadOptimizerConfig,
        f"{ZERO}.offload_param": offload.DeepSpeedZeroOffloadParamConfig,
    }
    for prefix, model in models.items():
        for name, field in model.model_fields.items():
            assert {f"{prefix}.{n}" for n in (name, field.alias) if n} <= known
    for key in ALLOWED:  # and nothing is allowed that it does not know
        prefix, _, name = key.rpartition(".")
        fields = models[prefix].model_fields
        assert name in fields or name in {field.alias for field in fields.values()}


@pytest.mark.distributed
def test_every_setting_of_the_installed_version_is_allowed_or_has_a_reason() -> None:
    ours = {*_settings({})} | {f"{ZERO}.stage"}
    run_ranks(1, _check_known, {*ALLOWED, *OWNED, *UNSAFE, *INEFFECTIVE, *BLOCKS} | ours)


def test_every_setting_is_in_one_table_only() -> None:
    keys = [*ALLOWED, *OWNED, *UNSAFE, *INEFFECTIVE]
    assert len(keys) == len(set(keys))
