"""The U-Net: dropout by key, recomputation, dtypes, layouts, compilation, and bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.rdm.blocks import keyed_dropout, splitmix
from models.rdm.precond import Preconditioning
from models.rdm.unet import UNet, UNetConfig

CONFIG = UNetConfig(
    resolution=16, model_channels=16, channel_mult=(1, 4), num_blocks=1, attn_resolutions=(8,),
    label_dim=3, augment_dim=9, dropout=0.3,
)  # fmt: skip
KEYS = torch.tensor([11, 22, 33])


def build(**changes: object) -> UNet:
    """A network whose zero-initialised layers are random, so that every branch matters."""
    torch.manual_seed(0)
    network = UNet(replace(CONFIG, **changes))
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(3, 3, 16, 16, generator=generator),
        "noise_label": torch.randn(3, generator=generator),
        "labels": torch.tensor([0, 2, -1]),
        "augment_labels": torch.randn(3, 9, generator=generator),
        "dropout_keys": KEYS,
    }


def gradients(network: UNet, given: dict[str, Tensor]) -> dict[str, Tensor]:
    network.zero_grad()
    network(**given).float().square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def test_initial_output_is_zero() -> None:
    network = UNet(CONFIG)
    assert not network(**inputs()).any()
    assert network.map_label.weight.std().item() == pytest.approx(1, abs=0.1)


def test_splitmix_is_the_published_generator() -> None:
    outputs = splitmix(torch.tensor([1234567]), 3)[0].tolist()
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [value % (1 << 64) for value in outputs] == expected


def test_dropout_frequency_and_scale() -> None:
    kept = keyed_dropout(torch.ones(4, 1000, 25), torch.arange(4), layer=2, p=0.3)
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.01)
    assert not torch.equal(kept[0], kept[1])
    again = keyed_dropout(torch.ones(4, 1000, 25), torch.arange(4), layer=3, p=0.3)
    assert not torch.equal(kept, again)


def test_dropout_belongs_to_the_sample() -> None:
    network, given = build(), inputs()
    whole = network(**given)
    alone = network(**{name: tensor[1:2] for name, tensor in given.items()})
    assert torch.allclose(whole[1:2], alone, atol=1e-5)
    other = network(**given | {"dropout_keys": KEYS + 1})
    assert not torch.allclose(whole, other, atol=1e-3)


def test_recomputed_blocks_have_the_same_gradients() -> None:
    plain = gradients(build(), inputs())
    recomputed = gradients(build(recompute_blocks=True), inputs())
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_minus_one_is_no_label_and_zero_no_augmentation() -> None:
    network, given = build(), inputs()
    given["labels"] = torch.full((3,), -1)
    given["augment_labels"] = torch.zeros(3, 9)
    bare = {name: given[name] for name in ("x", "noise_label", "dropout_keys")}
    assert torch.allclose(network(**given), network(**bare), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(dtype: str) -> None:
    given = inputs()
    exact = build()(**given).detach()
    half = build(compute_dtype=dtype)(**given).detach()
    assert half.dtype == getattr(torch, dtype)
    assert float((half.float() - exact).abs().max()) < 0.05 * float(exact.abs().max())
    grads = gradients(build(compute_dtype=dtype), given)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads.values())


def test_channels_last_computes_the_same() -> None:
    given, network = inputs(), build()
    expected = network(**given)
    last = network.to(memory_format=torch.channels_last)
    given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last(**given), expected, atol=1e-5)


def test_compiled_network_computes_the_same() -> None:
    network, given = build(), inputs()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(**given), network(**given), atol=1e-5)
    expected = gradients(network, given)
    network.zero_grad()
    compiled(**given).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name


def test_one_noise_level_serves_a_batch() -> None:
    network, given = build(), inputs()
    precondition = Preconditioning(0.5)
    one = precondition.denoise(network, given["x"], 0.7, given["labels"])
    each = precondition.denoise(network, given["x"], torch.full((3,), 0.7), given["labels"])
    assert torch.allclose(one, each, atol=1e-6)
    assert one.dtype == torch.float32


def test_bad_input_is_rejected() -> None:
    unconditional = build(label_dim=0, augment_dim=0)
    x, noise_label = torch.zeros(1, 3, 16, 16), torch.zeros(1)
    with pytest.raises(ValueError, match="class labels for a network with label_dim=0"):
        unconditional(x, noise_label, torch.tensor([0]))
    with pytest.raises(ValueError, match="augment labels for a network with augment_dim=0"):
        unconditional(x, noise_label, None, torch.zeros(1, 9))
    with pytest.raises(ValueError, match=r"sigma=0.0 must be positive"):
        Preconditioning(0.5).denoise(unconditional, x, 0.0)
    with pytest.raises(ValueError, match=r"resolution=18 is not a multiple of 4"):
        replace(CONFIG, resolution=18, channel_mult=(1, 2, 2))
    with pytest.raises(ValueError, match=r"dropout=1.0 must be in \[0, 1\)"):
        replace(CONFIG, dropout=1.0)
    with pytest.raises(ValueError, match="channel_mult"):
        replace(CONFIG, channel_mult=())
