"""`micro_batch_size=auto`, and runs that have no memory for their micro-batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from dist_train.__main__ import main
from dist_train.config import RunConfig
from dist_train.dry_run import check_settings
from dist_train.planning import micro_batch
from dist_train.planning.checks import AUTO, plan_batches
from dist_train.planning.flops import measure_step
from dist_train.planning.hardware import GPUS
from dist_train.planning.memory import RESERVE, memory
from dist_train.planning.micro_batch import plan_micro_batch, settle_micro_batch
from dist_train.precision import settle_precision
from dist_train.recipes import RECIPES
from dist_train.runtime.world import World, init_world
from models.config_io import ConfigError, override
from tests.dist_train.test_trainer import whole_tensors
from tests.ranks import run_ranks
from tests.tiny import tiny_edm, tiny_wavediff

OWN_IMAGES = [name for name in RECIPES if "_images" in name]
ALONE = World(0, 0, 1, torch.device("cpu"))
RUN = ["rdm_debug_edm16", "compute.precision=float32"]


@pytest.mark.parametrize(
    ("total", "multiple", "ranks", "most", "expected"),
    [
        (32, 1, 1, None, 32),
        (32, 1, 2, None, 16),
        (32, 1, 1, 31, 16),
        (48, 4, 2, 13, 12),
        (48, 4, 2, 11, 8),
        (30, 1, 2, 4, 3),
        (32, 4, 2, 3, 4),  # the least that there is
        (32, 1, 1, 0, 1),
    ],
)
def test_auto_divides_the_batch_into_equal_passes(
    total: int, multiple: int, ranks: int, most: int | None, expected: int
) -> None:
    batches = plan_batches(total, AUTO, multiple, ranks, most)
    assert batches.micro == expected
    assert batches.micro * batches.accumulation_steps * ranks == total


@pytest.mark.parametrize(("total", "multiple", "ranks"), [(32, 1, 3), (6, 4, 1), (2, 1, 4)])
def test_auto_cannot_divide_every_batch(total: int, multiple: int, ranks: int) -> None:
    with pytest.raises(ConfigError, match="is not a multiple of"):
        plan_batches(total, AUTO, multiple, ranks)


@pytest.mark.parametrize("name", OWN_IMAGES)
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_recipes_for_own_images_are_accepted_on_one_gpu_two_and_eight(
    name: str, ranks: int
) -> None:
    batches = check_settings(RECIPES[name](), ranks)
    assert batches.micro * batches.accumulation_steps * ranks == batches.total


@pytest.mark.parametrize(
    ("name", "gpu"),
    [("rdm_images64", "rtx4090-24g"), ("rdm_images512", "a100-80g")],
)
def test_the_planned_micro_batch_fits_by_a_count_at_its_own_size(name: str, gpu: str) -> None:
    config, room = settle_precision(RECIPES[name](), bfloat16=True), GPUS[gpu].memory_bytes
    size = plan_micro_batch(config, 1, room).micro_batch_size
    assert isinstance(size, int)
    parts = memory(config, measure_step(config.objective, size), 0, 1)
    assert 0.3 * room < parts.total < (1 - RESERVE / 2) * room


def _with_memory_for(most: int, calls: list[int]) -> Any:
    def run(config: RunConfig, size: int, device: torch.device) -> None:
        calls.append(size)
        if size > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory for {size} images")

    return mock.patch.object(micro_batch, "_run_losses", run)


def test_a_run_is_that_of_the_micro_batch_that_it_found_and_keeps_it(tmp_path: Path) -> None:
    calls: list[int] = []
    auto, known = tmp_path / "auto", tmp_path / "known"
    with _with_memory_for(3, calls):
        first = [*RUN, "--run-dir", str(auto), "micro_batch_size=auto"]
        assert main([*first, "total_images=32"]) == 0
        assert calls == [8, 4, 2]
        assert json.loads((auto / "format.json").read_text())["micro_batch_size"] == 2
        assert json.loads((auto / "config.json").read_text())["micro_batch_size"] == "auto"
        assert main([*first, "total_images=64", "--allow-changes"]) == 0
        assert calls == [8, 4, 2], "a run that resumes tries nothing"
    assert main([*RUN, "--run-dir", str(known), "micro_batch_size=2"]) == 0
    ours, theirs = whole_tensors(auto), whole_tensors(known)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_losses_are_tried_as_they_are_trained() -> None:
    for config in (tiny_edm(), tiny_wavediff()):
        settled = settle_micro_batch(replace(config, micro_batch_size="auto"), None, ALONE)
        assert settled.micro_batch_size == config.global_batch_size


def test_another_number_of_ranks_takes_the_next_size_that_divides_the_batch() -> None:
    config = override(tiny_edm(), ["global_batch_size=24", "micro_batch_size=auto"])
    world = replace(ALONE, size=4)
    assert settle_micro_batch(config, 8, ALONE).micro_batch_size == 8
    assert settle_micro_batch(config, 8, world).micro_batch_size == 6


def test_no_memory_for_the_least_size_names_what_to_change() -> None:
    config = replace(tiny_wavediff(), micro_batch_size="auto")
    with (
        _with_memory_for(1, []),
        pytest.raises(
            micro_batch.OutOfMemoryError, match="at micro_batch_size=2 on 1 ranks"
        ) as error,
    ):
        settle_micro_batch(config, None, ALONE)
    text = str(error.value)
    assert "objective.generator.recompute_blocks=true" in text
    assert "objective.discriminator.recompute_blocks=true" in text
    assert "micro_batch_size=1" not in text, "it is no multiple of a minibatch-stddev group"


def _agree(root: Path) -> None:
    world = init_world()
    config = replace(tiny_edm(), micro_batch_size="auto")
    with _with_memory_for(2 - world.rank, []):  # a rank has memory for less than the other
        assert settle_micro_batch(config, None, world).micro_batch_size == 1


@pytest.mark.distributed
def test_all_ranks_take_what_the_smallest_has_memory_for(tmp_path: Path) -> None:
    run_ranks(2, _agree, tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"
        ),
    ],
)
def test_a_run_out_of_memory_names_the_settings_to_change(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch("dist_train.trainer.Trainer._train_step", side_effect=error):
        assert main([*RUN, "--run-dir", str(tmp_path / "run")]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "micro_batch_size=8 on 1 ranks; set micro_batch_size=4, or objective.unet.rec" in text
    resumed = [*RUN, "--run-dir", str(tmp_path / "run"), "micro_batch_size=4", "--allow-changes"]
    assert main(resumed) == 0


def test_another_error_is_not_taken_for_one_of_memory(tmp_path: Path) -> None:
    with mock.patch("dist_train.trainer.Trainer._train_step", side_effect=RuntimeError("index")):
        assert main([*RUN, "--run-dir", str(tmp_path / "run")]) == 1
