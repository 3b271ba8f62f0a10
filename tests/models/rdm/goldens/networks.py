"""Checks of layers, networks and checkpoint containers."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from models.convert.rdm import constructor_arguments, network_weights, unet_config
from models.convert.rdm_files import module_tensors, read_container
from models.layers import Conv2d, GroupNorm
from models.rdm.blocks import EPS, Block, resampled
from models.rdm.objective import hide_labels
from models.rdm.precond import Preconditioning
from models.rdm.unet import UNet, noise_embedding
from tests.golden_file import Golden, assert_close_each, assert_near_max, readme_of
from tests.models.rdm.goldens.replay import class_indices

GOLDEN_RATIO = (5**0.5 - 1) / 2


@torch.no_grad()
def check_layers(golden: Golden) -> None:
    embedded = noise_embedding(golden["emb_in"], int(golden["emb_channels"]))
    assert_near_max(embedded, golden["emb_out"], 1e-5, "emb")
    for case in golden.names(r"(conv_\w+)/cfg"):
        check_convolution(golden, case)
    for case in golden.names(r"(gn_\w+)/x"):
        norm = GroupNorm(golden[f"{case}/x"].shape[1], EPS)
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


def scalar_sigma(golden: Golden, denoise: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the level of D_sigma_scalar: as the README says, else the one that leads to it."""
    section = readme_of(golden.path, golden.path.name)
    if found := re.search(r"D_sigma_scalar.*sigma = ([0-9.e+-]+)", section):
        return torch.tensor(float(found[1]))

    def error(log_sigma: Tensor) -> float:
        return float((denoise(log_sigma.exp()) - golden["D_sigma_scalar"]).abs().max())

    levels = torch.linspace(*torch.tensor([0.002, 80.0]).log().tolist(), 41).double()
    least = min(range(1, 40), key=lambda i: error(levels[i]))
    low, high = levels[least - 1], levels[least + 1]
    for _ in range(40):  # golden section
        a, b = high - (high - low) * GOLDEN_RATIO, low + (high - low) * GOLDEN_RATIO
        low, high = (low, b) if error(a) < error(b) else (a, high)
    return ((low + high) / 2).exp().float()


@torch.no_grad()
def check_unet(golden: Golden) -> None:
    network, arguments = load_unet(golden)
    precondition, x, sigma = Preconditioning(0.5), golden["x"], golden["sigma"]
    labels = class_indices(golden.get("class_labels"))
    augment_labels = golden.get("augment_labels")
    scalings = precondition.scalings(sigma.float())
    for name, value in scalings._asdict().items():
        assert_near_max(value, golden[name].flatten(), 1e-5, name)
    emb = network.embed(scalings.c_noise, labels, augment_labels)
    assert_near_max(emb.expand_as(golden["emb_full"]), golden["emb_full"], 5e-5, "emb_full")
    check_raw_output(golden, network, scalings, labels, augment_labels)
    full = precondition.denoise(network, x, sigma, labels, augment_labels)
    variants = {"D_full": full, "D_eff": full}
    if "D_sigma_scalar" in golden:

        def at_level(level: Tensor) -> Tensor:
            return precondition.denoise(network, x, level.float(), labels, augment_labels)

        variants["D_sigma_scalar"] = at_level(scalar_sigma(golden, at_level))
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


def check_container(golden: Golden) -> None:
    """Compare every tensor and the arguments of the official containers next to the file."""
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
