"""Every WaveDiff recipe builds, with the published parameter counts and lengths of training."""

import pytest
import torch

from dist_train.config import RunConfig
from dist_train.recipes import RECIPES
from models.config_io import from_json, to_json
from models.wavediff.config import WaveDiffConfig

# Parameters of both networks (docs/reference/wavediff.md#5), steps of training (#7.3).
# Without frequency blocks, the grouped convolutions of details are missing; without the frequency
# pyramid, its convolutions read a quarter of the channels.
COUNTS = {
    "wavediff_cifar10": (33_370_124, 7_630_593, 351_195),
    "wavediff_stl10": (55_585_292, 12_743_937, 351_390),
    "wavediff_celebahq256": (31_485_452, 22_626_177, 421 * 501),
    "wavediff_celebahq512": (44_853_004, 27_739_521, 375_737),
    "wavediff_celebahq1024": (44_186_416, 27_739_521, 375_737),
    "wavediff_lsun_church256": (31_485_452, 22_626_177, 939_375),
    "ddgan_cifar10": (48_432_515, 12_741_633, 351_195),
    "ddgan_stl10": (48_432_515, 12_741_633, 781 * 1801),
    "ddgan_celebahq256": (39_726_979, 27_737_217, 421 * 501),
    "ddgan_celebahq512": (39_726_979, 27_737_217, 1875 * 401),
    "ddgan_lsun_church256": (39_726_979, 27_737_217, 3750 * 501),
    "wavediff_celebahq256_no_frequency_bottleneck": (31_485_452, 22_626_177, 421 * 501),
    "wavediff_celebahq256_no_frequency_blocks": (31_485_452 - 1_992_576, 22_626_177, 421 * 501),
    "wavediff_celebahq256_no_frequency_residual": (31_485_452 - 1_126_656, 22_626_177, 421 * 501),
    "wavediff_celebahq256_no_reconstruction": (31_485_452, 22_626_177, 421 * 501),
    "wavediff_images64": (55_585_292, 12_743_937, 421 * 501),
    "wavediff_images128": (26_463_756, 17_512_833, 421 * 501),
    "wavediff_images256": (31_485_452, 22_626_177, 421 * 501),
    "wavediff_images512": (44_853_004, 27_739_521, 375_737),
    "wavediff_debug": (252_284, 120_545, 24),
    "ddgan_debug": (229_283, 120_257, 24),
}

SWAPPED, LAYER, PIXELS = "LL_HL_LH_HH", "LL_LH_HL_HH", None

# The official scripts (docs/reference/wavediff.md#7.3): global batch, epochs, rates of G, D, gamma,
# lazy interval, EMA, steps, bands, weight of the reconstruction term.
OFFICIAL = {
    "wavediff_cifar10": (256, 1800, 1.6e-4, 1.25e-4, 0.02, 15, 0.9999, 4, SWAPPED, 1),
    "wavediff_stl10": (256, 900, 1.6e-4, 1.25e-4, 0.02, 15, 0.9999, 4, SWAPPED, 1),
    "wavediff_celebahq256": (64, 500, 2e-4, 1e-4, 2, 10, 0.9999, 2, LAYER, 1),
    "wavediff_celebahq512": (32, 400, 2e-4, 1e-4, 2, 10, 0.9999, 2, SWAPPED, 1),
    "wavediff_celebahq1024": (32, 400, 2e-4, 1e-4, 2, 10, 0.9999, 2, LAYER, 1),
    "wavediff_lsun_church256": (64, 500, 1.6e-4, 1e-4, 1, 10, 0.999, 4, SWAPPED, 1),
    "ddgan_cifar10": (256, 1800, 1.6e-4, 1.25e-4, 0.02, 15, 0.9999, 4, PIXELS, 0),
    "ddgan_stl10": (128, 1800, 1.6e-4, 1.25e-4, 0.02, 15, 0.9999, 4, PIXELS, 0),
    "ddgan_celebahq256": (64, 500, 2e-4, 1e-4, 2, 10, 0.9999, 2, PIXELS, 0),
    "ddgan_celebahq512": (16, 400, 2e-4, 1e-4, 2, 10, 0.9999, 2, PIXELS, 0),
    "ddgan_lsun_church256": (32, 500, 1.6e-4, 1e-4, 1, 10, 0.999, 4, PIXELS, 0),
}

PAIRS = [name for name in RECIPES if name.startswith(("wavediff_", "ddgan_"))]


@pytest.mark.parametrize("name", OFFICIAL)
def test_recipe_has_the_values_of_the_official_script(name):
    config = RECIPES[name]()
    objective, generator, discriminator = (
        config.objective, config.optim["generator"], config.optim["discriminator"],
    )  # fmt: skip
    for adam in (generator, discriminator):
        assert (adam.betas, adam.eps, adam.schedule.minimum) == ((0.5, 0.9), 1e-8, 1e-5)
        assert adam.schedule.epochs + 1 == config.total_images / adam.schedule.epoch_images
    assert config.data.flip
    assert OFFICIAL[name] == (
        config.global_batch_size,
        generator.schedule.epochs,
        generator.lr,
        discriminator.lr,
        objective.r1_gamma,
        objective.r1_interval,
        config.ema["main"].decay,
        objective.diffusion.steps,
        getattr(objective.space, "band_order", None),
        objective.reconstruction_weight,
    )


@pytest.mark.parametrize("name", PAIRS)
def test_recipe_builds_with_the_published_sizes(name):
    config = RECIPES[name]()
    with torch.device("meta"):
        networks = config.objective.build().build_networks()
    counted = {
        name: sum(parameter.numel() for parameter in network.parameters())
        for name, network in networks.items()
    }
    steps = config.total_images // config.global_batch_size
    assert (counted["generator"], counted["discriminator"], steps) == COUNTS[name]
    assert list(config.optim) == list(config.objective.build().losses())
    assert (config.recipe, config.data.resolution) == (name, config.objective.resolution)


@pytest.mark.parametrize("name", PAIRS)
def test_recipe_round_trips_json(name):
    assert from_json(RunConfig, to_json(RECIPES[name]())) == RECIPES[name]()


def test_learning_rate_ends_at_its_minimum():
    adam = RECIPES["wavediff_lsun_church256"]().optim["generator"]
    epoch = adam.schedule.epoch_images
    assert adam.schedule.rate(adam.lr, 0) == pytest.approx(1.6e-4)
    assert adam.schedule.rate(adam.lr, 250 * epoch) == pytest.approx((1.6e-4 + 1e-5) / 2)
    assert adam.schedule.rate(adam.lr, 500 * epoch) == pytest.approx(1e-5)


def test_debug_recipes_have_every_part():
    objective = RECIPES["wavediff_debug"]().objective
    assert isinstance(objective, WaveDiffConfig)
    generator = objective.generator
    assert generator.frequency_blocks
    assert generator.frequency_bottleneck
    assert generator.frequency_pyramid
