"""Checks of the networks' building blocks, made from their weights and names."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from models.layers import mean_down, nearest_up
from models.wavediff import blocks, layers, resample
from models.wavediff.discriminator import DiscriminatorBlock
from tests.models.wavediff.goldens.arrays import DTYPES, TOLERANCE, Arrays


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
    up = resample.fir_up(x) if fir else nearest_up(x)
    down = resample.fir_down(x) if fir else mean_down(x)
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
