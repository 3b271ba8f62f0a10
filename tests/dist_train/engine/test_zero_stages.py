"""ZeRO stages agree: 20 steps of each objective on two ranks give the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import CheckpointConfig, LoggingConfig, RunConfig, ShardingConfig
from dist_train.engine.deepspeed_config import check_stage, engine_settings
from models.config_io import ConfigError
from tests.dist_train.test_trainer import whole_tensors
from tests.ranks import run_ranks
from tests.tiny import BATCH, TINY

STEPS = 20
SHARDED: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero2_offload": {"zero_stage": 2, "offload": "optimizer"},
    "zero3": {"zero_stage": 3},
    "zero3_offload": {"zero_stage": 3, "offload": "parameters"},
}


CASES = [
    *(("tiny_edm", variant) for variant in SHARDED),
    *(("tiny_relay", variant) for variant in ("zero0", "zero1", "zero2", "zero3")),
    *(("tiny_wavediff", variant) for variant in ("zero0", "zero1", "zero2")),
]


def _config(name: str, variant: str, total: int = STEPS) -> RunConfig:
    return replace(
        TINY[name](),
        total_images=total * BATCH,
        logging=LoggingConfig(every_images=STEPS * BATCH, grid_seeds=0),
        checkpoint=CheckpointConfig(
            every_images=STEPS * BATCH, snapshot_every_images=STEPS * BATCH
        ),
        sharding=ShardingConfig(**SHARDED[variant]),
    )


def _train_all(root: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world
    from dist_train.trainer import Outcome

    world = init_world()
    for name, variant in CASES:
        run_dir = root / variant / name
        run_dir.mkdir(parents=True, exist_ok=True)
        trainer = build_trainer(_config(name, variant), run_dir, world)
        assert trainer.fit() is Outcome.FINISHED
        _end(trainer)
    # A run goes from ZeRO-3 with offloading to ZeRO-3 without, to ZeRO-1, and back.
    run_dir = root / "wandering" / "tiny_edm"
    run_dir.mkdir(parents=True, exist_ok=True)
    for total, variant in ((5, "zero3_offload"), (10, "zero3"), (15, "zero1"), (20, "zero3")):
        trainer = build_trainer(_config("tiny_edm", variant, total), run_dir, world)
        assert trainer.fit() is Outcome.FINISHED
        _end(trainer)


def _end(trainer: Any) -> None:
    for engine in trainer.engines.values():
        engine.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zero")
    run_ranks(2, _train_all, root)
    return root


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "variant"), [*CASES, ("tiny_edm", "wandering")])
def test_stages_agree_to_1e_6(trained: Path, name: str, variant: str) -> None:
    reference, other = (whole_tensors(trained / v / name) for v in ("zero0", variant))
    assert reference.keys() == other.keys()
    for tensor, values in reference.items():
        assert (values - other[tensor]).abs().max() <= 1e-6 * max(1.0, values.abs().max()), tensor


@pytest.mark.parametrize(
    ("stage", "offload", "networks", "second_order", "message"),
    [
        (3, "none", 2, True, r"gradient penalty \(R1\): its double backward"),
        (3, "none", 2, False, "zero_stage=3 trains one network, this objective has 2"),
        (2, "parameters", 1, False, "offload=parameters needs sharding.zero_stage=3, not 2"),
        (0, "optimizer", 1, False, "offload=optimizer needs a sharded optimizer"),
    ],
)
def test_what_cannot_go_together_is_rejected(
    stage: int, offload: str, networks: int, second_order: bool, message: str
) -> None:
    sharding: Any = {"zero_stage": stage, "offload": offload}
    with pytest.raises(ConfigError, match=message):
        check_stage(ShardingConfig(**sharding), networks, second_order)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"optimizer": {"type": "Adam"}}, "deepspeed.optimizer contradicts the recipe: .* change"),
        ({"fp16": {"enabled": True}}, "deepspeed.fp16 contradicts .* change compute.precision"),
        ({"gradient_clipping": 1.0}, "deepspeed.gradient_clipping=1.0 contradicts"),
        ({"zero_optimization": {"stage": 2}}, "deepspeed.zero_optimization.stage=2 contradicts"),
    ],
)
def test_settings_of_deepspeed_that_contradict_are_rejected(
    extra: dict[str, Any], message: str
) -> None:
    batches = {"micro_batch_size": 2, "accumulation_steps": 3}
    ours: dict[str, Any] = {"clip": 0.0, **batches}
    with pytest.raises(ConfigError, match=message):
        engine_settings(ShardingConfig(deepspeed=extra), **ours)
    harmless = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}}
    merged = engine_settings(ShardingConfig(zero_stage=2, deepspeed=harmless), **ours)
    assert merged["zero_optimization"]["reduce_bucket_size"] == 1000
    small = engine_settings(ShardingConfig(), **ours, parameters=9)
    assert small["zero_optimization"]["reduce_bucket_size"] == 9
    assert merged["train_micro_batch_size_per_gpu"] == 2
