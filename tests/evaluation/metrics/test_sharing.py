"""Metrics are shared by ranks: each part is computed once; values do not depend on the ranks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.runtime.world import World, init_world
from evaluation.metrics import kid_cmmd, precision_recall
from evaluation.metrics.registry import MetricRequest
from evaluation.metrics.sharing import alone, shared
from evaluation.metrics.statistics import FeatureSet, gaussian_of
from tests.ranks import run_ranks

SHARED = ("pr_adm", "pr_stylegan", "kid", "kid_subsets", "cmmd", "fd_inf", "is_inf", "fd_per_class")


def feature_set(seed: int, count: int) -> FeatureSet:
    generator = np.random.default_rng(seed)
    rows = generator.normal(seed / 50, 1, (count, 12)).astype(np.float32)
    labels = np.arange(count) % 5
    return FeatureSet({}, count, {"t": gaussian_of(rows)}, {"t": rows}, range(count), labels)


def values(world: World, kind: str, bootstrap: int = 0) -> dict[str, object]:
    """Return a metric of sets that are cut into several blocks, the last of them smaller."""
    sizes = precision_recall.BLOCK, kid_cmmd.BLOCK
    precision_recall.BLOCK, kid_cmmd.BLOCK = 64, 96
    try:
        result = MetricRequest(kind, "t", bootstrap).compute(
            feature_set(1, 300), feature_set(2, 230), world
        )
    finally:
        precision_recall.BLOCK, kid_cmmd.BLOCK = sizes
    del result["seconds"]
    return result


def save_values(path: Path) -> None:
    world = init_world()
    found = {kind: values(world, kind) for kind in SHARED}
    found |= {f"{kind} interval": values(world, kind, 5) for kind in ("kid", "fd")}
    path.with_suffix(f".{world.rank}").write_text(json.dumps(found))


@pytest.mark.distributed
def test_values_are_the_same_bits_on_any_number_of_ranks(tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2, 3):
        run_ranks(ranks, save_values, tmp_path / f"{ranks}.json")
        files = [tmp_path / f"{ranks}.{rank}" for rank in range(ranks)]
        found += [json.loads(file.read_text()) for file in files]
    assert set(SHARED) < set(found[0])
    for other in found[1:]:
        assert other == found[0]


def save_calls(path: Path) -> None:
    world, calls = init_world(), []

    def part(number: int) -> int:
        calls.append(number)
        return number**2

    assert shared(part, 7, world) == [number**2 for number in range(7)]
    assert alone(world).gather_objects(world.rank) == [world.rank]
    path.with_suffix(f".{world.rank}").write_text(json.dumps(calls))


@pytest.mark.distributed
def test_each_part_is_computed_by_one_rank(tmp_path: Path) -> None:
    run_ranks(3, save_calls, tmp_path / "calls")
    calls = [json.loads((tmp_path / f"calls.{rank}").read_text()) for rank in range(3)]
    assert sorted(itertools.chain(*calls)) == list(range(7))
    assert max(map(len, calls)) - min(map(len, calls)) <= 1


@pytest.mark.parametrize("kind", ["pr_adm", "pr_stylegan", "kid", "cmmd"])
def test_blocks_bound_memory_and_change_rounding_only(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No distance or kernel is ever taken of more rows than a block has."""
    largest = [0]

    def noted(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            largest[0] = max(largest[0], len(u), len(v))
            return function(u, v)

        return call

    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    sets = feature_set(1, 300), feature_set(2, 230)
    joined = MetricRequest(kind, "t").compute(*sets, world)["values"]
    for name in ("polynomial_kernel", "gaussian_kernel"):
        monkeypatch.setattr(kid_cmmd, name, noted(getattr(kid_cmmd, name)))
    monkeypatch.setattr(torch, "cdist", _of_blocks(torch.cdist, largest))
    monkeypatch.setattr(precision_recall, "_adm_squared", noted(precision_recall._adm_squared))
    blocked = values(world, kind)["values"]
    assert 0 < largest[0] <= 96
    assert blocked == pytest.approx(joined, rel=1e-10)


def _of_blocks(cdist: Callable[..., torch.Tensor], largest: list[int]) -> object:
    def call(u: torch.Tensor, v: torch.Tensor, **options: str) -> torch.Tensor:
        largest[0] = max(largest[0], len(u), len(v))
        return cdist(u, v, **options)

    return call


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [*SHARED, "pr", "prdc", "fd", "fd_biased", "mind"])
def test_values_on_a_gpu_are_those_of_the_cpu(kind: str) -> None:
    """To rounding; half-precision metrics may decide one sample otherwise."""
    cpu, gpu = (
        values(World(rank=0, local_rank=0, size=1, device=torch.device(name)), kind)["values"]
        for name in ("cpu", "cuda")
    )
    assert gpu == pytest.approx(cpu, rel=1e-5, abs=1.01 / 230 if kind.startswith("pr_") else 1e-9)
