"""Checks of whole generators and discriminators, their R1, and their initial weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.convert.wavediff_files import generator_config
from models.wavediff import presets
from models.wavediff.config import WaveDiffConfig
from models.wavediff.discriminator import Discriminator, DiscriminatorConfig
from models.wavediff.generator import Generator
from models.wavediff.generator_config import GeneratorConfig
from models.wavediff.objective import mean_squared_gradient
from tests.models.wavediff.goldens.arrays import DTYPES, TOLERANCE, Arrays

WEIGHT_GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def check_generators(arrays: Arrays, name: str) -> None:
    many = "config_json" not in arrays
    for case in arrays.cases(r"c\d+/") if many else [arrays]:
        settings = case.config()
        config = class_of(case, settings, name)
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


def class_of(case: Arrays, settings: dict[str, Any], name: str) -> GeneratorConfig:
    """Return the configuration of the class that the weights are of, and, if they fit both, that
    is nearer to the output: files of variants do not say their class."""
    if "wavelet" in name:
        return generator_config(settings, wavelet=True)
    plain = generator_config(settings, wavelet=False)
    if settings.get("resblock_type") == "biggan_oneadagn":  # of NCSN++ only
        return plain
    fitting = [
        config
        for config in (plain, generator_config(settings, wavelet=True))
        if fits(case, config, settings)
    ]
    assert fitting, f"{name}: the weights are of neither class"
    return min(fitting, key=lambda config: distance(case, config, settings))


def distance(case: Arrays, config: GeneratorConfig, settings: dict[str, Any]) -> float:
    network = Generator(config, settings["num_channels"], settings["image_size"])
    case.load_into(network, torch.float64)
    x, z = (case.tensor(key, torch.float64) for key in ("x", "z"))
    with torch.no_grad():
        return float((network(x, case.tensor("t"), z) - case.tensor("out_f64")).abs().max())


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


def fits(case: Arrays, config: GeneratorConfig, settings: dict[str, Any]) -> bool:
    with torch.device("meta"):
        network = Generator(config, settings["num_channels"], settings["image_size"])
    shapes = {key: weight.shape for key, weight in network.state_dict().items()}
    return shapes == {key: weight.shape for key, weight in case.weights().items()}


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


def check_initial_weights(arrays: Arrays, name: str) -> None:
    for case in arrays.cases(r"[GD]_[^/]+/"):
        network, _, dataset = case._prefix.rstrip("/").partition("_")
        of_case = "generator" if network == "G" else "discriminator"
        names, numel = (case.numpy(key).tolist() for key in ("names", "numel"))
        preset = preset_of(dataset, of_case, dict(zip(names, numel, strict=True)))
        torch.manual_seed(0)
        weights = preset().build().build_networks()[of_case].state_dict()
        assert names == list(weights)
        assert numel == [w.numel() for w in weights.values()]
        columns = [case.numpy(key).tolist() for key in ("half_width", "absmax", "std", "mean")]
        for (key, weight), half_width, *official in zip(weights.items(), *columns, strict=True):
            check_initial_weight(key, weight, half_width, *official)


def preset_of(dataset: str, network: str, sizes: dict[str, int]) -> Callable[[], WaveDiffConfig]:
    """Return the preset of a set's name, as the authors abbreviate it, e.g. `celeba_256`.

    A name that no preset has is that of a preset with a network of these sizes.
    """
    if dataset in presets.PRESETS:
        return presets.PRESETS[dataset]
    parts = re.findall("[a-z]+|[0-9]+", dataset.lower())
    named = [preset for name, preset in presets.PRESETS.items() if all(p in name for p in parts)]
    fitting = [p for p in presets.PRESETS.values() if sizes_of(p, network) == sizes]
    both = [preset for preset in fitting if preset in named]
    assert fitting, f"no preset has a {network} as that of {dataset}"
    assert both or not named, f"the preset {named[0].__name__} has another {network} than {dataset}"
    return (both or fitting)[0]


def sizes_of(preset: Callable[[], WaveDiffConfig], network: str) -> dict[str, int]:
    with torch.device("meta"):
        weights = preset().build().build_networks()[network].state_dict()
    return {name: weight.numel() for name, weight in weights.items()}


def check_initial_weight(
    key: str, weight: Tensor, half_width: float, absmax: float, std: float, mean: float
) -> None:
    found = weight.double()
    if half_width <= 0:  # constants: zeros, ones, or ones then zeros
        assert float(found.abs().max()) == pytest.approx(absmax), key
        assert float(found.mean()) == pytest.approx(mean), key
        return
    slack = 6 / weight.numel() ** 0.5
    least = half_width * (1 - 30 / weight.numel())  # the largest of n draws, but for e^-30
    assert least <= float(found.abs().max()) <= half_width * (1 + 1e-6), key
    assert abs(float(found.std(correction=0)) / half_width - 3**-0.5) < slack, key
    assert abs(float(found.mean())) < half_width * slack, key
    assert abs(std / half_width - 3**-0.5) < slack, key
    assert least <= absmax <= half_width * (1 + 1e-6), key
