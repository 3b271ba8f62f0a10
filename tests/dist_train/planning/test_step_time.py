"""Times of a step: rooflines, the optimizer, data; published runs."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
import torch

from data_pipelines.pipeline import DataConfig
from dist_train.config import ShardingConfig
from dist_train.dry_run import check_settings
from dist_train.planning.flops import CostMeter, Footprint, Operation
from dist_train.planning.hardware import GPUS, Gpu, Machine, find_gpu
from dist_train.planning.plan import make_plan
from dist_train.planning.published import SAMPLING, SAMPLING_GPU, TRAINING
from dist_train.planning.roofline import roofline
from dist_train.planning.sampling import measure_sampling, usual_batch
from dist_train.planning.step_time import data_needs, step_time, update_bytes
from dist_train.recipes import RECIPES
from tests.paths import ROOT
from tests.tiny import tiny_edm

NETWORK = 100e9


@pytest.mark.parametrize("name", ["rdm_imagenet256", "rdm_celebahq256"])
def test_published_stage_2_runs_are_met_within_a_quarter(name: str) -> None:
    published, config = TRAINING[name], RECIPES[name]()
    machine = Machine(GPUS[published.gpu], published.ranks // 8, 8, NETWORK)
    plan = make_plan(config, check_settings(config, published.ranks), machine)
    assert plan.wall_seconds == pytest.approx(published.seconds, rel=0.25)


@pytest.mark.parametrize("name", SAMPLING)
def test_published_sampling_times_are_met_within_a_factor_of_two(name: str) -> None:
    config = RECIPES[name]()
    cost = measure_sampling(config.objective, usual_batch(config.data.resolution))
    bounds = roofline(cost.operations, GPUS[SAMPLING_GPU], config.compute.tf32)
    assert 0.5 < bounds.seconds / SAMPLING[name] < 2


def test_published_sampling_times_are_those_that_evaluation_compares_with() -> None:
    document = tomllib.loads((ROOT / "evaluation/published.toml").read_text())
    rows = document["wavediff_time"]["rows"]
    assert {row["model"]: row["seconds"] for row in rows} == SAMPLING


def test_the_longest_of_arithmetic_memory_and_launch_is_what_an_operation_takes() -> None:
    gpu = GPUS["a100-40g"]
    product = {Operation("float32", 10**12, 1): 2.0}
    exact, tf32 = roofline(product, gpu, tf32=False), roofline(product, gpu, tf32=True)
    half = roofline({Operation("bfloat16", 10**12, 1): 2.0}, gpu, tf32=True)
    assert exact.arithmetic == exact.seconds == pytest.approx(2e12 / (19.5e12 * 0.6))
    assert tf32.seconds == pytest.approx(2e12 / (156e12 * 0.25))
    assert half.seconds == pytest.approx(2e12 / (312e12 * 0.6))
    copy = roofline({Operation("float32", 0, 10**9): 1.0}, gpu, tf32=True)
    assert copy.memory == copy.seconds == pytest.approx(1e9 / (1.555e12 * 0.8))
    small = roofline({Operation("float32", 10, 10): 1000.0}, gpu, tf32=True)
    assert small.launches == small.seconds == pytest.approx(6e-3)


def test_tf32_is_for_float32_alone_and_by_default_for_convolutions_alone() -> None:
    gpu = GPUS["h100-80g"]
    products = [Operation("float32", 10**12, 1, is_convolution=k) for k in (False, True)]
    product, convolution = (roofline({p: 1.0}, gpu, tf32=None).seconds for p in products)
    assert product == roofline({products[0]: 1.0}, gpu, tf32=False).seconds
    assert convolution == roofline({products[0]: 1.0}, gpu, tf32=True).seconds < product
    double = {Operation("float64", 10**12, 1): 1.0}
    assert roofline(double, gpu, tf32=True) == roofline(double, gpu, tf32=False)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_a_narrower_dtype_is_never_slower(gpu: Gpu) -> None:
    def seconds(dtype: str, tf32: bool) -> float:
        return roofline({Operation(dtype, 10**12, 1): 1.0}, gpu, tf32).seconds

    assert seconds("bfloat16", True) < seconds("float32", True) <= seconds("float32", False)


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


def test_an_update_reads_and_writes_what_adam_needs_and_its_part_only() -> None:
    config = tiny_edm()  # one average, of the only network
    footprint = Footprint(1.0, 0, 0, {"denoiser": 1000}, 0)
    alone = update_bytes(config, footprint, ranks=1, passes=1)
    assert alone == 4 * 1000 * (7 + 3)
    assert update_bytes(config, footprint, ranks=1, passes=3) == alone + 2 * 4 * 1000 * 3
    sharded = update_bytes(config, footprint, ranks=4, passes=1)
    assert sharded == alone / 4 + 4 * 1000 * 2  # the copy that is reduced
    zero = replace(config, sharding=ShardingConfig(zero_stage=0))
    assert update_bytes(zero, footprint, ranks=4, passes=1) == 4 * 1000 * (7 + 3 / 4 + 2)


def test_a_step_waits_for_decoding_that_takes_longer() -> None:
    operations = {("denoiser", "backward"): {Operation("float32", 0, 1000): 1.0},
                  ("denoiser", "forward"): {Operation("float32", 0, 1000): 1.0}}  # fmt: skip
    footprint = Footprint(1.0, 0, 0, {"denoiser": 1000}, 0, operations)
    machine = Machine(GPUS["a100-40g"], 1, 1, NETWORK)
    fed = step_time(tiny_edm(), footprint, 8, machine)
    assert (fed.data, fed.bound) == (0, "launches")
    data = DataConfig(path="x", resolution=256, workers=2)
    waiting = step_time(replace(tiny_edm(), data=data), footprint, 8, machine)
    assert waiting.bound == "data"
    assert waiting.seconds == pytest.approx(8 * data_needs(data).seconds)
    assert waiting.describe().startswith("data ")
    more = replace(data, workers=4)
    assert data_needs(more).seconds == data_needs(data).seconds / 2


def test_a_measured_utilisation_takes_the_place_of_the_roofline() -> None:
    config = RECIPES["rdm_debug_edm16"]()
    batches = check_settings(config, 1)
    machine = Machine(GPUS["a100-40g"], 1, 1, NETWORK, mfu=0.01)
    plan = make_plan(config, batches, machine)
    per_pass = plan.footprint.flops / (GPUS["a100-40g"].peak_flops * 0.01)
    assert plan.step.arithmetic == pytest.approx(per_pass * batches.accumulation_steps)
