"""Numbers of the official implementation: every array of every file in <goldens>/rdm.

Files are matched to checks by the start of their names, cases and parameters are read from the
files. A file that no check knows, and an array that a check has passed over, fail. Regenerate the
files with the official code as their README describes; they are inputs here, never outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_train.config import HalflifeEma, WarmupSchedule
from models.objective import images_to_unit_range
from models.rdm.augment import SYM6_LOW_PASS, augment
from models.rdm.block_noise import block_noise
from models.rdm.containers import module_tensors, read_container
from models.rdm.convert import constructor_arguments, network_weights, unet_config
from models.rdm.dct import tile_blur, tile_dct, tile_idct
from models.rdm.denoising import hide_labels, squared_errors
from models.rdm.edm import EdmProcess
from models.rdm.enhance import enhance
from models.rdm.precond import Preconditioning
from models.rdm.presets import CELEBAHQ_ENHANCE, IMAGENET_ENHANCE
from models.rdm.relay import RelayProcess
from models.rdm.relay_sampling import RelaySampling, enlarge, relay_sample
from models.rdm.sampling import Churn, EdmSampling, Guidance, edm_sample
from models.rdm.unet import Block, Conv2d, GroupNorm, UNet, noise_embedding, resampled
from models.sampler import quantise
from models.streams import SampleStreams
from tests.golden_file import Golden, assert_close_each, assert_near, assert_near_max

SCALAR_SIGMA = 0.37  # of D_sigma_scalar; the README tells it, the files do not
CONTAINERS = (".pkl", ".pt")


class Tape:
    """Replays recorded draws in order (models.streams.Draws)."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws = list(draws)

    def __len__(self) -> int:
        return len(self.draws[0])

    def _next(self, shape: tuple[int, ...]) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.numel() == len(draw) * int(np.prod(shape)), (draw.shape, shape)
        return draw.reshape(len(draw), *shape).clone()

    def randn(self, shape, dtype=torch.float32) -> Tensor:
        return self._next(tuple(shape)).to(dtype)

    def rand(self, shape=(), dtype=torch.float32) -> Tensor:
        return self._next(tuple(shape)).to(dtype)

    def randint(self, high, shape=()) -> Tensor:
        return self._next(tuple(shape))


class AnalyticDenoiser:
    """The README's closed-form denoiser; records the evaluations, conditional half first."""

    def __init__(self, golden: Golden) -> None:
        self.c, self.r = float(golden["den_c"]), float(golden["den_r"])
        self.class_means, self.mean = golden["den_M"], golden["den_mu0"]
        self.calls: list[tuple[Tensor, float, bool]] = []

    def __call__(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None) -> Tensor:
        self._record(x, sigma, labels)
        w = self.c / (self.c + torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1) ** 2)
        mixed = (1 - self.r) * x + self.r * x.roll((1, 2), (2, 3))
        means = self.mean.expand(len(x), -1)
        if labels is not None and len(self.class_means):
            named = self.class_means[labels.clamp(min=0)]
            means = torch.where((labels >= 0).unsqueeze(1), named, means)
        return w * mixed + (1 - w) * means.to(x.dtype)[:, :, None, None]

    def _record(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None) -> None:
        conditional = labels is not None
        if conditional and bool((labels < 0).any()):
            first, second = x.chunk(2)
            assert bool((labels.chunk(2)[0] >= 0).all() and (labels.chunk(2)[1] < 0).all())
            self.calls += [(first.clone(), sigma, True), (second.clone(), sigma, False)]
        else:
            self.calls.append((x.clone(), sigma, conditional))


def check_dct(golden: Golden) -> None:
    for case in golden.names(r"patch_(\w+)"):
        size, x = int(golden[f"patch_{case}"]), golden[f"x_{case}"]
        tolerance = 1e-12 if x.dtype == torch.float64 else 2e-6
        assert_near(tile_dct(x, size), golden[f"dct_{case}"], tolerance, f"dct_{case}")
        assert_near(tile_idct(x, size), golden[f"idct_{case}"], tolerance, f"idct_{case}")


def check_dct_blur(golden: Golden) -> None:
    blur_sigma = golden["blur_sigmas"].flatten()
    for case in golden.names(r"patch_(\w+)"):
        size, min_scale = int(golden[f"patch_{case}"]), float(golden[f"min_scale_{case}"])
        x, y = golden[f"x_{case}"], golden[f"y_{case}"]
        blurred = tile_blur(x, blur_sigma.to(x.dtype), size, min_scale)
        assert_near(blurred, y, 1e-6 if x.dtype == torch.float64 else 2e-6, case)


def check_block_noise(golden: Golden) -> None:
    for case in golden.names(r"g_(\w+)"):
        gaussian = golden[f"g_{case}"]
        tolerance = 1e-12 if gaussian.dtype == torch.float64 else 5e-6
        for size in golden.names(rf"out_{case}_s(\d+)"):
            expected = golden[f"out_{case}_s{size}"]
            assert_near(block_noise(gaussian, int(size)), expected, tolerance, f"{case} s={size}")


def check_alpha_t(golden: Golden) -> None:
    sigma = golden["sigma"]
    for case in golden.names(r"params_(\w+)"):
        prob_length, blur_sigma_max, size = golden[f"params_{case}"].tolist()
        process = RelayProcess(upscale=int(size), blur_sigma_max=blur_sigma_max)
        time = process.time_at(sigma, prob_length)
        assert_near(time, golden[f"u_{case}"], 1e-12, f"u_{case}")
        assert_near(process.blur_sigma(time), golden[f"blur_sigma_{case}"], 1e-12, f"b_{case}")
        alpha = process.attenuation_at(sigma, prob_length)
        assert_near(alpha, golden[f"alpha_{case}"], 2e-7, f"alpha_{case}")


def check_loss_edm(golden: Golden) -> None:
    images, denoiser = golden["images"], AnalyticDenoiser(golden)
    labels = golden["labels"].argmax(1)
    for case in golden.names(r"x_in_(\w+)"):
        process = EdmProcess()
        if f"{case}_params" in golden:
            p_mean, p_std, sigma_data = golden[f"{case}_params"].tolist()
            process = EdmProcess(p_mean=p_mean, p_std=p_std, sigma_data=sigma_data)
        level = process.sample_level(Tape(golden["rnd_normal"]))
        noisy = process.corrupt(images, level, Tape(golden["noise"]))
        weight = process.weight(level.sigma)
        check_loss(golden, case, denoiser, images, labels, noisy, level.sigma, weight)
        assert_near_max(noisy, golden[f"x_in_{case}"], 1e-6, f"x_in_{case}")
        denoised = denoiser(noisy, level.sigma, labels)
        assert_near_max(denoised, golden[f"denoised_{case}"], 1e-5, f"denoised_{case}")


def check_loss_blur(golden: Golden) -> None:
    images, denoiser = golden["images"], AnalyticDenoiser(golden)
    labels = golden["labels"].argmax(1)
    for case in golden.names(r"x_in_(\w+)"):
        process = relay_process(golden[f"params_{case}"])
        level = process.sample_level(Tape(golden["uniform"]))
        noisy = process.corrupt(images, level, blur_tape(golden, process))
        assert level.blur_sigma is not None
        blurred = tile_blur(images, level.blur_sigma, process.upscale, process.min_scale)
        weight = process.weight(level.sigma)
        check_loss(golden, case, denoiser, images, labels, noisy, level.sigma, weight)
        expected = golden[f"blur_sigma_{case}"].flatten()
        assert_near(level.blur_sigma, expected, 1e-6, f"blur_sigma_{case}")
        assert_near(blurred, golden[f"y_blurred_{case}"], 2e-6, f"y_blurred_{case}")
        assert_near(noisy, golden[f"x_in_{case}"], 5e-6, f"x_in_{case}")


def relay_process(parameters: Tensor) -> RelayProcess:
    names = ("p_mean", "p_std", "sigma_data", "upscale", "prob_length", "blur_sigma_max",
             "min_scale", "block_noise_alpha")  # fmt: skip
    values = dict(zip(names, parameters.tolist(), strict=True))
    return RelayProcess(**values | {"upscale": int(values["upscale"])})


def blur_tape(golden: Golden, process: RelayProcess, prefix: str = "") -> Tape:
    """The official draw that goes unused with block noise is one that this code does not make."""
    wasted = golden[f"{prefix}noise_wasted"]
    iid, block = golden[f"{prefix}noise_iid"], golden[f"{prefix}noise_block"]
    return Tape(iid, block) if process.block_noise_alpha else Tape(wasted)


def check_loss(golden, case, denoiser, images, labels, noisy, sigma, weight) -> None:
    assert_close_each(sigma, golden[f"sigma_{case}"].flatten(), 1e-6, f"sigma_{case}")
    assert_close_each(weight, golden[f"weight_{case}"].flatten(), 3e-6, f"weight_{case}")
    expected = golden[f"loss_{case}"]
    denoised = denoiser(noisy, sigma, labels)
    loss = weight.view(-1, 1, 1, 1) * (denoised - images) ** 2
    assert_near_max(loss, expected, 1e-5, f"loss_{case}")
    summed = squared_errors(denoised, images, weight)
    assert_near_max(summed, expected.sum((1, 2, 3)), 1e-5, f"summed loss_{case}")


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
    labels = golden[f"{case}_labels"].argmax(1) if f"{case}_labels" in golden else None
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
    operations = {"plain": (), "imagenet": IMAGENET_ENHANCE, "celebahq": CELEBAHQ_ENHANCE}
    for script, steps in operations.items():
        assert torch.equal(enhance(plain, steps).permute(0, 2, 3, 1), golden[script]), script
    names = golden.names(r"nearest_out_x(\d+)")
    for factor in names:
        enlarged = enlarge(golden["nearest_in"], int(factor))
        assert torch.equal(enlarged, golden[f"nearest_out_x{factor}"])
    label_dim = 1000  # README: labels_for_seeds is given for this number of classes
    assert torch.equal(golden["seeds"] % label_dim, golden["labels_for_seeds"])


def check_seeded_noise(golden: Golden) -> None:
    streams = SampleStreams([seed % (1 << 32) for seed in golden["seeds"].tolist()])
    for name in sorted(golden.names(r"(draw\d+)"), key=lambda name: int(name[4:])):
        expected = golden[name]
        assert torch.equal(streams.randn(expected.shape[1:], expected.dtype), expected), name


def check_schedules(golden: Golden) -> None:
    for case in golden.names(r"gridp_(\w+)"):
        steps, sigma_min, sigma_max, rho, truncation = golden[f"gridp_{case}"].tolist()
        common = {
            "steps": int(steps), "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho,
            "second_order": True,
        }  # fmt: skip
        settings = EdmSampling(**common)
        if truncation:
            settings = RelaySampling(truncation_sigma=truncation, **common)
            kept = torch.tensor(settings.levels(), dtype=torch.float64)
            assert_close_each(kept, golden[f"kept_{case}"], 1e-12, f"kept_{case}")
        grid = torch.tensor(settings.grid(), dtype=torch.float64)
        assert_close_each(grid, golden[f"grid_{case}"], 1e-12, f"grid_{case}")
        assert settings.evaluations(False) == int(golden[f"nfe_{case}"])
    check_training_schedules(golden)


def check_training_schedules(golden: Golden) -> None:
    progress = golden["nimg"].tolist()
    rates = [WarmupSchedule(images=10_000_000).rate(1e-4, images) for images in progress]
    assert_close_each(torch.tensor(rates, dtype=torch.float64), golden["lr"], 1e-12, "lr")
    for case in golden.names(r"emap_(\w+)"):
        batch, halflife_kimg, rampup = golden[f"emap_{case}"].tolist()
        ema = HalflifeEma(
            halflife_images=round(halflife_kimg * 1000), rampup_ratio=None if rampup < 0 else rampup
        )
        betas = torch.tensor([ema.beta(n, int(batch)) for n in progress], dtype=torch.float64)
        assert_close_each(betas, golden[f"beta_{case}"], 1e-12, f"beta_{case}")
        implied = 0.5 ** (batch / golden[f"halflife_{case}"].clamp(min=1e-8))
        assert_close_each(betas, implied, 1e-12, f"halflife_{case}")
    ema = HalflifeEma(halflife_images=int(golden["ema_halflife_kimg"]) * 1000)
    average, batch = golden["ema_init"], int(golden["ema_batch"])
    averages = []
    for t, weights in enumerate(golden["ema_w_in"]):
        average = average.lerp(weights, 1 - ema.beta(t * batch, batch))
        averages.append(average)
    assert_near(torch.stack(averages), golden["ema_out"], 1e-6, "ema_out")


@torch.no_grad()
def check_layers(golden: Golden) -> None:
    embedded = noise_embedding(golden["emb_in"], int(golden["emb_channels"]))
    assert_near_max(embedded, golden["emb_out"], 1e-5, "emb")
    for case in golden.names(r"(conv_\w+)/cfg"):
        check_convolution(golden, case)
    for case in golden.names(r"(gn_\w+)/x"):
        norm = GroupNorm(golden[f"{case}/x"].shape[1])
        assert norm.num_groups == int(golden[f"{case}/groups"])
        norm.load_state_dict({n: golden[f"{case}/{n}"] for n in ("weight", "bias")})
        assert_near_max(norm(golden[f"{case}/x"]), golden[f"{case}/y"], 1e-5, case)
    for case in golden.names(r"(blk_\w+)/cfg"):
        check_block(golden, case)


def direction(config: dict[str, object]) -> str | None:
    return "up" if config.pop("up", False) else "down" if config.pop("down", False) else None


def check_convolution(golden: Golden, case: str) -> None:
    config = golden.json(f"{case}/cfg")
    x = resampled(golden[f"{case}/x"], direction(config))
    if config["kernel"]:
        layer = Conv2d(config["in_channels"], config["out_channels"], config["kernel"])
        layer.load_state_dict({n: golden[f"{case}/{n}"] for n in ("weight", "bias")})
        x = layer(x)
    assert_near_max(x, golden[f"{case}/y"], 1e-5, case)


def check_block(golden: Golden, case: str) -> None:
    config = golden.json(f"{case}/cfg")
    block = Block(resample=direction(config), **config)
    weights = golden.tensors(f"{case}/sd/")
    filters = {name: weights.pop(name) for name in list(weights) if "resample_filter" in name}
    assert all(bool((taps == 0.25).all()) for taps in filters.values())
    block.load_state_dict(weights)
    y = block(golden[f"{case}/x"], golden[f"{case}/emb"])
    assert_near_max(y, golden[f"{case}/y"], 1e-5, case)
    if f"{case}/y_eff" in golden:
        assert_near_max(y, golden[f"{case}/y_eff"], 1e-5, f"{case} eff")


def load_unet(golden: Golden) -> tuple[UNet, dict[str, object]]:
    arguments = golden.json("cfg")
    config = unet_config(arguments)
    network = UNet(config)
    network.load_state_dict(network_weights(golden.tensors("sd/"), config, str(golden.path)))
    return network, arguments


@torch.no_grad()
def check_unet(golden: Golden) -> None:
    network, arguments = load_unet(golden)
    precondition, x, sigma = Preconditioning(0.5), golden["x"], golden["sigma"]
    one_hot = golden.get("class_labels")
    labels = None if one_hot is None else one_hot.argmax(1)
    augment_labels = golden.get("augment_labels")
    scalings = precondition.scalings(sigma.float())
    for name, value in scalings._asdict().items():
        assert_near_max(value, golden[name].flatten(), 1e-5, name)
    emb = network.embed(scalings.c_noise, labels, augment_labels)
    assert_near_max(emb.expand_as(golden["emb_full"]), golden["emb_full"], 5e-5, "emb_full")
    check_raw_output(golden, network, scalings, labels, augment_labels)
    full = precondition.denoise(network, x, sigma, labels, augment_labels)
    variants = {"D_full": full, "D_eff": full}
    variants["D_sigma_scalar"] = precondition.denoise(
        network, x, torch.tensor(SCALAR_SIGMA), labels, augment_labels
    )
    if labels is not None:
        variants["D_nolabel"] = precondition.denoise(network, x, sigma, None, augment_labels)
    if augment_labels is not None:
        variants["D_noaug"] = precondition.denoise(network, x, sigma, labels)
    if "label_uniform" in golden:
        uniform = golden["label_uniform"].flatten()
        seen = hide_labels(labels, uniform, arguments["label_dropout"])
        variants["D_train"] = precondition.denoise(network, x, sigma, seen, augment_labels)
    for name, denoised in variants.items():
        if name in golden:
            assert_near_max(denoised, golden[name], 5e-5, name)


def check_raw_output(golden, network, scalings, labels, augment_labels) -> None:
    """Compare F, and the scale of every block's output."""
    rms: dict[str, float] = {}
    for name in golden.array("block_names").tolist():

        def keep_rms(module, inputs, output, name=name):
            rms[name] = float(output.double().square().mean().sqrt())

        network.get_submodule(name).register_forward_hook(keep_rms)
    x = scalings.c_in.view(-1, 1, 1, 1) * golden["x"].float()
    raw = network(x, scalings.c_noise, labels, augment_labels)
    assert_near_max(raw, golden["F_full"], 5e-5, "F_full")
    got = torch.tensor([rms[name] for name in golden.array("block_names").tolist()])
    assert_close_each(got, golden["block_rms"], 5e-5, "block_rms")


def check_train_step(golden: Golden) -> None:
    """Repeat the official step by hand: the loop's own step is tested against plain PyTorch."""
    batch = len(golden["images"])
    upscale, prob_length, blur_sigma_max, alpha = golden["blur_params"].tolist()
    processes = {
        "edm": EdmProcess(),
        "blur": RelayProcess(
            upscale=int(upscale), prob_length=prob_length, blur_sigma_max=blur_sigma_max,
            block_noise_alpha=alpha,
        ),
    }  # fmt: skip
    for name, process in processes.items():
        network, arguments = load_unet(matching_unet(golden))
        uniform = golden["label_uniform"].flatten()
        labels = hide_labels(golden["labels"].argmax(1), uniform, arguments["label_dropout"])
        if isinstance(process, EdmProcess):
            level = process.sample_level(Tape(golden["edm_rnd_normal"]))
            tape = Tape(golden["edm_noise"])
        else:
            level = process.sample_level(Tape(golden["blur_uniform"]))
            tape = blur_tape(golden, process, "blur_")
        noisy = process.corrupt(golden["images"], level, tape)
        denoised = Preconditioning(process.sigma_data).denoise(
            network, noisy, level.sigma, labels, golden["augment_labels"]
        )
        errors = squared_errors(denoised, golden["images"], process.weight(level.sigma))
        assert_near_max(errors.detach().sum(), golden[f"loss_sum_{name}"], 1e-5, f"loss_sum_{name}")
        loss_scaling = float(golden["hyper"][0])
        gradient_scale = loss_scaling * batch / (32 if golden["images"].shape[-1] == 64 else 256)
        (gradient_scale * errors.mean()).backward()
        check_update(golden, name, network)


def matching_unet(golden: Golden) -> Golden:
    """Return the network file that the step starts from: the one with its parameters."""
    wanted = set(golden.array("param_names").tolist())
    for path in sorted(golden.path.parent.glob("unet_*.npz")):
        unet = Golden(path)
        if wanted <= {name for name in unet.names(r"sd/(.*)") if "resample_filter" not in name}:
            return unet
    raise AssertionError(f"{golden.path.name}: no unet_*.npz has its parameters")


def check_update(golden: Golden, name: str, network: UNet) -> None:
    """Compare gradients, and the changes of weights and their average by one step of Adam."""
    parameters = dict(network.named_parameters())
    ordered = [parameters[n.removeprefix("model.")] for n in golden.array("param_names").tolist()]
    before = [parameter.detach().clone() for parameter in ordered]
    gradients = [parameter.grad.double() for parameter in ordered]
    norms = torch.stack([gradient.norm() for gradient in gradients])
    expected = golden[f"grad_norm_{name}"]
    largest = float(expected.max())
    assert_near(norms, expected, 1e-4 * largest, f"grad_norm_{name}")
    significant = expected > 1e-6 * largest
    assert_close_each(norms[significant], expected[significant], 1e-4, f"grad_norm_{name}")
    sums = torch.stack([gradient.sum() for gradient in gradients])
    assert_near(sums, golden[f"grad_sum_{name}"], 1e-4 * largest, f"grad_sum_{name}")
    full = golden[f"grad_full_{name}"]
    position = int((expected - full.double().norm()).abs().argmin())  # the file does not name it
    assert_near_max(gradients[position], full, 1e-4, f"grad_full_{name}")
    _, images_seen, batch, base_lr = golden["hyper"].tolist()
    rate = WarmupSchedule(images=10_000_000).rate(base_lr, int(images_seen))
    torch.optim.Adam(ordered, lr=rate).step()
    beta = HalflifeEma(halflife_images=500_000).beta(int(images_seen), int(batch))
    assert_near(torch.tensor(beta, dtype=torch.float64), golden["ema_beta"], 1e-12, "ema_beta")
    after = [parameter.detach() for parameter in ordered]
    averages = [old.lerp(new, 1 - beta) for old, new in zip(before, after, strict=True)]
    check_changes(golden[f"delta_norm_{name}"], before, after, gradients, rate)
    check_changes(golden[f"ema_delta_norm_{name}"], before, averages, gradients, rate * (1 - beta))


def check_changes(expected, before, after, gradients, rate: float) -> None:
    """Compare the norms of changes within 1 %.

    Adam's first step moves an entry by +-rate, or less if its gradient is of eps' size. Where the
    true gradient is 0 (the key part of qkv.bias: softmax ignores it) rounding decides, so that such
    entries may contribute anything from nothing to the rate each.
    """
    for i, gradient in enumerate(gradients):
        change = (after[i] - before[i]).double()
        decided = gradient.abs() > 1e-6 * gradient.abs().max()
        least = float(change[decided].norm())
        most = (least**2 + int((~decided).sum()) * rate**2) ** 0.5
        assert 0.99 * least <= float(expected[i]) <= 1.01 * most, (i, least, most, expected[i])


def check_augment(golden: Golden) -> None:
    assert_near(torch.tensor(SYM6_LOW_PASS).double(), golden["sym6"], 1e-7, "sym6")
    for case in golden.names(r"(\w+)/images"):
        images = golden[f"{case}/images"]
        batch = len(images)
        names = sorted(golden.names(rf"({case}/d\d+)"))
        draws = [golden[name] for name in names]
        per_sample = [d if len(d) == batch and d.dim() != 2 else d.T for d in draws]
        out, labels = augment(images, float(golden[f"{case}/p"]), Tape(*per_sample))
        assert_near(out, golden[f"{case}/out"], 1e-4, f"{case}/out")
        assert_near(labels, golden[f"{case}/labels"], 1e-6, f"{case}/labels")


def check_container(golden: Golden) -> None:
    """Compare every tensor, and the arguments, of the containers beside the expected values."""
    for suffix in golden.names(r"([a-z]+)/(?:ema|net)/.*"):
        (path,) = golden.path.parent.glob(f"container_*.{suffix}")
        content = read_container(path)
        for network in golden.names(rf"{suffix}/(\w+)/.*"):
            expected = golden.tensors(f"{suffix}/{network}/")
            stored = dict(module_tensors(content[network]))
            assert stored.keys() == expected.keys()
            assert all(torch.equal(stored[name].load(), expected[name]) for name in expected)
            arguments = constructor_arguments(content[network])
            recorded = golden.json("cfg")
            assert {key: arguments[key] for key in recorded} == recorded
            network_weights(expected, unet_config(arguments), path.name)
        if f"{suffix}_step" in golden:
            assert content["step"] == int(golden[f"{suffix}_step"])


CHECKS: dict[str, Callable[[Golden], None]] = {
    "dct_blur": check_dct_blur,
    "dct": check_dct,
    "block_noise": check_block_noise,
    "alpha_t": check_alpha_t,
    "loss_edm": check_loss_edm,
    "loss_blur": check_loss_blur,
    "sampler_edm": check_sampler_edm,
    "sampler_relay": check_sampler_relay,
    "pipeline": check_pipeline,
    "postprocess": check_postprocess,
    "seeded_noise": check_seeded_noise,
    "schedules": check_schedules,
    "layers": check_layers,
    "unet": check_unet,
    "train_step": check_train_step,
    "augment": check_augment,
    "container": check_container,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--goldens")) / "rdm"
    files = sorted(path for path in folder.glob("*") if path.name != "README.md")
    if "golden_path" in metafunc.fixturenames:
        metafunc.parametrize("golden_path", files, ids=[path.name for path in files])


def test_golden(golden_path: Path) -> None:
    if golden_path.suffix in CONTAINERS:
        expected = list(golden_path.parent.glob("container_expected*.npz"))
        assert golden_path.name.startswith("container_")
        assert expected, "a container without expected values"
        return
    assert golden_path.suffix == ".npz", f"{golden_path.name} is of a kind that no check covers"
    matches = [kind for kind in CHECKS if golden_path.stem.startswith(kind)]
    assert matches, f"{golden_path.name} is of a kind that no check covers"
    golden = Golden(golden_path)
    CHECKS[max(matches, key=len)](golden)
    golden.assert_all_used()


def test_there_are_goldens(goldens_dir: Path) -> None:
    assert list((goldens_dir / "rdm").glob("*.npz"))
