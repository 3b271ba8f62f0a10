"""Checks of the samplers, the hand-over between stages and the finished images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evaluation.samples.postprocess import RETOUCHES
from models.objective import images_to_unit_range
from models.rdm.edm_sampler import EdmSampling, edm_sample
from models.rdm.enhance import enhance
from models.rdm.process import RelayProcess
from models.rdm.relay_sampler import RelaySampling, enlarge, relay_sample
from models.rdm.sampler import Churn, Guidance
from models.sample_rng import SampleStreams
from models.sampler import balanced_labels, quantise
from tests.golden_file import Golden, assert_close_each, assert_near, assert_near_max
from tests.models.rdm.goldens.replay import AnalyticDenoiser, Tape, class_indices


def check_sampler_edm(golden: Golden) -> None:
    for case in golden.names(r"(\w+)_params"):
        settings = edm_sampling(golden.json(f"{case}_params"))
        check_trajectory(golden, case, settings, run_edm, 1e-10)


def check_sampler_relay(golden: Golden) -> None:
    for case in golden.names(r"(\w+)_params"):
        parameters = golden.json(f"{case}_params")
        settings = relay_sampling(parameters, churn_draws=case.startswith("celeb"))
        kept = torch.tensor(settings.levels(), dtype=torch.float64)
        assert_near(kept, golden[f"{case}_kept_sigma"], 1e-12, f"{case}_kept_sigma")
        run = run_relay(sampling_process(parameters))
        check_trajectory(golden, case, settings, run, 1e-6, absolute_below_one=True)


def assert_near_scaled(got: Tensor, expected: Tensor, absolute: float, what: str) -> None:
    """Compare absolutely, or relative to the largest value where that exceeds 1."""
    assert_near(got, expected, absolute * max(1.0, float(expected.abs().max())), what)


def run_edm(denoise, latents, tape, settings) -> Tensor:
    return edm_sample(denoise, latents, tape, settings)


def run_relay(process: RelayProcess) -> Callable[..., Tensor]:
    def run(denoise, latents, tape, settings) -> Tensor:
        return relay_sample(denoise, latents, tape, process, settings)

    return run


def check_trajectory(
    golden: Golden, case: str, settings, run, tolerance: float, *, absolute_below_one: bool = False
) -> Tensor:
    """Compare every evaluation's input, level and conditioning, and the result."""
    denoiser, tape = AnalyticDenoiser(golden), Tape(*golden[f"{case}_tape"])
    labels = class_indices(golden.get(f"{case}_labels"))
    denoise = settings.guidance.apply(denoiser, labels)
    out = run(denoise, golden[f"{case}_latents"], tape, settings)
    assert not tape.draws, f"{case}: {len(tape.draws)} draws were not consumed"
    inputs, sigmas, conditional = zip(*denoiser.calls, strict=True)
    check = assert_near_scaled if absolute_below_one else assert_near_max
    check(torch.stack(inputs), golden[f"{case}_net_x"], tolerance, f"{case}_net_x")
    sigma = torch.tensor(sigmas, dtype=torch.float64)
    assert_close_each(sigma, golden[f"{case}_net_sigma"], 1e-12, f"{case}_net_sigma")
    assert list(conditional) == golden[f"{case}_net_cond"].tolist(), case
    assert settings.evaluations(labels is not None) == len(inputs), f"{case}: NFE"
    check(out, golden[f"{case}_out"], tolerance, f"{case}_out")
    return out


def edm_sampling(parameters: dict[str, float]) -> EdmSampling:
    return EdmSampling(sde_scale=parameters.get("sde_scale", 0.0), **common_settings(parameters))


def relay_sampling(parameters: dict[str, float], *, churn_draws: bool) -> RelaySampling:
    return RelaySampling(
        truncation_sigma=parameters["truncation_sigma"],
        prob_length=parameters["truncation_t"],
        eta=parameters["s_noise"],
        block_noise_alpha=parameters["s_block"],
        churn_draws=churn_draws,
        **common_settings(parameters),
    )


def common_settings(parameters: dict[str, float]) -> dict[str, object]:
    """Translate the arguments of all official samplers; missing ones are off."""
    churn = Churn(
        amount=parameters.get("S_churn", 0.0),
        sigma_min=parameters.get("S_min", 0.0),
        sigma_max=parameters.get("S_max", 1e9),
        noise=parameters.get("S_noise", 1.0),
    )
    known = {"num_steps", "sigma_min", "sigma_max", "rho", "S_churn", "S_min", "S_max", "S_noise",
             "cfg_scale", "sde_scale", "truncation_sigma", "truncation_t", "up_scale", "s_block",
             "s_noise", "blur_sigma_max"}  # fmt: skip
    assert parameters.keys() <= known, parameters.keys() - known
    return {
        "steps": parameters["num_steps"],
        "sigma_min": parameters["sigma_min"],
        "sigma_max": parameters["sigma_max"],
        "rho": parameters["rho"],
        "churn": churn,
        "guidance": Guidance(scale=parameters.get("cfg_scale", 1.0)),
        "sampler_dtype": "float64",
    }


def sampling_process(parameters: dict[str, float]) -> RelayProcess:
    return RelayProcess(upscale=parameters["up_scale"], blur_sigma_max=parameters["blur_sigma_max"])


def check_pipeline(golden: Golden) -> None:
    flavour = str(golden.array("flavour"))
    sde, celebahq = "stage 1 sde" in flavour, "stage 2 celebahq" in flavour
    assert sde or "stage 1 churn" in flavour, flavour
    assert celebahq or "stage 2 main" in flavour, flavour
    first, second = golden.json("s1_params"), golden.json("s2_params")
    images = check_trajectory(golden, "s1", edm_sampling(first), run_edm, 1e-10)
    factor = second["up_scale"]
    assert_near_max(enlarge(images, factor), golden["stage2_in"], 1e-10, "stage2_in")
    assert torch.equal(golden["s2_latents"], golden["stage2_in"])
    assert torch.equal(quantise(golden["s1_out"]), golden["stage1_uint8"])
    enlarged = enlarge(images_to_unit_range(golden["stage1_uint8"]).double(), factor)
    assert_near(enlarged, golden["stage2_quantised_in"], 1e-7, "stage2_quantised_in")
    settings = relay_sampling(second, churn_draws=celebahq)
    check_trajectory(golden, "s2", settings, run_relay(sampling_process(second)), 1e-6)


def check_postprocess(golden: Golden) -> None:
    plain = quantise(golden["x"])
    scripts = {"plain": "none", "imagenet": "rdm_imagenet", "celebahq": "rdm_celebahq"}
    for script, retouch in scripts.items():
        images = enhance(plain, RETOUCHES[retouch])
        assert torch.equal(images.permute(0, 2, 3, 1), golden[script]), script
    names = golden.names(r"nearest_out_x(\d+)")
    for factor in names:
        enlarged = enlarge(golden["nearest_in"], int(factor))
        assert torch.equal(enlarged, golden[f"nearest_out_x{factor}"])
    check_labels(golden["seeds"].tolist(), golden["labels_for_seeds"].tolist())


def check_labels(seeds: Sequence[int], labels: Sequence[int]) -> None:
    """Check that a number of classes, which the file does not have, gives these labels."""
    classes = math.gcd(*(seed - label for seed, label in zip(seeds, labels, strict=True)))
    classes = classes or max(seeds) + 1  # a multiple of it; more than all seeds, if none differ
    given = balanced_labels(seeds, range(classes))
    assert given is not None
    assert given.tolist() == list(labels)


def check_seeded_noise(golden: Golden) -> None:
    streams = SampleStreams([seed % (1 << 32) for seed in golden["seeds"].tolist()])
    for name in sorted(golden.names(r"(draw\d+)"), key=lambda name: int(name[4:])):
        expected = golden[name]
        assert torch.equal(streams.randn(expected.shape[1:], expected.dtype), expected), name
