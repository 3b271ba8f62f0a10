"""Checks of the corruption: transform, blur, block noise, losses, augmentation."""

from __future__ import annotations

import torch
from torch import Tensor

from models.rdm.augment import SYM6_LOW_PASS, augment
from models.rdm.block_noise import block_noise
from models.rdm.dct import dct_matrix, map_tile_axes, tile_blur
from models.rdm.objective import squared_errors
from models.rdm.process import EdmProcess, RelayProcess
from tests.golden_file import Golden, assert_close_each, assert_near, assert_near_max
from tests.models.rdm.goldens.replay import AnalyticDenoiser, Tape, class_indices


def tile_dct(x: Tensor, size: int) -> Tensor:
    """Replace each tile of [B, C, H, W] by its 2-D coefficients."""
    return map_tile_axes(dct_matrix(size).to(x.dtype), x)


def tile_idct(coefficients: Tensor, size: int) -> Tensor:
    """Invert tile_dct."""
    return map_tile_axes(dct_matrix(size).T.to(coefficients.dtype), coefficients)


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
    labels = class_indices(golden.get("labels"))
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
    labels = class_indices(golden.get("labels"))
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
