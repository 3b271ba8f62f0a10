"""Generators and discriminators: switches, precision, minibatch groups, bad input."""

import dataclasses

import pytest
import torch

from models.wavediff.discriminator import Discriminator, DiscriminatorConfig, minibatch_deviation
from models.wavediff.generator import Generator
from models.wavediff.generator_config import GeneratorConfig
from models.wavediff.layers import Conv2d

TINY = GeneratorConfig(
    base_channels=8,
    channel_multipliers=(1, 2),
    blocks_per_level=1,
    attention_resolutions=(4,),
    latent_dim=6,
    embedding_dim=8,
    mapping_layers=1,
)
TINY_CRITIC = DiscriminatorConfig(layers=3, base_channels=4, embedding_dim=8)


def inputs(config: GeneratorConfig, batch: int = 2, edge: int = 8):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(batch, 12, edge, edge, generator=generator)
    z = torch.randn(batch, config.latent_dim, generator=generator)
    return y, torch.arange(batch) % 2, z


def randomised(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Replace the nearly zero initial weights, so that every layer matters."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize(
    "switch", ["frequency_blocks", "frequency_bottleneck", "frequency_pyramid"]
)
def test_each_wavelet_part_can_be_switched_off(switch):
    whole = randomised(Generator(TINY, 12, 8))
    ablated = randomised(Generator(dataclasses.replace(TINY, **{switch: False}), 12, 8))
    differing = len(whole.state_dict()) != len(ablated.state_dict())
    assert differing == (switch == "frequency_blocks")  # convH is missing
    with torch.no_grad():
        assert not torch.allclose(whole(*inputs(TINY)), ablated(*inputs(TINY)))


def test_without_wavelets_it_is_ncsnpp():
    plain = TINY.without_wavelets()
    names = Generator(plain, 12, 8).state_dict()
    assert not any("convH" in name for name in names)
    assert "all_modules.5.Conv2d_0.weight" in names


def test_untrained_output_is_almost_zero_and_weights_start_as_specified():
    with torch.no_grad():
        assert Generator(TINY, 12, 8)(*inputs(TINY)).abs().max() < 0.01
    conv = Conv2d(64, 32)
    width = (3 / ((64 + 32) * 9 / 2)) ** 0.5
    assert 0.98 * width < conv.weight.abs().max() <= width
    assert conv.bias.abs().max() == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_keeps_float32_weights_and_close_results(dtype):
    exact = randomised(Generator(TINY, 12, 8))
    low = randomised(Generator(dataclasses.replace(TINY, compute_dtype=dtype), 12, 8))
    with torch.no_grad():
        wanted, found = exact(*inputs(TINY)), low(*inputs(TINY))
    assert found.dtype == torch.float32
    assert {p.dtype for p in low.parameters()} == {torch.float32}
    assert 0 < (found - wanted).abs().mean() < 0.05


def test_r1_works_in_low_precision():
    config = dataclasses.replace(TINY_CRITIC, compute_dtype="bfloat16", stddev_group=2)
    critic = randomised(Discriminator(config, 12))
    y = torch.randn(2, 12, 8, 8, requires_grad=True)
    logits = critic(y, torch.tensor([0, 1]), torch.randn(2, 12, 8, 8))
    assert logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logits.sum(), y, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in critic.parameters())


def _pair_gradients(recompute: bool) -> list[torch.Tensor]:
    """Return the gradients of a discriminator's loss with R1, and of a generator's."""
    config = dataclasses.replace(TINY, recompute_blocks=recompute)
    critic = dataclasses.replace(TINY_CRITIC, recompute_blocks=recompute, stddev_group=2)
    networks = [randomised(Generator(config, 12, 8)), randomised(Discriminator(critic, 12))]
    y, t, z = inputs(TINY)
    logits = networks[1](y.requires_grad_(), t, y.detach())
    (gradient,) = torch.autograd.grad(logits.sum(), y, create_graph=True)
    (logits.square().sum() + gradient.square().sum()).backward()
    networks[1](networks[0](y.detach(), t, z), t, y.detach()).sum().backward()
    return [p.grad for network in networks for p in network.parameters()]


def test_recomputed_blocks_have_the_same_gradients_with_r1_as_well():
    plain, recomputed = _pair_gradients(False), _pair_gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_channels_last_gives_the_same():
    network = randomised(Generator(TINY, 12, 8)).double()
    y, t, z = inputs(TINY)
    with torch.no_grad():
        wanted = network(y.double(), t, z.double())
        assert wanted.is_contiguous()
        network.to(memory_format=torch.channels_last)
        found = network(y.double(), t, z.double())
    torch.testing.assert_close(found, wanted)


def test_activations_stay_in_channels_last():
    """Weights in that layout are enough; no layer of the generator falls back to the other one."""
    network = randomised(Generator(TINY, 12, 8)).to(memory_format=torch.channels_last)
    outputs = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _, given, out: outputs.append(out))
    network(*inputs(TINY))
    assert outputs
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in outputs)


def test_networks_can_be_compiled_whole():
    """No graph breaks; the aot_eager backend needs no C++ compiler."""
    network = randomised(Generator(TINY, 12, 8))
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    given = inputs(TINY)
    found = compiled(*given)
    found.sum().backward()
    torch.testing.assert_close(found, network(*given), rtol=1e-4, atol=1e-5)


def test_samples_do_not_influence_each_other_in_the_generator():
    network = randomised(Generator(TINY, 12, 8)).double()
    y, t, z = (v.double() if v.is_floating_point() else v for v in inputs(TINY, batch=4))
    with torch.no_grad():
        torch.testing.assert_close(network(y, t, z)[1:2], network(y[1:2], t[1:2], z[1:2]))


def test_rejections_of_the_generator():
    y, t, z = inputs(TINY)
    with pytest.raises(
        ValueError, match=r"latent z has width 5, the generator expects latent_dim=6"
    ):
        Generator(TINY, 12, 8)(y, t, z[:, :5])
    with pytest.raises(ValueError, match=r"edge of 10, not a multiple of 4"):
        Generator(TINY, 12, 10)
    with pytest.raises(ValueError, match=r"6 channels do not divide into 1|channels do not divide"):
        GeneratorConfig(base_channels=130)
    with pytest.raises(ValueError, match=r"adaptive_norms=1"):
        GeneratorConfig(adaptive_norms=1)
    with pytest.raises(ValueError, match=r"channel_multipliers"):
        GeneratorConfig(channel_multipliers=())
    with pytest.raises(ValueError, match="latent_dim=0 must be positive"):
        GeneratorConfig(latent_dim=0)
    with pytest.raises(ValueError, match="mapping_layers=-1"):
        GeneratorConfig(mapping_layers=-1)


def test_deviation_of_consecutive_groups():
    h = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    maps = minibatch_deviation(h, 4)
    assert maps.shape == (8, 1, 2, 2)
    for first in (0, 4):
        group = h[first : first + 4]
        wanted = (group.var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(maps[first : first + 4], wanted.expand(4, 1, 2, 2))


def test_consecutive_groups_do_not_depend_on_the_micro_batch():
    h = torch.randn(8, 3, 2, 2)
    halves = [minibatch_deviation(half, 4) for half in h.chunk(2)]
    torch.testing.assert_close(torch.cat(halves), minibatch_deviation(h, 4))


def test_strided_groups_are_the_official_ones():
    h = torch.randn(8, 3, 2, 2)
    maps = minibatch_deviation(h, 4, "strided")
    for member in range(8):
        group = h[member % 2 :: 2]
        wanted = (group.var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(maps[member, 0, 0, 0], wanted)
    torch.testing.assert_close(
        minibatch_deviation(h[:3], 4, "strided"), minibatch_deviation(h[:3], 3)
    )


@pytest.mark.parametrize(
    ("batch", "grouping"), [(2, "consecutive"), (6, "consecutive"), (6, "strided")]
)
def test_batches_that_do_not_split_into_groups(batch, grouping):
    with pytest.raises(ValueError, match=f"batch of {batch} samples .* stddev_group=4"):
        minibatch_deviation(torch.zeros(batch, 1, 2, 2), 4, grouping)


def test_rejections_of_the_discriminator():
    with pytest.raises(ValueError, match=r"layers=5 of a small discriminator; expected 3..4"):
        DiscriminatorConfig(layers=5)
    with pytest.raises(ValueError, match="stddev_group=0 must be positive"):
        DiscriminatorConfig(stddev_group=0)
    with pytest.raises(ValueError, match=r"too deep for an input of edge 16.*multiple of 32"):
        DiscriminatorConfig(kind="large", layers=5).check_resolution(16)
