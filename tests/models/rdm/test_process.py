"""The relay process against closed forms: transform, blur, block noise, schedule, corruption."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from models.objective import Example
from models.rdm.block_noise import block_noise
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.dct import tile_blur
from models.rdm.process import EdmProcess, RelayProcess
from models.rdm.unet import UNetConfig
from models.sample_rng import SampleStreams
from tests.launches import launches
from tests.models.rdm.goldens.process import tile_dct, tile_idct

TINY = UNetConfig(
    resolution=16, model_channels=16, channel_mult=(1, 2), num_blocks=1, label_dim=3, dropout=0.2,
    augment_dim=9,
)  # fmt: skip


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "height", "width"), [(4, 16, 16), (3, 9, 15), (5, 20, 5)])
def test_tile_transform_is_scipys(size: int, height: int, width: int) -> None:
    x = random(2, 3, height, width)
    tile = x[1, 2, -size:, -size:].numpy()
    forward, backward = tile_dct(x, size), tile_idct(x, size)
    assert torch.allclose(forward[1, 2, -size:, -size:], torch.tensor(dctn(tile, norm="ortho")))
    assert torch.allclose(backward[1, 2, -size:, -size:], torch.tensor(idctn(tile, norm="ortho")))
    assert torch.allclose(tile_idct(forward, size), x)


def test_blur_is_attenuation_of_the_transform_on_oblong_images() -> None:
    process, x = RelayProcess(upscale=4), random(3, 2, 8, 20)
    sigma = torch.tensor([0.01, 0.3, 1.5], dtype=torch.float64)
    blurred = tile_blur(x, process.blur_sigma(process.time_at(sigma)), 4, process.min_scale)
    factors = process.attenuation_at(sigma).repeat(1, 2, 5).unsqueeze(1)
    assert torch.allclose(blurred, tile_idct(tile_dct(x, 4) * factors, 4))


def test_strongest_blur_without_remainder_leaves_the_tile_means() -> None:
    x = random(1, 1, 8, 8)
    blurred = tile_blur(x, torch.tensor([1e3], dtype=torch.float64), 4, min_scale=0.0)
    means = torch.nn.functional.avg_pool2d(x, 4)
    assert torch.allclose(blurred, means.repeat_interleave(4, 2).repeat_interleave(4, 3))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8])
def test_block_noise_is_the_sum_of_shifts(size: int) -> None:
    g = random(1, 2, 8, 12)
    shifts = [g.roll((i, j), (2, 3)) for i in range(size) for j in range(size)]
    before = g.clone()
    assert torch.allclose(block_noise(g, size), torch.stack(shifts).sum(0) / size)
    assert torch.equal(g, before)


def test_block_noise_has_unit_variance_and_triangular_covariance() -> None:
    impulse = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    impulse[..., 0, 0] = 1
    response = block_noise(impulse, 4)
    for dy in range(6):
        for dx in range(6):
            covariance = float((response * response.roll((dy, dx), (2, 3))).sum())
            assert covariance == pytest.approx(max(0, 4 - dy) * max(0, 4 - dx) / 16)


@pytest.mark.parametrize(("p", "low", "high"), [(0.93, 0.00712, 1.7699), (0.89, 0.00691, 1.3124)])
def test_range_of_levels(p: float, low: float, high: float) -> None:
    process = RelayProcess(prob_length=p)
    level = process.level_at(torch.tensor([0.0, 1.0]))
    assert level.sigma.tolist() == pytest.approx([low, high], rel=1e-3)
    assert level.blur_sigma is not None
    assert float(level.blur_sigma[1]) == pytest.approx(process.blur_sigma_max)
    assert process.time_at(level.sigma.double())[1] == pytest.approx(1.0)


@pytest.mark.parametrize("normalise", [False, True])
def test_noise_variance(normalise: bool) -> None:
    process = RelayProcess(normalise_noise=normalise, block_noise_alpha=0.8)
    images = torch.zeros(8, 3, 64, 64)
    level = process.level_at(torch.full((8,), 0.5))
    noisy = process.corrupt(images, level, SampleStreams(range(8)))
    expected = float(level.sigma[0]) * (1.0 if normalise else math.sqrt(1 + 0.8**2))
    assert float(noisy.std()) == pytest.approx(expected, rel=0.02)


def test_weight_is_clamped() -> None:
    assert float(RelayProcess().weight(torch.tensor([1e-4]))) == 1e5
    assert float(EdmProcess().weight(torch.tensor([1e-4]))) > 1e7


class MetaDraws:
    """Draws without data: anything that reads a value on the host fails."""

    def __len__(self) -> int:
        return 2

    def randn(self, shape, dtype=torch.float32) -> Tensor:
        return torch.empty(2, *shape, dtype=dtype, device="meta")

    def rand(self, shape=(), dtype=torch.float32) -> Tensor:
        return torch.empty(2, *shape, dtype=dtype, device="meta")

    def randint(self, high, shape=()) -> Tensor:
        return torch.empty(2, *shape, dtype=torch.int64, device="meta")


@pytest.mark.parametrize("process", [EdmProcess(), RelayProcess()])
def test_corruption_never_waits_for_the_device(process: EdmProcess | RelayProcess) -> None:
    level = process.sample_level(MetaDraws())
    noisy = process.corrupt(torch.empty(2, 3, 16, 16, device="meta"), level, MetaDraws())
    assert noisy.dtype == process.weight(level.sigma).dtype == torch.float32


def test_corruption_takes_a_fixed_number_of_launches() -> None:
    """Two products for the blur and one pass over padded noise, whatever the size of the tiles."""
    images = torch.empty(2, 3, 64, 64, device="meta")
    counts = []
    for upscale in (2, 4, 8):
        process = RelayProcess(upscale=upscale)
        level = process.sample_level(MetaDraws())
        process.corrupt(images, level, MetaDraws())  # makes the tables of this tile size
        counted = launches(process.corrupt, images, level, MetaDraws())
        large = images.numel() * images.element_size()
        assert counted.bytes < 25 * large, counted.names
        counts.append(len(counted.names))
    assert set(counts) == {24}


@pytest.mark.parametrize("kind", [EdmConfig, RelayConfig])
def test_loss_does_not_depend_on_the_split(kind: type[EdmConfig] | type[RelayConfig]) -> None:
    config = kind(unet=TINY, label_dropout=0.3, augment_probability=0.3, gradient_scale=2.0)
    objective = config.build()
    networks = objective.build_networks()
    torch.nn.init.normal_(networks["denoiser"].out_conv.weight)
    (loss_fn,) = objective.losses().values()
    images = objective.prepare(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    labels = torch.tensor([0, 1, 2, 0])

    def run(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        example = Example(images[rows], labels[rows], tuple(range(4))[rows], seed=5)
        return loss_fn(networks, example, 0)

    whole, metrics = run(slice(0, 4))
    parts = [run(slice(0, 1)), run(slice(1, 4))]
    split = parts[0][0] / 4 + parts[1][0] * 3 / 4
    assert split.item() == pytest.approx(whole.item(), rel=1e-5)
    joined = torch.cat([part[1]["loss"] for part in parts])
    assert torch.allclose(joined, metrics["loss"], rtol=1e-4)
    pixels = images[0].numel()
    assert whole.item() == pytest.approx(2.0 * pixels * float(metrics["loss"].mean()), rel=1e-5)
    bins = torch.stack([value for name, value in metrics.items() if name != "loss"])
    assert torch.equal(bins.nan_to_num(0).sum(0), metrics["loss"])


def test_equal_positions_meet_equal_noise_and_others_do_not() -> None:
    objective = RelayConfig(unet=replace(TINY, label_dim=0, dropout=0.0)).build()
    networks = objective.build_networks()
    images = torch.zeros(2, 3, 16, 16)
    losses = [
        objective.loss(networks, Example(images, None, positions, seed=1), 0)[1]["loss"]
        for positions in ((7, 8), (8, 7), (8, 9))
    ]
    assert torch.equal(losses[0], losses[1].flip(0))
    assert losses[1][0] == losses[2][0]
    assert losses[1][1] != losses[2][1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upscale": 1}, "upscale=1"),
        ({"prob_length": 1.5}, r"prob_length=1.5 must be in \(0, 1\]"),
        ({"min_scale": 1.0}, "min_scale=1.0"),
        ({"sigma_data": 0.0}, "sigma_data=0.0"),
        ({"truncate_sigma": 0.0}, "truncate_sigma=0.0"),
        ({"block_noise_alpha": -0.1}, "block_noise_alpha=-0.1"),
    ],
)
def test_process_rejects(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelayProcess(**settings)


def test_configurations_reject_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"resolution=16 is not a multiple of process.upscale=3"):
        RelayConfig(unet=TINY, process=RelayProcess(upscale=3))
    with pytest.raises(ValueError, match=r"16x16 pixels cannot be cut into 3x3 tiles"):
        tile_blur(torch.zeros(1, 1, 16, 16), torch.ones(1), 3, 0.0)
    with pytest.raises(ValueError, match=r"needs unet.augment_dim=9, not 0"):
        EdmConfig(unet=replace(TINY, augment_dim=0), augment_probability=0.1)
    with pytest.raises(ValueError, match="needs classes"):
        EdmConfig(unet=replace(TINY, label_dim=0), label_dropout=0.1)
    with pytest.raises(ValueError, match=r"gradient_scale=0.0 must be positive"):
        EdmConfig(unet=TINY, gradient_scale=0.0)


def test_conditional_objective_needs_labels() -> None:
    objective = EdmConfig(unet=TINY).build()
    example = Example(torch.zeros(1, 3, 16, 16), None, (0,), 0)
    with pytest.raises(ValueError, match=r"3 classes but the data set has no labels"):
        objective.loss(objective.build_networks(), example, 0)


def test_diagnosis_names_a_diverged_loss() -> None:
    objective = EdmConfig(unet=TINY).build()
    assert objective.diagnose({"denoiser/loss": 0.9}) is None
    assert objective.diagnose({}) is None
    assert "lower optim.denoiser.lr" in (objective.diagnose({"denoiser/loss": math.nan}) or "")
