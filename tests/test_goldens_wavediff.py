"""Numbers of the official WaveDiff code, reproduced (README.md in the goldens folder).

Files are found by their prefix, cases and parameters are read from the files, and a file or array
that no check covers fails. The committed files are a part of the public set; all of it, or another
set of the same layout, is checked by `pytest tests/test_goldens_wavediff.py --goldens DIR`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dist_train.config import ConstantEma, CosineSchedule
from models.sampler import quantise
from models.wavediff import blocks, diffusion, layers, presets, resample
from models.wavediff.diffusion import Coefficients, Diffusion, DiffusionConfig
from models.wavediff.diffusion import coefficients as own_coefficients
from models.wavediff.discriminator import Discriminator, DiscriminatorBlock, DiscriminatorConfig
from models.wavediff.generator import Generator, fold_patches, unfold_patches
from models.wavediff.haar import haar_dwt, haar_idwt
from models.wavediff.objective import mean_squared_gradient
from models.wavediff.official import generator_config, read_official
from models.wavediff.sampling import WaveDiffSampler
from models.wavediff.space import PixelSpace, WaveletSpace
from tests.wavediff_goldens import DTYPES, TOLERANCE, Arrays, ReplayedDraws
from tests.wavediff_replay import ReplayedRun

LAYER = WaveletSpace(band_order="LL_LH_HL_HH")
PYTORCH_WAVELETS = WaveletSpace(band_order="LL_HL_LH_HH")
DOCUMENTS = ("README.md", "ARRAYS.tsv", "README.txt")
WEIGHT_GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
PRESET_OF = {
    "cifar10": presets.wavediff_cifar10,
    "stl10": presets.wavediff_stl10,
    "celeba_256": presets.wavediff_celebahq256,
    "celeba_512": presets.wavediff_celebahq512,
    "celeba_1024": presets.wavediff_celebahq1024,
    "lsun": presets.wavediff_lsun_church256,
    **presets.PRESETS,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--goldens") / "wavediff"
    files = sorted(path.name for path in folder.iterdir() if path.name not in DOCUMENTS)
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", files)


def test_golden(name: str, goldens_dir: Path) -> None:
    checks = [check for prefix, check in CHECKS.items() if name.startswith(prefix)]
    assert len(checks) == 1, f"{name} is of an uncovered kind"
    path = goldens_dir / "wavediff" / name
    if path.is_dir():
        check_checkpoints(path)
        return
    assert path.suffix == ".npz", f"{name} is of an uncovered kind"
    arrays = Arrays.load(path)
    with official_coefficients(path.with_name("diffusion_coeffs.npz")):
        checks[0](arrays, name)
    arrays.check_all_read()


@contextlib.contextmanager
def official_coefficients(path: Path) -> Iterator[None]:
    """Let the processes use the recorded float32 coefficients of equal schedules.

    Ours differ in the last bit, because the recording machine's float32 square roots are not
    correctly rounded. check_diffusion compares them; with the recorded ones all that follows can
    be compared at the float64 tolerance, with ours, where none are recorded, at that of float32.
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
            "sqrt_recip_alphas_cumprod": (1 / kept).sqrt(),
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
                difference = quantise(images).int() - case.tensor(f"{key}_u8").int()
                assert difference.abs().max() <= 1
                assert (difference != 0).float().mean() < 1e-3  # ties only


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


def check_blocks(arrays: Arrays, name: str) -> None:
    for block in arrays.cases(r"[^/]+/"):
        kind = block._prefix.rstrip("/")
        checks = [check for pattern, check in BLOCKS.items() if re.match(pattern, kind)]
        assert checks, f"block {kind} is of an uncovered kind"
        for suffix, dtype in DTYPES.items():
            checks[0](block, kind, suffix, dtype)


def check_module(make, inputs=("x",), output="y"):
    """Return a check of a block that is one module: made from its weights, called with inputs."""

    def check(block: Arrays, kind: str, suffix: str, dtype: torch.dtype) -> None:
        module = block.load_into(make(block.weights(), kind), dtype)
        given = [block.tensor(f"in/{key}", dtype) for key in inputs]
        block.check(f"out/{output}_{suffix}", module(*given), TOLERANCE[dtype])

    return check


def make_adagn(w: dict[str, Tensor], kind: str) -> nn.Module:
    return layers.AdaptiveGroupNorm(w["style.weight"].shape[0] // 2, w["style.weight"].shape[1])


def make_attention(w: dict[str, Tensor], kind: str) -> nn.Module:
    return layers.Attention(len(w["NIN_0.b"]), rescale="rescale0" not in kind)


def make_mapping(w: dict[str, Tensor], kind: str) -> nn.Module:
    out, latent_dim = w["1.weight"].shape
    return layers.latent_mapping(latent_dim, out, len(w) // 2 - 1)


def make_combine(w: dict[str, Tensor], kind: str) -> nn.Module:
    out, width, _, _ = w["Conv_0.weight"].shape
    return blocks.Combine(width, out, "cat" if "cat" in kind else "sum")


def make_discriminator_block(w: dict[str, Tensor], kind: str) -> nn.Module:
    out, width, _, _ = w["conv1.0.weight"].shape
    return DiscriminatorBlock(width, out, w["dense_t1.weight"].shape[1], down="down" in kind)


def make_nin(w: dict[str, Tensor], kind: str) -> nn.Module:
    return layers.NetworkInNetwork(*w["W"].shape)


def make_fir_down(w: dict[str, Tensor], kind: str) -> nn.Module:
    key = "Conv2d_0.weight" if "Conv2d_0.weight" in w else "Conv_0.weight"
    out, width, _, _ = w[key].shape
    return (blocks.FirDownsample if "Conv2d_0.weight" in w else blocks.PlainDownsample)(width, out)


def make_wavelet_down(w: dict[str, Tensor], kind: str) -> nn.Module:
    out, width, _, _ = w["weight"].shape
    return blocks.WaveletDownsample(width // 4, out)


def make_residual_block(w: dict[str, Tensor], kind: str) -> nn.Module:
    out, width, _, _ = w["Conv_0.weight"].shape
    settings = blocks.BlockSettings(
        embedding_dim=w["GroupNorm_0.style.weight"].shape[1],
        time_dim=w["Dense_0.weight"].shape[1],
        rescale="norescale" not in kind,
        fir="nofir" not in kind,
        adaptive_norms=2 if "GroupNorm_1.style.weight" in w else 1,
    )
    resampling = "down" if "_down" in kind else "up" if "_up" in kind else "none"
    if not kind.startswith("wres"):
        return blocks.FirBlock(width, out, settings, resampling)
    if resampling == "up":
        return blocks.FrequencyUp(width, out, settings, w["convH_0.weight"].shape[1])
    kind_ = blocks.FrequencyDown if resampling == "down" else blocks.FrequencyBlock
    return kind_(width, out, settings, resampling)


def check_residual_block(block: Arrays, kind: str, suffix: str, dtype: torch.dtype) -> None:
    module = block.load_into(make_residual_block(block.weights(), kind), dtype)
    given = [block.tensor(f"in/{key}", dtype) for key in ("x", "temb", "zemb")]
    if "in/skip0" in block:  # half the orthonormal scale, as our down blocks return it
        skip = [block.tensor(f"in/skip{i}", dtype) for i in range(3)]
        given.append(torch.cat(skip, 1) / 2)
    out = module(*given)
    if isinstance(out, tuple):
        out, details = out
        for band, value in zip(("lh", "hl", "hh"), (2 * details).chunk(3, 1), strict=True):
            block.check(f"out/{band}_{suffix}", value, TOLERANCE[dtype])
    block.check(f"out/y_{suffix}", out, TOLERANCE[dtype])


def check_resampling(block: Arrays, kind: str, suffix: str, dtype: torch.dtype) -> None:
    x, fir = block.tensor("in/x", dtype), "naive" not in kind
    up = resample.fir_up(x) if fir else resample.nearest_up(x)
    down = resample.fir_down(x) if fir else resample.mean_down(x)
    block.check(f"out/up_{suffix}", up, TOLERANCE[dtype])
    block.check(f"out/down_{suffix}", down, TOLERANCE[dtype])


def check_upfirdn(block: Arrays, kind: str, suffix: str, dtype: torch.dtype) -> None:
    x, kernel = block.tensor("in/x", dtype), block.tensor("in/kernel", dtype)
    for name in block.names():
        if match := re.fullmatch(rf"out/u(\d+)d(\d+)p(-?\d+)_(-?\d+)_{suffix}", name):
            up, down, before, after = map(int, match.groups())
            result = resample.upfirdn2d(x, kernel, up, down, (before, after))
            block.check(name, result, TOLERANCE[dtype])


def check_sinusoid(block: Arrays, kind: str, suffix: str, dtype: torch.dtype) -> None:
    key = f"out/emb_{suffix}"
    if key in block:  # float32 even in the float64 run
        t, dim = block.tensor("in/t"), block.tensor(key).shape[1]
        block.check(key, layers.timestep_features(t, dim), 2e-6)


BLOCKS = {
    r"adagn": check_module(make_adagn, ("x", "z")),
    r"attn": check_module(make_attention),
    r"nin": check_module(make_nin),
    r"fir_conv_down|naive_conv_down": check_module(make_fir_down),
    r"wavelet_down": check_module(make_wavelet_down),
    r"fir|naive": check_resampling,
    r"upfirdn": check_upfirdn,
    r"w?res_": check_residual_block,
    r"sinusoid": check_sinusoid,
    r"z_mapping": check_module(make_mapping, ("z",), "w"),
    r"combine": check_module(make_combine, ("x", "y"), "o"),
    r"d_block": check_module(make_discriminator_block, ("x", "t")),
}


def check_generators(arrays: Arrays, name: str) -> None:
    many = "config_json" not in arrays
    for case in arrays.cases(r"c\d+/") if many else [arrays]:
        settings = case.config()
        wavelet = "wavelet" in name or any("convH_0" in key for key in case.names())
        config = generator_config(settings, wavelet=wavelet)
        for suffix, dtype in DTYPES.items():
            network = Generator(config, settings["num_channels"], settings["image_size"])
            case.load_into(network, dtype).requires_grad_(False)
            trace = watch(network)
            out = network(case.tensor("x", dtype), case.tensor("t"), case.tensor("z", dtype))
            case.check(f"out_{suffix}", out, TOLERANCE[dtype])
            assert [index for index, _ in trace] == case.numpy("trace_index").tolist()
            stats = torch.stack([describe(output) for _, output in trace])
            if f"trace_stats_{suffix}" in case:
                case.check(f"trace_stats_{suffix}", stats, TOLERANCE[dtype])
            for key in case.names():
                if match := re.fullmatch(r"act(\d+)_m(-?\d+)", key):
                    index, output = trace[int(match[1])]
                    assert index == int(match[2])
                    case.check(key, output, max(TOLERANCE[dtype], 1e-6))


def watch(network: Generator) -> list[tuple[int, Tensor]]:
    """Return a list that fills with (index of layer or -1 for the mapping, output) in a forward."""
    trace: list[tuple[int, Tensor]] = []

    def record(index: int):
        def hook(module: nn.Module, given: object, out: Tensor | tuple[Tensor, ...]) -> None:
            trace.append((index, out[0] if isinstance(out, tuple) else out))

        return hook

    for index, layer in enumerate(network.all_modules):
        layer.register_forward_hook(record(index))
    network.z_transform.register_forward_hook(record(-1))
    return trace


def describe(output: Tensor) -> Tensor:
    values = output.double().flatten()
    summary = [values.mean(), values.std(correction=0), values.abs().max()]
    return torch.stack([*summary, *values[:3], *values[-2:]])


def check_discriminators(arrays: Arrays, name: str) -> None:
    for case in arrays.cases(r"c\d+/"):
        settings = case.config()
        config = DiscriminatorConfig(
            kind=settings["kind"],
            layers=settings["num_layers"],
            base_channels=settings["ngf"],
            embedding_dim=settings["t_emb_dim"],
            patch_size=settings.get("patch_size", 1),
            local_head=settings.get("use_local_loss", False),
            stddev_grouping="strided",
        )
        for suffix, dtype in DTYPES.items():
            network = Discriminator(config, settings["nc"] // 2)
            case.load_into(network, dtype)
            x_tp1, t = case.tensor("x_tp1", dtype), case.tensor("t")
            x = case.tensor("x", dtype).requires_grad_()
            logits = network(x, t, x_tp1)
            out = network.global_logits(network.features(x, t, x_tp1))
            case.check(f"out_{suffix}", out, TOLERANCE[dtype])
            if config.local_head:
                case.check(f"out_local_{suffix}", logits, TOLERANCE[dtype])
            check_r1(case, suffix, network, logits, x)


def check_r1(case: Arrays, suffix: str, network: nn.Module, logits: Tensor, x: Tensor) -> None:
    dtype = x.dtype
    (gradient,) = torch.autograd.grad(logits.sum(), x, retain_graph=True)
    case.check("grad_x", gradient, 2e-5 if dtype == torch.float32 else 1e-6)
    case.check(f"grad_sqnorm_{suffix}", gradient.square().sum((1, 2, 3)), TOLERANCE[dtype] * 5)
    penalty = mean_squared_gradient(logits, x)
    case.check(f"r1_mean_sq_norm_{suffix}", penalty, TOLERANCE[dtype] * 5)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
    norms = torch.stack(
        [torch.zeros((), dtype=dtype) if g is None else g.norm() for g in gradients]
    )
    case.check(f"r1_wgrad_norms_{suffix}", norms, WEIGHT_GRADIENT_TOLERANCE[dtype])


def check_training(arrays: Arrays, name: str) -> None:
    ReplayedRun(arrays, torch.float64).check()
    ReplayedRun(arrays, torch.float32).check()


def check_ema_and_rates(arrays: Arrays, name: str) -> None:
    for case in arrays.cases(r"ema\d+_"):
        ema = ConstantEma(decay=case.number("decay"))
        names = [key for key in case.names() if key.endswith("_init")]
        weights = [nn.Parameter(case.tensor(key)) for key in names]
        adam = torch.optim.Adam(weights, lr=1e-2, betas=(0.5, 0.9), eps=1e-8)
        average = [weight.detach().clone() for weight in weights]
        steps = 1 + max(int(m[1]) for key in case.names() if (m := re.match(r"s(\d+)_", key)))
        for step in range(steps):
            for index, weight in enumerate(weights):
                weight.grad = case.tensor(f"s{step}_g{index}")
            adam.step()
            for index, (mean, weight) in enumerate(zip(average, weights, strict=True)):
                mean.lerp_(weight.detach(), 1 - ema.beta(step, 1))
                case.check(f"s{step}_p{index}", weight, 2e-6)
                case.check(f"s{step}_ema{index}", mean, 2e-6)
    for case in arrays.cases(r"lr\d+_"):
        base, epochs, minimum = case.numpy("params").tolist()
        schedule = CosineSchedule(epochs=int(epochs), epoch_images=1, minimum=minimum)
        wanted = case.numpy("values")
        found = [schedule.rate(base, epoch) for epoch in range(int(epochs) + 1)]
        np.testing.assert_allclose(found, wanted[: len(found)], rtol=1e-9)


def check_initial_weights(arrays: Arrays, name: str) -> None:
    for case in arrays.cases(r"[GD]_[^/]+/"):
        network, _, dataset = case._prefix.rstrip("/").partition("_")
        torch.manual_seed(0)
        built = PRESET_OF[dataset]().build().build_networks()
        weights = built["generator" if network == "G" else "discriminator"].state_dict()
        assert case.numpy("names").tolist() == list(weights)
        assert case.numpy("numel").tolist() == [w.numel() for w in weights.values()]
        columns = [case.numpy(key).tolist() for key in ("half_width", "absmax", "std", "mean")]
        for (key, weight), half_width, *official in zip(weights.items(), *columns, strict=True):
            check_initial_weight(key, weight, half_width, *official)


def check_initial_weight(
    key: str, weight: Tensor, half_width: float, absmax: float, std: float, mean: float
) -> None:
    found = weight.double()
    if half_width <= 0:  # constants: zeros, ones, or ones then zeros
        assert float(found.abs().max()) == pytest.approx(absmax), key
        assert float(found.mean()) == pytest.approx(mean), key
        return
    slack = 6 / weight.numel() ** 0.5
    assert float(found.abs().max()) <= half_width * (1 + 1e-6), key
    assert abs(float(found.std(correction=0)) / half_width - 3**-0.5) < slack, key
    assert abs(float(found.mean())) < half_width * slack, key
    assert abs(std / half_width - 3**-0.5) < slack, key
    assert absmax <= half_width * (1 + 1e-6), key


def check_checkpoints(folder: Path) -> None:
    """The files that the official loop wrote in the float32 run of a train_* file beside them."""
    trained = [Arrays.load(path) for path in sorted(folder.parent.glob("train_*.npz"))]
    covered = re.compile(r"netG_\d+\.pth|content\.pth|README.*")
    files = sorted(folder.iterdir())
    assert files
    for path in files:
        assert covered.fullmatch(path.name), f"{path.name} is of an uncovered kind"
        if path.suffix != ".pth":
            continue
        for averaged in (True, False):
            file = read_official(path, averaged=averaged)
            norms = np.array([float(w.double().norm()) for w in file.weights.values()])
            key = "final/netG_ema_norms_f32" if file.averaged else "G/param_norms_f32"
            candidates = [norms_of(arrays, key) for arrays in trained if same_names(arrays, file)]
            close = [np.allclose(norms, wanted, rtol=2e-5, atol=1e-7) for wanted in candidates]
            assert any(close), f"{path.name} (averaged={averaged}) fits no train_*.npz"


def same_names(arrays: Arrays, file) -> bool:
    return arrays.numpy("param_order_G").tolist() == list(file.weights)


def norms_of(arrays: Arrays, key: str) -> np.ndarray:
    if key in arrays:
        return arrays.numpy(key)
    last = max(int(m[1]) for name in arrays.names() if (m := re.match(r"it(\d+)/", name)))
    return arrays.numpy(f"it{last}/{key}")


CHECKS = {
    "dwt_": check_dwt,
    "diffusion_coeffs": check_diffusion,
    "qsample_posterior": check_forward_and_posterior,
    "sampling_loop": check_sampling_loop,
    "patchify": check_patchify,
    "blocks": check_blocks,
    "gen_": check_generators,
    "disc_": check_discriminators,
    "train_": check_training,
    "ema_lr": check_ema_and_rates,
    "init_stats": check_initial_weights,
    "ckpt_": check_checkpoints,
}
