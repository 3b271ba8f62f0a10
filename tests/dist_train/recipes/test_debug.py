"""The CPU-sized recipes of both families train, and make images from their snapshots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dist_train.recipes import RECIPES
from models.config_io import override
from models.sampler import sample
from models.snapshot import load_sampler, read_snapshot
from tests.ranks import run_ranks

IMAGES = 240
STAGES = {
    "rdm_debug_edm16": ["rdm_debug_edm16"],
    "rdm_debug_relay64": ["rdm_debug_edm16", "rdm_debug_relay64"],
    "wavediff_debug": ["wavediff_debug"],
    "ddgan_debug": ["ddgan_debug"],
}


def _train(root: Path) -> None:
    from dist_train.build import build_trainer
    from dist_train.runtime.world import init_world

    for name in STAGES:
        (root / name).mkdir()
        names = ("total_images", "checkpoint.every_images", "checkpoint.snapshot_every_images")
        config = override(RECIPES[name](), [f"{setting}={IMAGES}" for setting in names])
        build_trainer(config, root / name, init_world()).fit()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("debug")
    run_ranks(1, _train, root)
    return root


@pytest.mark.distributed
@pytest.mark.parametrize("name", STAGES)
def test_trains_and_samples(trained: Path, name: str) -> None:
    lines = (trained / name / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["images_seen"] == IMAGES
    sampler = load_sampler([read_snapshot(trained / stage) for stage in STAGES[name]])
    images = sample(sampler, [0, 1])
    edge = RECIPES[name]().data.resolution
    assert (images.shape, images.dtype) == ((2, 3, edge, edge), torch.uint8)
    assert not torch.equal(images[0], images[1])


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["rdm_debug_edm16", "rdm_debug_relay64"])
def test_denoisers_learn(trained: Path, name: str) -> None:
    lines = (trained / name / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["denoiser/loss"] for line in lines]
    half = len(losses) // 2
    assert sum(losses[half:]) / (len(losses) - half) < 0.95 * sum(losses[:half]) / half, losses
