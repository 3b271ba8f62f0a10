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
from dist_train.planning.flops import CostMeter, Footprint, Operation, measure_step
from dist_train.planning.hardware import GPUS, find_gpu
from dist_train.planning.plan import (
    Machine,
    best_interval,
    duration,
    memory,
    step_seconds,
    traffic,
    traffic_seconds,
)
from dist_train.planning.roofline import roofline
from dist_train.recipes import RECIPES
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
            footprint = measure_step(config.objective, BATCH // RANKS)
            planned = traffic(footprint, zero_stage, RANKS, trainer.batches.accumulation_steps)
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


def test_traffic_and_interval_follow_their_formulas() -> None:
    footprint = Footprint(1.0, 0, 0, {"denoiser": 250_000_000}, 0)
    assert traffic(footprint, 1, 2, 4) == pytest.approx(1e9)  # 2P (N - 1) / N, 4 bytes each
    assert traffic(footprint, 3, 2, 1) == pytest.approx(1.5e9)
    assert traffic(footprint, 2, 2, 4) == pytest.approx(2.5e9)
    machine = Machine(GPUS["a100-40g"], 2, 8, 100e9, 0.4)
    assert traffic_seconds(1e9, machine) == pytest.approx(0.01)  # the network, not NVLink
    assert traffic_seconds(1e9, replace(machine, nodes=1)) == pytest.approx(1e9 / 300e9)
    # docs/reference/deepspeed.md#3.4: a stall of 1 s, failures each 33 days: every 40 minutes
    assert best_interval(1.0, 64, 64 * 33 * 24) == pytest.approx(40 * 60, rel=0.01)
    assert find_gpu("NVIDIA A100-SXM4-40GB") == GPUS["a100-40g"]
    assert find_gpu("Abacus") is None


def test_the_command_prints_a_plan_or_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["plan", "quickstart_edm16", "--gpus-per-node", "2", "--gpu", "a100-40g"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for word in ("parameters", "GB per GPU", "images/s", "GPU-days", "Young/Daly", "bound by"):
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


@pytest.mark.parametrize(
    ("name", "nodes", "published_days"),
    [("rdm_imagenet256", 8, 12.5), ("rdm_celebahq256", 4, 25.5 / 24)],
)
def test_published_stage_2_runs_are_met_within_a_quarter(
    name: str, nodes: int, published_days: float
) -> None:
    config = RECIPES[name]()
    footprint = measure_step(config.objective, 8)
    machine = Machine(GPUS["a100-40g"], nodes, 8, 100e9)
    step = sum(step_seconds(config, footprint, 8, 1, machine))
    days = config.total_images / config.global_batch_size * step / 86400
    assert days == pytest.approx(published_days, rel=0.25)


def test_the_longest_of_arithmetic_memory_and_launch_is_what_an_operation_takes() -> None:
    gpu = GPUS["a100-40g"]
    product = {Operation("float32", 10**12, 1): 2.0}
    exact, tf32 = roofline(product, gpu, tf32=False), roofline(product, gpu, tf32=True)
    half = roofline({Operation("bfloat16", 10**12, 1): 2.0}, gpu, tf32=True)
    assert exact.arithmetic == exact.seconds == pytest.approx(2e12 / (19.5e12 * 0.6))
    assert exact.seconds == pytest.approx(8 * tf32.seconds)
    assert tf32.seconds == pytest.approx(2 * half.seconds)
    copy = roofline({Operation("float32", 0, 10**9): 1.0}, gpu, tf32=True)
    assert copy.memory == copy.seconds == pytest.approx(1e9 / (1.555e12 * 0.8))
    small = roofline({Operation("float32", 10, 10): 1000.0}, gpu, tf32=True)
    assert small.launches == small.seconds == pytest.approx(6e-3)
    assert small.describe().startswith("launches 100%")


def test_views_allocations_and_questions_cost_nothing() -> None:
    meter = CostMeter()
    with meter:
        x = torch.empty(4, 4).view(16).detach()
        x + x
    assert meter.operations == {Operation("float32", 0, 2 * 64): 1}


def test_cards_are_found_by_what_cuda_calls_them() -> None:
    for spelled, name in (
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-80g"),
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA H100 PCIe", "h100-pcie-80g"),
        ("NVIDIA H100 NVL", "h100-nvl-94g"),
        ("NVIDIA B200", "b200-180g"),
        ("AMD Instinct MI300X", "mi300x-192g"),
    ):
        assert find_gpu(spelled) is GPUS[name], spelled


def test_durations_are_never_zero_point_zero() -> None:
    assert [duration(s) for s in (864_000, 90_000, 600)] == [
        "10.0 days",
        "25.0 hours",
        "10.0 minutes",
    ]
