"""Every RDM recipe builds, has the published size, and survives JSON; sampler settings add up."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from dist_train.config import RunConfig
from dist_train.recipes import rdm
from models.config_io import from_json, override, to_json
from models.rdm import presets
from models.rdm.config import EdmConfig, RelayConfig

PARAMETERS = {
    "rdm_imagenet64": 295_899_267,
    "rdm_imagenet256": 553_831_171,
    "rdm_imagenet256_guided": 553_831_171,
    "rdm_imagenet256_no_block_noise": 553_831_171,
    "rdm_celebahq64": 295_132_995,
    "rdm_celebahq256": 552_809_475,
    "rdm_celebahq256_no_block_noise": 552_809_475,
    "rdm_lsun_bedroom64": 295_131_267,
    "rdm_lsun_bedroom256": 552_807_171,
    "rdm_lsun_church64": 295_132_995,
    "rdm_lsun_church256": 552_809_475,
    "rdm_debug_edm16": 641_891,
    "rdm_debug_relay64": 763_867,
}
WITH_AUGMENT_INPUT = {"rdm_imagenet64": 295_900_995, "rdm_imagenet256": 553_833_475}
NFE = {
    "GENERIC_EDM": 35,
    "GENERIC_RELAY": 13,
    "IMAGENET_EDM": 511,
    "IMAGENET_RELAY": 199,
    "IMAGENET_RELAY_GUIDED": 398,
    "CELEBAHQ_EDM": 239,
    "CELEBAHQ_RELAY": 107,
}


def count_parameters(config: EdmConfig | RelayConfig) -> int:
    with torch.device("meta"):
        network = config.build().build_networks()["denoiser"]
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("recipe", rdm.RECIPES, ids=lambda recipe: recipe.__name__)
def test_recipe(recipe: Callable[[], RunConfig]) -> None:
    run = recipe()
    assert run.recipe == recipe.__name__
    assert recipe.__doc__
    assert count_parameters(run.objective) == PARAMETERS[run.recipe]
    assert from_json(RunConfig, json.loads(json.dumps(to_json(run)))) == run
    assert run.objective.build().resolution == run.data.resolution
    assert set(run.optim) == {"denoiser"}


@pytest.mark.parametrize("name", WITH_AUGMENT_INPUT)
def test_augmentation_adds_an_input(name: str) -> None:
    run = override(getattr(rdm, name)(), ["objective.unet.augment_dim=9"])
    assert count_parameters(run.objective) == WITH_AUGMENT_INPUT[name]


@pytest.mark.parametrize("name", NFE)
def test_sampler_settings_cost_what_is_published(name: str) -> None:
    settings = getattr(presets, name)
    assert settings.evaluations(conditional=True) == NFE[name]


def test_kept_steps_of_the_relay() -> None:
    kept = {
        "GENERIC_RELAY": (7, 0.8975),
        "IMAGENET_RELAY": (100, 0.86912),
        "CELEBAHQ_RELAY": (54, 0.92191),
    }
    for name, (steps, first) in kept.items():
        levels = getattr(presets, name).levels()
        assert len(levels) - 1 == steps
        assert levels[0] == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize(("budget", "first_stage"), [(60, 5), (100, 10), (100, 25)])
def test_allocation_spends_the_budget(budget: int, first_stage: int) -> None:
    edm, relay = presets.allocate_nfe(budget, first_stage)
    assert edm.steps == 10 * first_stage
    assert len(relay.levels()) - 1 == budget // 2 - first_stage
    spent = edm.evaluations(False) / 10 + relay.evaluations(False)
    assert budget - 1.2 <= spent <= budget


@pytest.mark.parametrize("first_stage", [0, 50, 51])
def test_allocation_refuses_empty_stages(first_stage: int) -> None:
    with pytest.raises(ValueError, match=r"set it to 1\.\.49"):
        presets.allocate_nfe(100, first_stage)


def test_table_3_varies_eta_alone() -> None:
    for eta in presets.STOCHASTICITY_ETAS:
        settings = presets.with_eta(presets.IMAGENET_RELAY, eta)
        assert settings.eta == eta
        assert settings.evaluations(True) == 199
