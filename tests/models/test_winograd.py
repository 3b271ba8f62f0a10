"""Winograd's convolutions (models.winograd) against PyTorch's."""

import threading
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models import winograd
from models.objective import Example
from models.wavediff import layers
from models.wavediff.config import WaveDiffConfig
from models.wavediff.discriminator import DiscriminatorConfig
from models.wavediff.generator_config import GeneratorConfig

CONFIG = WaveDiffConfig(
    resolution=32,
    generator=GeneratorConfig(base_channels=32, channel_multipliers=(1, 2), blocks_per_level=1),
    discriminator=DiscriminatorConfig(layers=3, base_channels=8),
    r1_interval=1,
)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return winograd.conv2d(x, winograd.transform(weight), bias)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.fixture
def small_suits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Let small layers be convolved so as well, and return the shapes of those that were."""
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "LEAST_NUMBERS", 1)
    seen: list[torch.Size] = []
    conv2d = winograd.conv2d

    def noted(x: Tensor, filters: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(x.shape)
        return conv2d(x, filters, bias)

    monkeypatch.setattr(winograd, "conv2d", noted)
    return seen


@pytest.mark.parametrize("tiles_at_once", [512, 30, 7, 1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_convolution(
    tiles_at_once: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", tiles_at_once)
    x, weight, bias, g = drawn((3, 5, 8, 12), (6, 5, 3, 3), (6,), (3, 6, 8, 12))
    ours = convolve(x.contiguous(memory_format=layout), weight, bias)
    plain = F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    inputs = (x, weight, bias)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, g), torch.autograd.grad(plain, inputs, g), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_second_derivatives() -> None:
    x, weight, bias = drawn((2, 2, 4, 6), (3, 2, 3, 3), (3,))
    assert torch.autograd.gradcheck(convolve, (x, weight, bias))
    assert torch.autograd.gradgradcheck(convolve, (x, weight, bias))
    assert torch.autograd.gradgradcheck(convolve, (x, weight))


def test_it_is_no_less_exact_than_pytorchs() -> None:
    x, weight = drawn((2, 256, 16, 16), (192, 256, 3, 3), dtype=torch.float32)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    errors = [
        (y - exact).abs().max() for y in (convolve(x, weight), F.conv2d(x, weight, padding=1))
    ]
    assert errors[0] <= 1.5 * errors[1]
    assert errors[0] <= 1e-6 * exact.abs().max()


def test_what_it_is_meant_for() -> None:
    weight = torch.empty(128, 256, 3, 3)
    assert winograd.suits(torch.empty(2, 256, 16, 16), weight)
    assert winograd.suits(torch.empty(1, 256, 8, 8), weight)
    for x in (
        torch.empty(2, 256, 15, 16),
        torch.empty(2, 256, 4, 4),
        torch.empty(2, 256, 16, 16, dtype=torch.bfloat16),
        torch.empty(2, 256, 16, 16, device="meta"),
        torch.empty(2, 512, 16, 16),  # two groups
    ):
        assert not winograd.suits(x, weight)
    assert not winograd.suits(torch.empty(2, 256, 16, 16), torch.empty(64, 256, 3, 3))
    assert not winograd.suits(torch.empty(2, 256, 16, 16), torch.empty(128, 256, 1, 1))
    with FakeTensorMode():
        assert not winograd.suits(torch.empty(2, 256, 16, 16), torch.empty(128, 256, 3, 3))


def test_layers_take_it_where_it_is_exact(small_suits: list[torch.Size]) -> None:
    x = torch.randn(2, 12, 8, 8)
    for layer, taken in (
        (layers.Conv2d(12, 6), True),
        (layers.Conv2d(12, 6, bias=False), True),
        (layers.Conv2d(12, 6, 1), False),
        (layers.Conv2d(12, 6, groups=3), False),
        (layers.Conv2d(12, 6, stride=2), False),
        (layers.Conv2d(12, 6, padding=0), False),
    ):
        small_suits.clear()
        plain = F.conv2d(
            x, layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups
        )
        torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)
        assert bool(small_suits) == taken


def test_threads_do_not_share_memory() -> None:
    cases = [drawn((1, 8, 16, 16), (8, 8, 3, 3), dtype=torch.float32) for _ in range(2)]
    cases[1][0].data.neg_()
    expected = [convolve(*case) for case in cases]
    right: list[bool] = []

    def work(k: int) -> None:
        right.extend(torch.equal(convolve(*cases[k]), expected[k]) for _ in range(200))

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 400


def test_inference_and_training_share_memory() -> None:
    x, weight = drawn((1, 8, 4, 4), (8, 8, 3, 3), dtype=torch.float32)
    with torch.inference_mode():
        before = convolve(x, weight)
    convolve(x, weight).sum().backward()
    assert torch.equal(before, convolve(x, weight))


def test_losses_with_r1_and_their_gradients(
    small_suits: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = CONFIG.build()
    torch.manual_seed(0)
    networks = objective.build_networks()
    x = objective.prepare(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    example = Example(x, None, tuple(range(4)), seed=0)

    def gradients() -> dict[str, Tensor]:
        found = {}
        for name, loss_fn in objective.losses().items():
            loss, _ = loss_fn(networks, example, 0)
            found[name] = loss.detach()
            parameters = dict(networks[name].named_parameters())
            grads = torch.autograd.grad(loss, list(parameters.values()))
            found |= {f"{name}.{key}": g for key, g in zip(parameters, grads, strict=True)}
        return found

    ours = gradients()
    assert len(set(small_suits)) > 4, "several sizes and widths of layers took it"
    monkeypatch.setattr(winograd, "suits", lambda x, weight: False)
    plain = gradients()
    for name, value in plain.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(
            ours[name], value, rtol=1e-4, atol=max(1e-4 * scale, 1e-6), msg=name
        )


def test_a_sampler_transforms_filters_once(
    small_suits: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = CONFIG.build().build_networks()["generator"].eval()
    y, t, z = torch.randn(2, 12, 16, 16), torch.tensor([0, 1]), torch.randn(2, 100)
    with torch.inference_mode():
        before = network(y, t, z)
    CONFIG.build_sampler(network)
    transforms: list[int] = []
    transform = winograd.transform
    monkeypatch.setattr(
        winograd, "transform", lambda weight: transforms.append(1) or transform(weight)
    )
    with torch.inference_mode():
        results = [network(y, t, z)]
        assert transforms
        transforms.clear()
        results += [network(y, t, z)]
    assert not transforms
    for one, other in pairwise([before, *results]):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    network(y, t, z).sum().backward()  # what was kept in inference mode does not hinder it
