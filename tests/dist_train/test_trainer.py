"""The loop: world-size independence, exact and elastic resume, for all three objectives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_train.checkpoint.format import CheckpointReader, committed
from dist_train.config import ComputeConfig, RunConfig, ShardingConfig
from models.snapshot import load_sampler, newest_snapshot, read_snapshot
from tests.ranks import run_ranks
from tests.tiny import BATCH, TINY

HALF, WHOLE = 3 * BATCH, 6 * BATCH


def _recomputing(config: RunConfig) -> RunConfig:
    """Return the run with activation checkpointing, in channels_last."""
    objective: Any = config.objective
    for name in ("unet", "generator", "discriminator"):
        if hasattr(objective, name):
            network = replace(getattr(objective, name), recompute_blocks=True)
            objective = replace(objective, **{name: network})
    return replace(config, objective=objective, compute=ComputeConfig(channels_last=True))


def _train(
    root: str,
    zero_stage: int,
    micro_batch_size: int | None,
    *totals: int,
    change: Callable[[RunConfig], RunConfig] = lambda config: config,
) -> None:
    """Train each objective to each of `totals` in turn, as separate processes would."""
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world
    from dist_train.trainer import Outcome

    world = init_world()
    for name, recipe in TINY.items():
        for total in totals:
            config = replace(
                change(recipe()),
                total_images=total,
                sharding=ShardingConfig(zero_stage=zero_stage),  # type: ignore[arg-type]
                micro_batch_size=micro_batch_size,
            )
            run_dir = Path(root) / name
            run_dir.mkdir(parents=True, exist_ok=True)
            assert build_trainer(config, run_dir, world).fit() is Outcome.FINISHED


def _train_recomputing(root: str) -> None:
    _train(root, 1, None, WHOLE, change=_recomputing)


def whole_tensors(run_dir: Path) -> dict[str, Tensor]:
    """Return every tensor of the newest checkpoint, whole, whatever ranks wrote it."""
    reader = CheckpointReader(committed(run_dir)[-1])
    state = {}
    for tensor, pieces in reader._pieces.items():
        end = max(start + file.get_slice(key).get_shape()[0] for start, key, file in pieces)
        state[tensor] = torch.empty(end)
        reader.read(tensor, 0, state[tensor])
    return state


def _losses(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in lines] == list(range(BATCH, WHOLE + 1, BATCH))
    return [
        {
            key: math.nan if value is None else value  # JSON has no NaN
            for key, value in line.items()
            if "/loss" in key or key.endswith("/r1")
        }
        for line in lines
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train every objective to the end in several ways; returns the directory of the runs."""
    root = tmp_path_factory.mktemp("runs")
    run_ranks(2, _train, str(root / "two_ranks"), 1, None, WHOLE)
    run_ranks(2, _train, str(root / "resumed"), 1, None, HALF, WHOLE)
    run_ranks(1, _train, str(root / "one_rank"), 0, None, WHOLE)
    run_ranks(2, _train, str(root / "micro_batches"), 2, 2, WHOLE)
    run_ranks(2, _train_recomputing, str(root / "recomputing"))
    run_ranks(2, _train, str(root / "elastic"), 1, None, HALF)
    run_ranks(1, _train, str(root / "elastic"), 2, 4, WHOLE)
    return root


@pytest.mark.distributed
@pytest.mark.parametrize("name", TINY)
def test_resume_is_bitwise_the_uninterrupted_run(runs: Path, name: str) -> None:
    whole = whole_tensors(runs / "two_ranks" / name)
    resumed = whole_tensors(runs / "resumed" / name)
    assert whole.keys() == resumed.keys()
    for tensor, values in whole.items():
        assert torch.equal(values, resumed[tensor]), tensor
    pairs = zip(_losses(runs / "two_ranks" / name), _losses(runs / "resumed" / name), strict=True)
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, rel=0, abs=0, nan_ok=True)


@pytest.mark.distributed
@pytest.mark.parametrize("variant", ["one_rank", "micro_batches", "elastic", "recomputing"])
@pytest.mark.parametrize("name", TINY)
def test_ranks_micro_batches_zero_stage_and_recomputing_do_not_matter(
    runs: Path, name: str, variant: str
) -> None:
    for ours, theirs in zip(
        _losses(runs / "two_ranks" / name), _losses(runs / variant / name), strict=True
    ):
        assert ours == pytest.approx(theirs, rel=2e-4, abs=1e-6, nan_ok=True)
    whole, other = whole_tensors(runs / "two_ranks" / name), whole_tensors(runs / variant / name)
    assert whole.keys() == other.keys()
    lr = 1e-3
    for tensor, values in whole.items():
        if "/exp_avg" in tensor:
            continue
        # Adam turns rounding noise of gradients that are zero in theory into steps of +-lr; all
        # but a few weights must agree to summation order.
        difference = (values - other[tensor]).abs()
        assert difference.max() <= 2 * lr * WHOLE / BATCH, tensor
    weights = [tensor for tensor in whole if "/exp_avg" not in tensor]
    differences = torch.cat([(whole[tensor] - other[tensor]).abs() for tensor in weights])
    assert differences.quantile(0.98) < 2e-6


@pytest.mark.distributed
def test_snapshots_sample(runs: Path) -> None:
    from models.sampler import sample

    stages = [read_snapshot(runs / "two_ranks" / name) for name in TINY]
    pair = load_sampler([stages[2]])
    images = sample(pair, range(3))
    assert images.shape == (3, 3, 32, 32)
    assert torch.equal(images[1:2], sample(pair, [1]))
    assert newest_snapshot(runs / "two_ranks" / "tiny_edm").name == f"{WHOLE:012d}"
    untrained = read_snapshot(runs / "two_ranks" / "tiny_edm" / "snapshots" / f"{0:012d}")
    assert untrained.images_seen == 0
    trained = stages[0].load_weights()
    changed = [not torch.equal(v, trained[k]) for k, v in untrained.load_weights().items()]
    assert sum(changed) > len(changed) / 2


@pytest.mark.distributed
def test_committed_checkpoints_are_pruned_and_no_leftovers_stay(runs: Path) -> None:
    for name in TINY:
        names = [path.name for path in committed(runs / "two_ranks" / name)]
        assert names == [f"{HALF:012d}", f"{WHOLE:012d}"]
        state = CheckpointReader(committed(runs / "two_ranks" / name)[-1]).state
        assert (state.images_seen, state.step) == (WHOLE, WHOLE // BATCH)
        assert set(state.updates.values()) == {WHOLE // BATCH}
        checkpoints = runs / "two_ranks" / name / "checkpoints"
        assert sorted(path.name for path in checkpoints.iterdir()) == names
