"""Samplers: independence of the batch, relays of several stages, guidance, cost, bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.config_io import ConfigError, override
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.edm_sampler import EdmSampling
from models.rdm.enhance import enhance
from models.rdm.process import RelayProcess
from models.rdm.relay_sampler import RelaySampling
from models.rdm.sampler import Churn, Guidance
from models.rdm.unet import UNet, UNetConfig
from models.sample_rng import SampleStreams
from models.sampler import Sampler, quantise, sample


def unet(resolution: int, **changes: object) -> UNetConfig:
    base = UNetConfig(resolution=resolution, model_channels=8, channel_mult=(1, 2), num_blocks=1)
    return replace(base, **changes)


def network(config: EdmConfig | RelayConfig) -> UNet:
    torch.manual_seed(0)
    built = UNet(config.unet)
    nn.init.normal_(built.out_conv.weight, std=0.05)
    return built.eval().requires_grad_(False)


def relay_of(*stages: EdmConfig | RelayConfig) -> Sampler:
    sampler: Sampler | None = None
    for stage in stages:
        sampler = stage.build_sampler(network(stage), sampler)
    assert sampler is not None
    return sampler


EDM4 = EdmConfig(unet=unet(4, label_dim=3), sampling=EdmSampling(steps=4))
RELAY16 = RelayConfig(unet=unet(16, label_dim=3), sampling=RelaySampling(steps=12))
RELAY32 = RelayConfig(
    unet=unet(32), process=RelayProcess(upscale=2), sampling=RelaySampling(steps=12)
)


def test_three_stages_compose() -> None:
    sampler = relay_of(EDM4, RELAY16, RELAY32)
    assert (sampler.resolution, sampler.label_dim) == (32, 3)
    assert sampler.nfe == {"4px": 7, "16px": 7, "32px": 7}
    assert sample(sampler, range(4)).shape == (4, 3, 32, 32)


def test_an_image_depends_on_its_seed_and_label_alone() -> None:
    sampler = relay_of(EDM4, RELAY16)
    labels = torch.tensor([2, 0, 1])
    batch = sampler.generate(SampleStreams([5, 6, 7]), labels)
    alone = sampler.generate(SampleStreams([6]), labels[1:2])
    assert torch.allclose(batch[1:2], alone, atol=1e-5)
    assert not torch.allclose(batch[1:2], sampler.generate(SampleStreams([6]), labels[:1]))


def test_labels_follow_seeds_by_default() -> None:
    sampler = relay_of(EDM4)
    assert torch.equal(sample(sampler, [4, 5]), sample(sampler, [4, 5], torch.tensor([1, 2])))


class Counter:
    """Wraps a denoiser and records batch sizes and levels."""

    def __init__(self, denoise) -> None:
        self.denoise = denoise
        self.calls: list[tuple[int, float]] = []

    def __call__(self, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        self.calls.append((len(x), sigma))
        return self.denoise(x, sigma, labels)


@pytest.mark.parametrize("stage", ["edm", "relay"])
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize(
    "guidance", [Guidance(), Guidance(scale=2.0), Guidance(scale=2.0, sigma_min=0.1, sigma_max=0.6)]
)
def test_declared_cost_is_the_true_one(stage: str, second_order: bool, guidance: Guidance) -> None:
    changes = {"second_order": second_order, "guidance": guidance}
    edm, relay = EDM4, RELAY16
    if stage == "edm":
        edm = replace(edm, label_dropout=0.1, sampling=replace(edm.sampling, **changes))
    else:
        relay = replace(relay, label_dropout=0.1, sampling=replace(relay.sampling, **changes))
    sampler = relay_of(edm, relay)
    part = sampler.previous if stage == "edm" else sampler
    part.denoise = counter = Counter(part.denoise)
    sampler.generate(SampleStreams([1]), torch.tensor([0]))
    counted = sum(rows for rows, _ in counter.calls)
    assert counted == sampler.nfe["4px" if stage == "edm" else "16px"]
    inside = [guidance.acts_at(sigma) for _, sigma in counter.calls]
    assert [rows == 2 for rows, _ in counter.calls] == inside


def test_guidance_extrapolates_from_the_unconditional_estimate() -> None:
    def denoise(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return x + labels.view(-1, 1, 1, 1)

    x = torch.zeros(2, 1, 1, 1)
    guided = Guidance(scale=3.0).apply(denoise, torch.tensor([4, 0]))(x, 0.5)
    assert guided.flatten().tolist() == [3 * 4 - 2 * -1, 3 * 0 - 2 * -1]


def test_double_precision_is_a_setting() -> None:
    changed = replace(EDM4, sampling=replace(EDM4.sampling, sampler_dtype="float64"))
    images = relay_of(changed).generate(SampleStreams([1]), torch.tensor([0]))
    assert images.dtype == torch.float64
    assert relay_of(EDM4).generate(SampleStreams([1]), torch.tensor([0])).dtype == torch.float32


def test_ode_relay_is_exact_for_a_perfect_denoiser() -> None:
    """If D always returns the clean image, sampling must end at it."""
    clean = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    sampler = relay_of(EDM4, RELAY16)
    sampler.denoise = lambda x, sigma, labels: clean
    assert torch.allclose(sampler.generate(SampleStreams([1]), torch.tensor([0])), clean)


def test_enhancement_survives_quantisation() -> None:
    operations = (("contrast", 0.9), ("brightness", 1.05))
    plain = replace(EDM4, sampling=EdmSampling(steps=2))
    enhanced = replace(plain, sampling=replace(plain.sampling, enhance=operations))
    images = sample(relay_of(plain), [1, 2])
    assert torch.equal(sample(relay_of(enhanced), [1, 2]), enhance(images, operations))
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantise(every.float() / 127.5 - 1), every)


def test_guidance_without_an_unconditional_branch_warns() -> None:
    guided = replace(EDM4, sampling=replace(EDM4.sampling, guidance=Guidance(scale=2.0)))
    with pytest.warns(UserWarning, match="unconditional branch is untrained"):
        guided.build_sampler(network(guided))


def test_stages_that_do_not_fit_are_rejected() -> None:
    edm = relay_of(EDM4)
    with pytest.raises(ValueError, match="continues from 16 pixels, but the previous stage makes"):
        RELAY32.build_sampler(network(RELAY32), edm)
    with pytest.raises(ValueError, match="give its snapshot first"):
        RELAY16.build_sampler(network(RELAY16))
    with pytest.raises(ValueError, match="put the EDM stage first"):
        EDM4.build_sampler(network(EDM4), edm)
    other = replace(RELAY16, unet=replace(RELAY16.unet, label_dim=5))
    with pytest.raises(ValueError, match="has 3 classes, this one 5"):
        other.build_sampler(network(other), edm)


def test_wrong_labels_are_rejected() -> None:
    with pytest.raises(ValueError, match="label 3 is not in"):
        sample(relay_of(EDM4), [0], torch.tensor([3]))
    unconditional = replace(EDM4, unet=replace(EDM4.unet, label_dim=0))
    with pytest.raises(ValueError, match="unconditional model"):
        sample(relay_of(unconditional), [0], torch.tensor([0]))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (EdmSampling, {"steps": 0}, "steps=0"),
        (EdmSampling, {"sigma_min": 0.0}, r"sigma_min=0.0"),
        (EdmSampling, {"rho": 0.0}, r"rho=0.0"),
        (EdmSampling, {"sde_scale": 2.0}, r"sde_scale=2.0"),
        (EdmSampling, {"enhance": (("sharpness", 1.0),)}, "'sharpness' is not one of"),
        (RelaySampling, {"eta": 1.5}, r"eta=1.5"),
        (RelaySampling, {"truncation_sigma": 0.001}, "leaves no level"),
        (RelaySampling, {"churn": Churn(amount=3)}, "churn_draws=true"),
        (EdmSampling, {"steps": 10**9}, "at most 100000"),
        (EdmSampling, {"rho": 1e-5}, "gives no falling levels"),
        (EdmSampling, {"rho": 1e17}, "gives no falling levels"),
        (EdmSampling, {"sigma_min": 1e-30}, "gives no falling levels"),
        (EdmSampling, {"sigma_max": float("inf")}, "sigma_max=inf must be a finite number"),
        (RelaySampling, {"eta": float("nan")}, "eta=nan must be a finite number"),
        (EdmSampling, {"enhance": (("color", float("nan")),)}, "factor nan of color"),
        (EdmSampling, {"enhance": (("color", -1.0),)}, "factor -1.0 of color"),
        (Churn, {"noise": -1.0}, "noise=-1.0 must not be negative"),
        (Churn, {"amount": float("nan")}, "amount=nan must be a finite number"),
        (Guidance, {"scale": float("inf")}, "scale=inf must be a finite number"),
    ],
)
def test_settings_are_validated(kind: type, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 1},
        {"steps": 2},
        {"steps": 3},
        {"steps": 1, "sigma_max": 5.0},
        {"steps": 200, "rho": 0.5},
        {"truncation_sigma": 0.0081},
    ],
    ids=str,
)
def test_a_relay_that_would_return_its_input_is_rejected(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="the relay would return its input; take more steps"):
        RelaySampling(**settings)
    with pytest.raises(ConfigError, match="would return its input"):
        override(RELAY16, [f"sampling.{key}={value}" for key, value in settings.items()])


@pytest.mark.parametrize("settings", [{"steps": 4}, {"steps": 1, "sigma_max": 0.85}], ids=str)
def test_the_shortest_relays_depend_on_the_network(settings: dict[str, float]) -> None:
    relay = replace(RELAY16, sampling=RelaySampling(**settings))
    images, latents = relay_of(EDM4, relay), SampleStreams([1])
    ours = images.generate(latents, torch.tensor([0]))
    images.denoise = lambda x, sigma, labels: torch.zeros_like(x)
    assert not torch.allclose(
        ours, images.generate(SampleStreams([1]), torch.tensor([0])), atol=0.1
    )


@pytest.mark.parametrize("config", [EdmConfig, RelayConfig])
def test_guidance_needs_classes(config: type) -> None:
    sampling = replace(config(unet=unet(16)).sampling, guidance=Guidance(scale=2.0))
    with pytest.raises(ValueError, match=r"guidance\.scale=2\.0 needs classes"):
        config(unet=unet(16), sampling=sampling)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"churn": Churn(amount=1, sigma_min=100)}, "no level is churned"),
        ({"guidance": Guidance(scale=0.5)}, "below 1 is as 1"),
        ({"guidance": Guidance(scale=2, sigma_min=100)}, "no level is guided"),
    ],
)
def test_settings_without_effect_are_warned_about(changes: dict[str, Any], warning: str) -> None:
    without = replace(EDM4, label_dropout=0.1, sampling=replace(EDM4.sampling, **changes))
    with pytest.warns(UserWarning, match=warning):
        relay_of(without)


@pytest.mark.parametrize(
    ("truncation_sigma", "what"), [(0.1, "hardly blurred there"), (50.0, "no such level")]
)
def test_relays_that_start_at_odd_levels_are_warned_about(
    truncation_sigma: float, what: str
) -> None:
    odd = replace(RELAY16, sampling=RelaySampling(steps=50, truncation_sigma=truncation_sigma))
    with pytest.warns(UserWarning, match=what):
        relay_of(EDM4, odd)


def test_only_the_last_stage_may_be_enhanced() -> None:
    enhanced = replace(EDM4, sampling=replace(EDM4.sampling, enhance=(("color", 0.5),)))
    with pytest.raises(ValueError, match="would change what the relay to 16 starts from"):
        relay_of(enhanced, RELAY16)
