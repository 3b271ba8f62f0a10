"""Checks of transforms, noise schedule, forward pairs, posterior and sampling."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.sampler import quantise
from models.wavediff import diffusion
from models.wavediff.data_space import PixelSpace, WaveletSpace
from models.wavediff.diffusion import Coefficients, Diffusion, DiffusionConfig
from models.wavediff.diffusion import coefficients as own_coefficients
from models.wavediff.generator import fold_patches, unfold_patches
from models.wavediff.haar import haar_dwt, haar_idwt
from models.wavediff.sampler import WaveDiffSampler
from tests.models.wavediff.goldens.arrays import DTYPES, TOLERANCE, Arrays, ReplayedDraws

LAYER = WaveletSpace(band_order="LL_LH_HL_HH")
PYTORCH_WAVELETS = WaveletSpace(band_order="LL_HL_LH_HH")


@contextlib.contextmanager
def official_coefficients(path: Path) -> Iterator[None]:
    """Let the processes use the recorded float32 coefficients of equal schedules.

    Ours may differ in the last bit, where a processor's library rounds float32 roots otherwise.
    check_diffusion compares them; with the recorded ones all that follows can be compared at the
    float64 tolerance, with ours, where none are recorded, at that of float32.
    """
    tables = recorded_tables(Arrays.load(path)) if path.exists() else {}
    own = diffusion.coefficients
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arrays, "floor", 0.0)

        def lookup(config: DiffusionConfig, device: torch.device) -> Coefficients:
            if config in tables:
                return tables[config]
            Arrays.floor = TOLERANCE[torch.float32]
            return own(config, device)

        patch.setattr(diffusion, "coefficients", lookup)
        yield


def recorded_tables(arrays: Arrays) -> dict[DiffusionConfig, Coefficients]:
    tables = {}
    for case in arrays.cases(r"c\d+_"):
        log_variance = case.tensor("posterior_log_variance_clipped")
        deviation = (0.5 * log_variance).exp()
        deviation[0] = 0
        tables[diffusion_config(case)] = Coefficients(
            step_scale=case.tensor("a_s"),
            step_noise=case.tensor("sigmas"),
            scale=case.tensor("a_s_cum"),
            noise=case.tensor("sigmas_cum"),
            posterior_x0=case.tensor("posterior_mean_coef1"),
            posterior_x_tp1=case.tensor("posterior_mean_coef2"),
            posterior_log_variance=log_variance,
            posterior_deviation=deviation,
        )
    return tables


def check_dwt(arrays: Arrays, name: str) -> None:
    pywt = arrays.tensor("pywt_cA_cH_cV_cD_f64")
    for suffix, dtype in DTYPES.items():
        tolerance = TOLERANCE[dtype]
        x = arrays.tensor("x", dtype).requires_grad_()
        bands = split_bands(haar_dwt(x))
        arrays.check(f"layer_bands_{suffix}", bands, tolerance)
        arrays.check(f"pw_bands_{suffix}", bands[[0, 2, 1, 3]], tolerance)
        assert (bands[[0, 2, 1, 3]] - pywt).abs().max() < tolerance * 2
        arrays.check(f"layer_packed_{suffix}", LAYER.pack(x), tolerance)
        arrays.check(f"pw_packed_{suffix}", PYTORCH_WAVELETS.pack(x), tolerance)
        (gradient,) = torch.autograd.grad((bands * arrays.tensor("grad_bands", dtype)).sum(), x)
        arrays.check(f"layer_grad_x_{suffix}", gradient, tolerance)
        coefficients_ = arrays.tensor("coef", dtype).flatten(1, 2)
        arrays.check(f"layer_idwt_{suffix}", haar_idwt(coefficients_), tolerance)
        unpacked = PYTORCH_WAVELETS.unpack(coefficients_ / 2)
        arrays.check(f"pw_idwt_{suffix}", unpacked, tolerance)
    if "pywt_cA_cH_cV_cD_f32" in arrays:
        arrays.check("pywt_cA_cH_cV_cD_f32", pywt, 2e-5)


def split_bands(y: Tensor) -> Tensor:
    return torch.stack(y.chunk(4, 1))


def check_diffusion(arrays: Arrays, name: str) -> None:
    for case in arrays.cases(r"c\d+_"):
        config = diffusion_config(case)
        table = own_coefficients(config, torch.device("cpu"))
        betas = config.betas()
        alphas = 1 - betas[1:]
        kept = alphas.cumprod(0)
        kept_before = torch.cat([torch.ones(1), kept[:-1]])
        found = {
            "time": config.times(),
            "sigmas": table.step_noise,
            "a_s": table.step_scale,
            "betas_full": betas,
            "a_s_cum": table.scale,
            "sigmas_cum": table.noise,
            "a_s_prev": torch.cat([table.step_scale[:-1], torch.ones(1)]),
            "betas": betas[1:],
            "alphas": alphas,
            "alphas_cumprod": kept,
            "alphas_cumprod_prev": kept_before,
            "posterior_mean_coef1": table.posterior_x0,
            "posterior_mean_coef2": table.posterior_x_tp1,
            "posterior_log_variance_clipped": table.posterior_log_variance,
            "posterior_variance": betas[1:] * (1 - kept_before) / (1 - kept),
            "sqrt_alphas_cumprod": kept.sqrt(),
            "sqrt_recip_alphas_cumprod": kept.rsqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / kept - 1).sqrt(),
        }
        assert {*case.names()} == {*found, "params"}
        tolerance = 1e-6 if config.steps < 100 else 5e-6
        for key, value in found.items():
            case.check(key, value, tolerance, scale=1.0)


def diffusion_config(case: Arrays) -> DiffusionConfig:
    steps, beta_min, beta_max, geometric = case.numpy("params").tolist()
    return DiffusionConfig(
        steps=int(steps), beta_min=beta_min, beta_max=beta_max, geometric=bool(geometric)
    )


def check_forward_and_posterior(arrays: Arrays, name: str) -> None:
    for case in arrays.cases(r"c\d+_"):
        process, t = Diffusion(diffusion_config(case)), case.tensor("t")
        for suffix, dtype in DTYPES.items():
            noise_tp1, noise_t, noise_post, x0, predicted = (
                case.tensor(key, dtype)
                for key in ("noise_tp1", "noise_t", "noise_post", "x0", "x0_pred")
            )
            x_t, x_tp1 = process.pair(x0, t, noise_tp1, noise_t)
            case.check(f"x_t_{suffix}", x_t, TOLERANCE[dtype])
            case.check(f"x_tp1_{suffix}", x_tp1, TOLERANCE[dtype])
            previous = process.posterior_sample(predicted, x_tp1, t, noise_post)
            case.check(f"x_pos_{suffix}", previous, TOLERANCE[dtype])


def check_sampling_loop(arrays: Arrays, name: str) -> None:
    for case in arrays.cases(r"c\d+_"):
        config = diffusion_config(case)
        a, b, c = case.numpy("gen_abc").tolist()
        for suffix, dtype in DTYPES.items():
            recorded = [case.tensor("x_init", dtype)]
            for step in range(config.steps):
                recorded += [case.tensor(f"step{step}_{kind}", dtype) for kind in ("z", "noise")]
            for key, space in (
                ("y0", PixelSpace()), ("img_layer", LAYER), ("img_pw", PYTORCH_WAVELETS)
            ):  # fmt: skip
                draws = ReplayedDraws(recorded)
                sampler = WaveDiffSampler(
                    ToyGenerator(a, b, c), Diffusion(config), space, resolution=2, latent_dim=1
                )
                images = sampler.generate(draws)
                assert draws.exhausted
                if key == "y0":
                    case.check(f"y0_{suffix}", images, TOLERANCE[dtype])
                    continue
                case.check(f"{key}_{suffix}", (images.clamp(-1, 1) + 1) / 2, TOLERANCE[dtype])
                check_bytes(images, case.tensor(f"{key}_u8"))


def check_bytes(images: Tensor, wanted: Tensor) -> None:
    """Compare images in [-1, 1] with bytes: equal, except for ties within float32."""
    scaled = (images.double().clamp(-1, 1) + 1) / 2 * 255
    tied = ((scaled + 0.5) - (scaled + 0.5).round()).abs() < 255 * TOLERANCE[torch.float32]
    difference = (quantise(images).int() - wanted.int()).abs()
    assert difference.max() <= 1
    assert not (difference.bool() & ~tied).any()


class ToyGenerator(nn.Module):
    """tanh(a x + b (t + 1) + c mean(z)), the stand-in of sampling_loop.npz."""

    def __init__(self, a: float, b: float, c: float) -> None:
        super().__init__()
        self.a, self.b, self.c = a, b, c

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        shift = self.b * (t + 1).to(x.dtype) + self.c * z.mean(1)
        return torch.tanh(self.a * x + shift[:, None, None, None])


def check_patchify(arrays: Arrays, name: str) -> None:
    for case in arrays.cases(r"c\d+_"):
        x, h, patch = case.tensor("x"), case.tensor("h"), int(case.numpy("p"))
        case.check("patchify", fold_patches(x, patch), 0)
        case.check("unpatchify", unfold_patches(h, patch), 0)
        case.check("D_patchify", torch.nn.functional.pixel_unshuffle(x, patch), 0)
