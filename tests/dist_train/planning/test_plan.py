"""Planning: memory against real small runs, operations and formulas against closed forms."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dist_train.__main__ import main
from dist_train.config import RunConfig, ShardingConfig
from dist_train.planning.communication import traffic
from dist_train.planning.flops import CostMeter, Footprint, measure_step
from dist_train.planning.memory import memory
from dist_train.planning.plan import best_interval, duration, gpu_time
from models.objective import Example
from models.rdm.config import EdmConfig
from models.wavediff.config import WaveDiffConfig
from tests.ranks import run_ranks
from tests.tiny import BATCH, TINY, tiny_edm
from tests.traffic import TrafficMeter

RANKS = 2


def _config(name: str, zero_stage: int) -> RunConfig:
    """Return a run whose weights take memory that shows next to its activations."""
    config = replace(TINY[name](), sharding=ShardingConfig(zero_stage=zero_stage))  # type: ignore[arg-type]
    if isinstance(config.objective, WaveDiffConfig):
        pair = config.objective
        generator = replace(pair.generator, base_channels=32)
        discriminator = replace(pair.discriminator, base_channels=16)
        pair = replace(pair, generator=generator, discriminator=discriminator)
        return replace(config, objective=pair)
    assert isinstance(config.objective, EdmConfig)
    unet = replace(config.objective.unet, model_channels=32)
    objective = replace(config.objective, unet=unet, augment_probability=0.0)
    return replace(config, objective=objective)


CASES = [*(("tiny_edm", stage) for stage in range(4)), *(("tiny_wavediff", z) for z in range(3))]


def _measure(run_dir: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    world = init_world()
    for name, zero_stage in CASES:
        config = _config(name, zero_stage)
        case_dir = run_dir / f"{name}{zero_stage}"
        case_dir.mkdir(exist_ok=True)
        gc.collect()
        meter = CostMeter()
        with meter:  # all tensors of this process, from the first weight on
            trainer = build_trainer(config, case_dir, world)
            examples = trainer._examples()
            for _ in range(2):  # the second step has moments; step 0 has all that is done at times
                trainer.step = 0
                trainer._train_step(examples)
        planned = memory(
            config, measure_step(config.objective, BATCH // RANKS), zero_stage, RANKS
        ).total
        assert planned == pytest.approx(meter.peak, rel=0.1), f"{name} ZeRO-{zero_stage}"
        for engine in trainer.engines.values():
            engine.close()
        del trainer, examples, meter


@pytest.mark.distributed
def test_planned_memory_is_that_of_real_runs_within_ten_per_cent(tmp_path: Path) -> None:
    run_ranks(RANKS, _measure, tmp_path)


def _count_traffic(root: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    world = init_world()
    for name, zero_stage in CASES:
        for micro in (None, 2):
            config = replace(_config(name, zero_stage), micro_batch_size=micro)
            trainer = build_trainer(config, root, world)
            examples = trainer._examples()
            trainer._train_step(examples)
            with TrafficMeter(RANKS) as meter:
                trainer._train_step(examples)
            sizes = measure_step(config.objective, BATCH // RANKS).parameters.values()
            passes = trainer.batches.accumulation_steps
            planned = traffic(config.sharding, sizes, RANKS, passes)
            assert meter.sent == pytest.approx(planned, rel=0.05), f"{name} ZeRO-{zero_stage}"
            for engine in trainer.engines.values():
                engine.close()


@pytest.mark.distributed
def test_planned_traffic_is_that_of_the_collectives_that_are_called(tmp_path: Path) -> None:
    run_ranks(RANKS, _count_traffic, tmp_path)


def test_memory_follows_the_published_formulas_when_ranks_are_many() -> None:
    size = 10**9
    footprint = Footprint(1.0, 0, 4 * size, {"denoiser": size}, 0)
    ranks = 1000
    totals = [memory(tiny_edm(), footprint, stage, ranks).total / size for stage in range(4)]
    assert totals[0] == pytest.approx(20, abs=0.1)  # 4 weights, 4 gradients, 8 moments, 4 Adam
    assert totals[1] == pytest.approx(12, abs=0.1)  # weights, gradients and the copy to be sent,
    large = replace(footprint, activation_bytes=4 * size)  # for which activations make room
    large_total = memory(tiny_edm(), large, 1, ranks).total / size
    assert large_total == pytest.approx(12, abs=0.1)
    assert totals[2] == pytest.approx(4.4, abs=0.1)  # weights and two buckets
    assert totals[3] == pytest.approx(0.6, abs=0.1)  # two buckets, and one of weights


def test_operations_of_a_convolution_are_counted_forward_and_backward() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1)
    meter = CostMeter()
    with meter:
        layer(torch.zeros(2, 3, 8, 8)).sum().backward()
    forward = 2 * (2 * 8 * 8) * 5 * (3 * 9)
    assert meter.flops == 2 * forward  # no gradient of the input is needed


def test_recomputing_blocks_saves_activations() -> None:
    pair = TINY["tiny_wavediff"]().objective
    assert isinstance(pair, WaveDiffConfig)
    lean = replace(
        pair,
        generator=replace(pair.generator, recompute_blocks=True),
        discriminator=replace(pair.discriminator, recompute_blocks=True),
    )
    assert measure_step(lean, BATCH).activation_bytes < measure_step(pair, BATCH).activation_bytes


def test_the_interval_follows_its_formula() -> None:
    # docs/reference/deepspeed.md#3.4: a stall of 1 s, failures each 33 days: every 40 minutes
    assert best_interval(1.0, 64, 64 * 33 * 24) == pytest.approx(40 * 60, rel=0.01)


def test_the_command_prints_a_plan_or_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["plan", "quickstart_edm16", "--gpus-per-node", "2", "--gpu", "a100-40g"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for word in (
        "parameters",
        "GB per GPU",
        "images/s",
        "GPU-hours",
        "Young/Daly",
        "bound by",
        "memory of a host",
        "decoded",
        "sampling",
    ):
        assert word in printed
    assert "in bfloat16" in printed
    assert main([*command, "--gpu", "v100-16g", "--gpu-hours-per-failure", "1000"]) == 0
    printed = capsys.readouterr().out
    assert "in float32" in printed
    assert "a failure per 1,000 GPU-hours" in printed
    assert main([*command, "sharding.offload=optimizer"]) == 0
    assert "optimizer is in the host's memory" in capsys.readouterr().out
    assert main([*command, "--gpu", "abacus"]) == 2
    assert "--gpu=abacus is not one of v100-16g" in capsys.readouterr().err


REJECTED = [
    "global_batch_size=100 micro_batch_size=8",
    "global_batch_size=0",
    "data.resolution=8",
    "checkpoint.keep_best=denoiser/lss",
    "sharding.offload=optimizer sharding.zero_stage=0",
    "sharding.deepspeed={'zero_optimization':{'overlap_comm':true}}",
    "sharding.deepspeed={'fp16':{'enabled':true}}",
    "optim.generator={'lr':1e-3}",
    "objective.unet.channel_mult=[1,-2]",
    "objective.unet.model_chanels=8",
    "compute.precision=int8",
]


@pytest.mark.parametrize("settings", REJECTED)
def test_what_training_rejects_a_plan_rejects_with_the_same_line(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["rdm_debug_edm16", *settings.split()]
    assert main([*given, "--run-dir", str(tmp_path / "run"), "--ranks", "2", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert main(["plan", *given, "--nodes", "1", "--gpus-per-node", "2"]) == 2
    assert capsys.readouterr().err == said


def test_a_plan_reads_deepspeeds_settings_from_a_file_as_training_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deepspeed.json"
    plan = ["plan", "rdm_debug_edm16", "sharding.zero_stage=2", "--deepspeed", str(file)]
    file.write_text('{"zero_optimization": {"overlap_comm": true}}')
    assert main(plan) == 0
    capsys.readouterr()
    for text, override in (('{"fp16": {"enabled": true}}', []),
                           ("{}", ["sharding.deepspeed={}"])):  # fmt: skip
        file.write_text(text)
        training = ["--run-dir", str(tmp_path / "run"), "--ranks", "2", "--dry-run"]
        assert main([*plan[1:], *override, *training]) == 2
        said = capsys.readouterr().err
        assert main([*plan, *override]) == 2
        assert capsys.readouterr().err == said


def test_a_plan_reads_the_size_of_its_job_and_checks_a_set_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    debug = ["plan", "rdm_debug_edm16"]
    assert main([*debug, "sharding.nodes=2", "sharding.gpus_per_node=4"]) == 0
    assert "on 2 x 4 GPUs" in capsys.readouterr().out
    assert main([*debug, "data.backend=webdataset", f"data.path={tmp_path}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main([*debug, "data.backend=webdataset", f"data.path={tmp_path / 'later'}"]) == 0


@pytest.mark.parametrize("name", TINY)
def test_counting_leaves_no_empty_tables_behind(name: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensor

    config = TINY[name]()
    measure_step.cache_clear()
    measure_step(config.objective, BATCH)
    objective = config.objective.build()
    networks = objective.build_networks()
    edge = config.data.resolution
    images = torch.zeros(BATCH, 3, edge, edge, dtype=torch.uint8)
    labels = torch.zeros(BATCH, dtype=torch.int64) if config.objective.label_dim else None
    example = Example(objective.prepare(images), labels, tuple(range(BATCH)), 0)
    for loss_fn in objective.losses().values():
        loss, _ = loss_fn(networks, example, 0)
        assert not isinstance(loss, FakeTensor)
        assert loss.isfinite()


def test_durations_are_never_zero_point_zero() -> None:
    shown = [duration(s) for s in (864_000, 90_000, 600, 30, 0.0507)]
    assert shown == ["10.0 days", "25.0 hours", "10.0 minutes", "30.0 seconds", "50.7 ms"]
    assert [gpu_time(days) for days in (880.1, 0.5)] == ["880 GPU-days", "12 GPU-hours"]
