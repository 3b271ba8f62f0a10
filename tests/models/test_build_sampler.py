"""`build_sampler` and sampling leave the network that they are given as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.families import AnyObjective
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.edm_sampler import EdmSampling
from models.rdm.unet import UNetConfig
from models.sampler import Sampler, sample
from tests.tiny import TINY


def previous_stage(config: AnyObjective) -> Sampler | None:
    """Return the sampler of an untrained stage that a relay can continue from."""
    if not isinstance(config, RelayConfig):
        return None
    unet = UNetConfig(
        resolution=config.unet.resolution // config.process.upscale, model_channels=8,
        channel_mult=(1,), num_blocks=1, label_dim=config.label_dim,
    )  # fmt: skip
    first = EdmConfig(unet=unet, sampling=EdmSampling(steps=2))
    return first.build_sampler(first.build().build_networks()["denoiser"])


def tensor_facts(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.stride(), tensor.data_ptr(), tensor.requires_grad


def facts(network: nn.Module) -> dict[str, Any]:
    """Return all that a sampler could change: modes, attributes, hooks, layout and identity."""
    found: dict[str, Any] = {}
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                found[f"{name}:{key}"] = repr(value)
    tensors = [*network.named_parameters(), *network.named_buffers()]
    return found | {name: tensor_facts(tensor) for name, tensor in tensors}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TINY)
def test_the_network_stays_as_it_is(name: str, training: bool) -> None:
    config = TINY[name]().objective
    objective = config.build()
    network = objective.build_networks()[objective.sampled_network]
    network.train(training)
    next(network.parameters()).requires_grad_(False)
    before = facts(network)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    sampler = config.build_sampler(network, previous_stage(config))
    assert facts(network) == before
    labels = torch.tensor([0, 1]) if sampler.label_dim else None
    assert len(sample(sampler, [3, 4], labels)) == 2
    assert facts(network) == before
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
