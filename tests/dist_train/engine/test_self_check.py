"""What goes wrong silently is found: by the self-check, and before anything is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_train.checkpoint.format import committed
from dist_train.config import AdamConfig, RunConfig, ShardingConfig
from dist_train.engine.deepspeed_config import VERSION, check_version
from dist_train.engine.shards import ParameterShard, non_finite_values
from models.config_io import ConfigError, override
from tests.paths import ROOT
from tests.ranks import run_ranks
from tests.tiny import tiny_edm, tiny_wavediff


def _build(config: RunConfig, run_dir: Path) -> Any:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    run_dir.mkdir(exist_ok=True, parents=True)
    return build_trainer(config, run_dir, init_world())


# The self-check.

PAST_THE_LIST = [
    ({"zero_stage": 1}, {"round_robin_gradients": True}, "other weights than are trained"),
    ({"zero_stage": 2}, {"round_robin_gradients": True}, "other weights than are trained"),
    ({"zero_stage": 1}, {"offload_optimizer": {"device": "cpu"}}, "is exactly 0"),
]
"""Settings that train or save something else, if the allow-list did not reject them."""


def _check_past_the_list(root: Path) -> None:
    from dist_train.engine import deepspeed_config
    from dist_train.engine.self_check import SelfCheckError
    from dist_train.trainer import DivergedError

    check, deepspeed_config.check_settings = deepspeed_config.check_settings, lambda *_: None
    try:
        for number, (sharding, zero, message) in enumerate(PAST_THE_LIST):
            extra = json.dumps({"zero_optimization": zero})
            stage = f"sharding.zero_stage={sharding['zero_stage']}"
            config = override(tiny_edm(), [stage, f"sharding.deepspeed={extra}"])
            trainer = _build(config, root / str(number))
            with pytest.raises((SelfCheckError, DivergedError), match=message):
                trainer.fit()
            assert not committed(root / str(number))
            trainer.engines["denoiser"].close()
    finally:
        deepspeed_config.check_settings = check


@pytest.mark.distributed
def test_settings_that_save_something_else_are_found_past_the_allow_list(tmp_path: Path) -> None:
    run_ranks(2, _check_past_the_list, tmp_path)


HARMS = ("none", "moved", "unmoved", "another copy")


def _harm(harm: str, engine: Any, before: list[torch.Tensor]) -> None:
    """Do to the weights what a wrong optimizer would."""
    for shard, used, old in zip(engine.held(), engine.weights_in_use(), before, strict=True):
        if harm == "moved":
            shard.weight[0] += 1e-3
        elif harm == "unmoved":
            shard.weight.copy_(old)
        used.copy_(shard.weight)
        if harm == "another copy":
            used += 0.1


def _check_wrong_updates() -> None:
    from dist_train.engine.engine import Engine
    from dist_train.engine.self_check import SelfCheck, SelfCheckError
    from dist_train.runtime.world import init_world

    world = init_world()
    for stage in (0, 1, 2, 3):
        for harm in (
            ("none", "moved", "unmoved", "another copy") if stage else ("none", "moved", "unmoved")
        ):
            torch.manual_seed(0)
            engine = Engine(
                nn.Linear(9, 7),
                AdamConfig(lr=1e-2),
                ShardingConfig(zero_stage=stage),  # type: ignore[arg-type]
                world=world,
                micro_batch_size=1,
                accumulation_steps=1,
            )
            check = SelfCheck("net", engine, world)
            assert not check.passed()  # no update yet
            before = [shard.weight.clone() for shard in engine.held()]
            engine.backward(engine.called(torch.ones(1, 9)).square().mean())
            engine.step(1e-2)
            with torch.no_grad():
                _harm(harm, engine, before)
            if harm == "none":
                assert check.passed()
            else:
                with pytest.raises(SelfCheckError):
                    check.passed()
            engine.close()


@pytest.mark.distributed
def test_updates_that_are_not_adams_or_of_another_copy_are_found_at_all_stages() -> None:
    run_ranks(2, _check_wrong_updates)


# Before anything is saved.


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("moment", [False, True])
def test_values_that_are_not_finite_are_seen(bad: float, moment: bool) -> None:
    weight, moments = torch.full((70,), 1e30), {"exp_avg": torch.full((70,), -3e38)}
    shards = [ParameterShard("w", 0, weight, moments), ParameterShard("x", 0, weight[:0], {})]
    assert non_finite_values([]) == non_finite_values(shards) == 0  # large ones are finite
    (moments["exp_avg"] if moment else weight)[69] = bad
    assert non_finite_values(shards) == 1


def _check_never_saved(root: Path) -> None:
    from dist_train.trainer import DivergedError

    for stage in (0, 1, 2, 3):
        for where in ("weights", "average", "zero"):
            run_dir = root / f"{stage}-{where}"
            action = "skip" if stage in (0, 3) else "stop"  # whatever the policy says
            settings = [f"sharding.zero_stage={stage}", f"divergence.action={action}"]
            trainer = _build(override(tiny_edm(), settings), run_dir)
            _harm_after_three_steps(trainer, where)
            message = "is exactly 0" if where == "zero" else "values that are not finite"
            with pytest.raises(DivergedError, match=message) as stop:
                trainer.fit()
            assert "\n" not in str(stop.value)
            assert not committed(run_dir)
            assert [path.name for path in (run_dir / "snapshots").iterdir()] == [f"{0:012d}"]
            trainer.engines["denoiser"].close()


def _harm_after_three_steps(trainer: Any, where: str) -> None:
    """Make the third step, which ends with a checkpoint, the first that goes wrong."""
    healthy, train_step = trainer.losses["denoiser"], trainer._train_step

    def loss_fn(networks: Any, example: Any, step: int) -> Any:
        loss, metrics = healthy(networks, example, step)
        return (loss * 0 if where == "zero" and step == 2 else loss), metrics

    def harmful_step(examples: Any) -> None:
        train_step(examples)
        rank_0 = trainer.world.rank == 0  # one rank's trouble ends all
        if trainer.step == 3 and rank_0 and where != "zero":
            shards = trainer.parts.emas["main"].shards()
            shards = shards if where == "average" else trainer.engines["denoiser"].owned()
            shards[0].weight.detach()[0] = torch.inf

    trainer.losses["denoiser"], trainer._train_step = loss_fn, harmful_step


@pytest.mark.distributed
def test_what_is_not_finite_or_untrained_is_never_saved(tmp_path: Path) -> None:
    run_ranks(2, _check_never_saved, tmp_path)


def _check_legitimate(root: Path) -> None:
    from dist_train.trainer import Outcome

    for name, config in (("edm", tiny_edm()), ("pair", tiny_wavediff())):
        trainer = _build(config, root / name)
        assert trainer.fit() is Outcome.FINISHED
        assert trainer._checks == []  # all passed
        for engine in trainer.engines.values():
            engine.close()


@pytest.mark.distributed
def test_lazy_r1_and_zero_initialised_layers_are_no_sign(tmp_path: Path) -> None:
    run_ranks(2, _check_legitimate, tmp_path)


# Versions, and building.


@pytest.mark.parametrize("installed", ["0.19.7", "0.17.0", "0.20.0", "0.19.80", "", "1.0.0"])
def test_other_versions_of_deepspeed_are_rejected_by_name(installed: str) -> None:
    with pytest.raises(ConfigError, match=rf"DeepSpeed {installed}.* works with {VERSION} only"):
        check_version(installed)


def test_the_range_is_what_the_tests_run() -> None:
    assert f'"deepspeed=={VERSION}"' in (ROOT / "pyproject.toml").read_text()
    assert f"deepspeed=={VERSION}\n" in (ROOT / "constraints.txt").read_text()
    check_version(VERSION)
    check_version(f"{VERSION}+local")


def _check_builds(cache: Path) -> None:
    import os

    from dist_train.engine.engine import _import_deepspeed
    from dist_train.runtime.world import init_world

    deepspeed = _import_deepspeed(init_world())
    os.environ["TORCH_EXTENSIONS_DIR"] = str(cache)
    from deepspeed.ops import op_builder

    for builder in (op_builder.AsyncIOBuilder, op_builder.CPUAdamBuilder):
        (cache / builder.NAME).mkdir()
        (cache / builder.NAME / "lock").touch()  # of a build that was killed
        with pytest.raises(ConfigError, match=r"compile its operator \w+ at run time"):
            builder().load()
    assert deepspeed.__version__ == VERSION


@pytest.mark.distributed
def test_nothing_is_compiled_so_that_no_lock_is_waited_for(tmp_path: Path) -> None:
    run_ranks(1, _check_builds, tmp_path)
