"""Every RDM recipe builds, has the published size, and survives JSON; sampler settings add up."""

from __future__ import annotations

import json

import pytest
import torch

from dist_train.config import RunConfig
from dist_train.recipes import RECIPES
from models.config_io import from_json, override, to_json
from models.rdm import presets
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.edm_sampler import EdmSampling
from models.rdm.relay_sampler import RelaySampling

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
    "rdm_images64": 131_227_523,
    "rdm_images128": 105_196_291,
    "rdm_images256": 138_287_619,
    "rdm_images512": 132_450_755,
    "rdm_debug_edm16": 641_891,
    "rdm_debug_relay64": 763_867,
}
WITH_AUGMENT_INPUT = {"rdm_imagenet64": 295_900_995, "rdm_imagenet256": 553_833_475}
NFE = {
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


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("rdm_")])
def test_recipe(name: str) -> None:
    run = RECIPES[name]()
    assert run.recipe == name
    assert RECIPES[name].__doc__
    assert isinstance(run.objective, EdmConfig | RelayConfig)
    assert count_parameters(run.objective) == PARAMETERS[name]
    assert from_json(RunConfig, json.loads(json.dumps(to_json(run)))) == run
    assert run.objective.build().resolution == run.data.resolution
    assert set(run.optim) == {"denoiser"}


@pytest.mark.parametrize("name", WITH_AUGMENT_INPUT)
def test_augmentation_adds_an_input(name: str) -> None:
    run = override(RECIPES[name](), ["objective.unet.augment_dim=9"])
    assert count_parameters(run.objective) == WITH_AUGMENT_INPUT[name]


@pytest.mark.parametrize("name", NFE)
def test_sampler_settings_cost_what_is_published(name: str) -> None:
    settings = getattr(presets, name)
    assert settings.evaluations(conditional=True) == NFE[name]


def test_kept_steps_of_the_relay() -> None:
    kept = {
        "IMAGENET_RELAY": (100, 0.86912),
        "CELEBAHQ_RELAY": (54, 0.92191),
    }
    for name, (steps, first) in kept.items():
        levels = getattr(presets, name).levels()
        assert len(levels) - 1 == steps
        assert levels[0] == pytest.approx(first, abs=1e-4)


def test_default_sampler_settings_are_those_of_the_generic_script() -> None:
    assert EdmSampling().evaluations(conditional=True) == 35
    assert RelaySampling().evaluations(conditional=True) == 13
    levels = RelaySampling().levels()
    assert len(levels) - 1 == 7
    assert levels[0] == pytest.approx(0.8975, abs=1e-4)
