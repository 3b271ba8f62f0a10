"""What an objective may ask for: a frozen teacher, and the average of what it trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.build import build_trainer
from dist_train.config import AdamConfig, ConstantEma, RunConfig, ShardingConfig
from dist_train.dry_run import check_run
from dist_train.ema import MAIN
from dist_train.planning.flops import measure_step
from dist_train.runtime.world import init_world
from dist_train.trainer import Outcome
from models.config_io import override
from models.snapshot import write_snapshot
from tests.dist_train.distilling import AVERAGE, STUDENT, TEACHER, DistillConfig
from tests.dist_train.test_trainer import HALF, WHOLE, whole_tensors
from tests.ranks import run_ranks
from tests.tiny import BATCH, tiny_edm


def _config(teacher: Path) -> RunConfig:
    run = tiny_edm()
    unet: Any = replace(run.objective.unet, label_dim=0, augment_dim=0, dropout=0.0)  # type: ignore[attr-defined]
    return replace(
        run,
        recipe="distill",
        objective=DistillConfig(unet=unet, teacher=str(teacher)),
        optim={STUDENT: AdamConfig(lr=1e-3)},
        ema={MAIN: ConstantEma(decay=0.9)},
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "snapshot"
    config = _config(path).objective
    torch.manual_seed(7)
    network = config.build().build_networks()[STUDENT]
    weights = {name: torch.randn_like(value) * 0.1 for name, value in network.state_dict().items()}
    write_snapshot(
        path, weights, objective=config, network=STUDENT, images_seen=0, ema="", provenance={}
    )
    return path


def _train(teacher: str, root: str, zero_stage: int, micro: int | None, *totals: int) -> None:
    for total in totals:
        sharding = ShardingConfig(zero_stage=zero_stage)  # type: ignore[arg-type]
        config = replace(_config(Path(teacher)), total_images=total, sharding=sharding,
                         micro_batch_size=micro)  # fmt: skip
        Path(root).mkdir(parents=True, exist_ok=True)
        trainer = build_trainer(config, Path(root), init_world())
        before = {k: v.clone() for k, v in trainer.parts.called[TEACHER].state_dict().items()}
        assert trainer.fit() is Outcome.FINISHED
        after = trainer.parts.called[TEACHER].state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        engine = trainer.engines[STUDENT]
        average = trainer.parts.emas[MAIN].gather(engine.shapes, trainer.world)
        read = dict(trainer.parts.called[AVERAGE].named_parameters())
        assert all(torch.equal(value, read[name]) for name, value in average.items())


@pytest.mark.distributed
def test_ranks_sharding_and_interruptions_do_not_matter(teacher: Path, tmp_path: Path) -> None:
    run_ranks(2, _train, str(teacher), str(tmp_path / "two"), 1, None, WHOLE)
    run_ranks(2, _train, str(teacher), str(tmp_path / "resumed"), 1, None, HALF, WHOLE)
    run_ranks(2, _train, str(teacher), str(tmp_path / "micro"), 2, 2, WHOLE)
    run_ranks(1, _train, str(teacher), str(tmp_path / "one"), 0, None, WHOLE)
    two = whole_tensors(tmp_path / "two")
    assert not [name for name in two if TEACHER in name], "a teacher is no state of the run"
    for name, value in whole_tensors(tmp_path / "resumed").items():
        assert torch.equal(value, two[name]), name
    for variant in ("micro", "one"):
        other = whole_tensors(tmp_path / variant)
        weights = [name for name in two if "/exp_avg" not in name]
        differences = torch.cat([(two[name] - other[name]).abs() for name in weights])
        assert differences.quantile(0.98) < 2e-6
        assert differences.max() <= 2 * 1e-3 * WHOLE / BATCH


def test_submission_checks_and_measures_them(teacher: Path, tmp_path: Path) -> None:
    config = _config(teacher)
    check_run(config, tmp_path / "run", 2, data_later=False)
    check_run(
        override(config, [f"checkpoint.keep_best={STUDENT}/to_average"]),
        tmp_path / "run", 2, data_later=False,
    )  # fmt: skip
    cost = measure_step(config.objective, BATCH)
    assert cost.parameters.keys() == {STUDENT}
    assert cost.flops > 0
    missing = override(config, [f"objective.teacher={tmp_path / 'none'}"])
    with pytest.raises(ValueError, match="none is not a snapshot"):
        check_run(missing, tmp_path / "run", 2, data_later=False)
    same = override(config, [f"objective.teacher_name={STUDENT}"])
    with pytest.raises(ValueError, match="a trained and a frozen network 'student'; rename one"):
        check_run(same, tmp_path / "run", 2, data_later=False)
