"""Diffusion, losses, R1 and diagnosis of a WaveDiff pair: closed forms, equalities, bad input."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from models.objective import Example
from models.wavediff.config import WaveDiffConfig
from models.wavediff.data_space import PixelSpace
from models.wavediff.diagnostics import diagnose_pair, diversity
from models.wavediff.diffusion import Diffusion, DiffusionConfig, coefficients
from models.wavediff.discriminator import DiscriminatorConfig
from models.wavediff.generator_config import GeneratorConfig
from models.wavediff.objective import mean_squared_gradient

TINY = WaveDiffConfig(
    resolution=16,
    generator=GeneratorConfig(
        base_channels=4,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        attention_resolutions=(4,),
        latent_dim=6,
        embedding_dim=8,
        mapping_layers=1,
    ),
    discriminator=DiscriminatorConfig(layers=3, base_channels=2, embedding_dim=8, stddev_group=2),
    r1_gamma=1.0,
    r1_interval=3,
)


def random_pair(config: WaveDiffConfig = TINY) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    networks = config.build().build_networks()
    for network in networks.values():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return networks


def example(first: int = 0, count: int = 8, config: WaveDiffConfig = TINY) -> Example:
    generator = torch.Generator().manual_seed(1)
    size = config.resolution
    images = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8, generator=generator)
    x = config.build().prepare(images)[first : first + count]
    return Example(x, None, tuple(range(first, first + count)), seed=5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_coefficients_follow_from_the_variance(steps):
    """x_t of the forward process has the variance of the schedule, relative to its start."""
    config = DiffusionConfig(steps=steps)
    table = coefficients(config, torch.device("cpu"))
    times = config.times()
    kept = (1 - config.variance(times)) / (1 - config.variance(times[:1]))
    torch.testing.assert_close(table.scale.double() ** 2, kept, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(table.scale**2 + table.noise**2, torch.ones(steps + 1))


def test_posterior_is_the_product_of_gaussians():
    """Precision-weighted mean of q(x_{t+1} | x_t) and q(x_t | x_0), in float64."""
    config = DiffusionConfig(steps=4)
    betas = config.betas().double()[1:]
    kept = (1 - betas).cumprod(0)
    diffusion = Diffusion(config)
    for t in range(1, 4):
        variance = 1 / ((1 - betas[t]) / betas[t] + 1 / (1 - kept[t - 1]))
        weight_tp1 = variance * (1 - betas[t]).sqrt() / betas[t]
        weight_x0 = variance * kept[t - 1].sqrt() / (1 - kept[t - 1])
        x0, x_tp1, noise = torch.randn(3, 1, 1, 2, 2, dtype=torch.float64)
        found = diffusion.posterior_sample(x0, x_tp1, torch.tensor([t]), noise)
        wanted = weight_x0 * x0 + weight_tp1 * x_tp1 + variance.sqrt() * noise
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_first_step_is_exact():
    diffusion, x0, noise = (
        Diffusion(DiffusionConfig(steps=2)),
        torch.randn(2, 3, 4, 4),
        torch.ones(1),
    )
    t = torch.zeros(2, dtype=torch.int64)
    x_t, _ = diffusion.pair(x0, t, noise, noise)
    assert torch.equal(x_t, x0)
    assert torch.equal(diffusion.posterior_sample(x0, x0 * 9, t, noise), x0)


@pytest.mark.parametrize("t", [-1, 4])
def test_timesteps_outside_the_schedule(t):
    diffusion, x = Diffusion(DiffusionConfig(steps=4)), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=f"timesteps {t}..{t} are outside 0..3"):
        diffusion.pair(x, torch.tensor([t]), x, x)
    with pytest.raises(ValueError, match=r"outside 0..3, the schedule of diffusion.steps=4"):
        diffusion.posterior_sample(x, x, torch.tensor([t]), x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "diffusion.steps=0 must be at least 1"),
        ({"beta_min": 0.0}, "must satisfy 0 < beta_min < beta_max"),
        ({"beta_min": 30.0}, "must satisfy 0 < beta_min < beta_max"),
        ({"geometric": True}, "beta_max=20.0 is a variance"),
    ],
)
def test_impossible_schedules(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r1_gamma": -1.0}, "r1_gamma=-1.0 must be at least 0"),
        ({"r1_gamma": math.nan}, "r1_gamma=nan must be at least 0"),
        ({"reconstruction_weight": -0.5}, "reconstruction_weight=-0.5 must be at least 0"),
        ({"r1_interval": 0}, "r1_interval=0 must be at least 1"),
        ({"resolution": 17}, "resolution=17 is odd"),
        ({"resolution": 18}, "edge of 9, not a multiple of 4"),
        (
            {"discriminator": DiscriminatorConfig(kind="large", layers=4)},
            "too deep for an input of edge 8",
        ),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **settings)


def test_prepare_maps_to_unit_subbands():
    x = TINY.build().prepare(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8))
    assert x.shape == (1, 12, 8, 8)
    torch.testing.assert_close(x[:, :3], torch.ones(1, 3, 8, 8))
    assert x[:, 3:].abs().max() < 1e-6
    with pytest.raises(ValueError, match=r"images are 8x8, the objective expects resolution=16"):
        TINY.build().prepare(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_losses_come_in_order_and_r1_is_lazy():
    objective, networks = TINY.build(), random_pair()
    assert list(objective.losses()) == ["discriminator", "generator"]
    assert objective.second_order == {"discriminator"}
    assert objective.batch_multiple == 2
    for step in range(4):
        loss, metrics = objective.losses()["discriminator"](networks, example(), step)
        parts = metrics["loss_real"] + metrics["loss_fake"]
        assert metrics["r1"].isnan() == (step % 3 != 0)
        penalty = metrics["r1"] if step % 3 == 0 else 0
        torch.testing.assert_close(loss.detach(), parts + penalty)
    without = dataclasses.replace(TINY, r1_gamma=0.0).build()
    assert without.losses()["discriminator"](networks, example(), 0)[1]["r1"].isnan()
    assert without.second_order == frozenset()


def test_penalty_of_a_linear_discriminator_is_its_weight():
    weight = torch.randn(12, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    penalty = mean_squared_gradient((y @ weight)[:, None], y)
    torch.testing.assert_close(penalty, weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_discriminator_loss_leaves_the_generator_alone():
    networks = random_pair()
    loss, _ = TINY.build().losses()["discriminator"](networks, example(), 0)
    loss.backward()
    assert all(p.grad is None for p in networks["generator"].parameters())
    assert all(p.grad is not None for p in networks["discriminator"].parameters())


@pytest.mark.parametrize("name", ["discriminator", "generator"])
@pytest.mark.parametrize("step", [0, 1])
def test_micro_batches_add_up_to_the_joined_batch(name, step):
    """Losses and gradients are means over samples that know their draws and groups."""
    objective = TINY.build()
    gradients = []
    for size in (8, 4, 2):
        networks = random_pair()
        for network in networks.values():
            network.double()
        for first in range(0, 8, size):
            part = example(first, size)
            part = dataclasses.replace(part, x=part.x.double())
            loss, _ = objective.losses()[name](networks, part, step)
            (loss * size / 8).backward()
        parameters = networks[name].parameters()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=0, atol=1e-12)


def test_both_half_steps_have_fresh_draws():
    one, two = example().draws("discriminator"), example().draws("generator")
    assert not torch.equal(one.randn((4,)), two.randn((4,)))


def test_a_batch_that_does_not_fill_its_groups():
    with pytest.raises(ValueError, match=r"batch of 3 samples does not split .* stddev_group=2"):
        TINY.build().losses()["discriminator"](random_pair(), example(0, 3), 0)


def test_pixel_space_is_ddgan():
    config = dataclasses.replace(
        TINY, resolution=8, space=PixelSpace(), reconstruction_weight=0.0,
        generator=TINY.generator.without_wavelets(),
    )  # fmt: skip
    networks = random_pair(config)
    loss, metrics = config.build().losses()["generator"](networks, example(config=config), 0)
    torch.testing.assert_close(loss.detach(), metrics["loss_adversarial"])


def test_diversity_tells_collapse_from_variety():
    assert diversity(torch.ones(8, 3, 4, 4) * torch.randn(3, 4, 4)) < 1e-3
    assert 0.9 < diversity(torch.randn(8, 3, 16, 16)) < 1.1


def test_the_grid_is_the_same_for_all_samples_and_rarely_looked_at():
    loss = TINY.build().losses()["generator"]
    networks = random_pair()
    one, two = (loss(networks, example(first, 2), 0)[1]["diversity"] for first in (0, 4))
    assert one == two > 0
    assert loss(networks, example(), 1)[1]["diversity"].isnan()


HEALTHY = {
    "discriminator/loss": 1.2,
    "discriminator/loss_real": 0.6,
    "discriminator/loss_fake": 0.6,
    "discriminator/accuracy_real": 0.7,
    "discriminator/accuracy_fake": 0.8,
    "discriminator/r1": math.nan,
    "generator/loss": 1.1,
    "generator/loss_adversarial": 1.0,
    "generator/diversity": math.nan,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator/loss": math.nan}, "generator/loss is non-finite.*learning rates"),
        ({"discriminator/loss_real": math.inf}, "discriminator/loss_real is non-finite"),
        ({"generator/loss_adversarial": 300.0}, "=300 has exploded.*optim.discriminator.lr"),
        ({"discriminator/r1": 1e6}, "R1 penalty is 1e.06.*objective.r1_gamma"),
        (
            {
                "discriminator/accuracy_real": 1.0,
                "discriminator/accuracy_fake": 1.0,
                "generator/loss_adversarial": 30.0,
            },
            "saturated.*objective.r1_gamma",
        ),
        (
            {"discriminator/accuracy_real": 0.0, "discriminator/loss_real": 15.0},
            "collapsed: it gives one answer.*optim.discriminator.lr",
        ),
        (
            {"generator/diversity": 1e-5, "discriminator/accuracy_fake": 1.0},
            "the generator has collapsed.*objective.reconstruction_weight",
        ),
    ],
)
def test_sick_pairs_are_diagnosed(changes, message):
    assert diagnose_pair(HEALTHY) is None
    assert TINY.build().diagnose(HEALTHY) is None
    found = diagnose_pair(HEALTHY | changes)
    assert found is not None
    assert __import__("re").search(message, found), found


def test_large_weights_are_no_explosion():
    """A penalty of 300 at a large r1_gamma, an error of 0.5 times a weight of 1000."""
    weighted = {"discriminator/loss": 301.2, "discriminator/r1": 300.0, "generator/loss": 501.0}
    assert diagnose_pair(HEALTHY | weighted) is None


def test_untrained_pairs_are_not_called_sick():
    objective, networks = TINY.build(), TINY.build().build_networks()
    metrics = {}
    for name, loss in objective.losses().items():
        for key, value in loss(networks, example(), 0)[1].items():
            metrics[f"{name}/{key}"] = float(value.nanmean())
    assert objective.diagnose(metrics) is None
