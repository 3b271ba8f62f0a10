"""Recipes of WaveDiff and DDGAN: every row of the official scripts, ablations, debug versions.

The official loops count epochs and run num_epoch + 1 of them, dropping the last partial batch; here
an epoch is `steps per epoch x batch` images (docs/reference/wavediff.md#7.2). Batches are those
of the README's GPU counts; the DDGAN script does not say its own, so it gets those of WaveDiff.

Precision is pinned to float32, as published. TF32 is on in convolutions and in matrix products and
cuDNN's benchmark is off: the defaults of PyTorch 1.10, which the README names. That the official
code left them alone is an inference (docs/reference/wavediff.md#12.2).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from data_pipelines.pipeline import DataConfig
from dist_train.config import (
    AdamConfig,
    CheckpointConfig,
    ComputeConfig,
    ConstantEma,
    CosineSchedule,
    LoggingConfig,
    RunConfig,
    ShardingConfig,
)
from dist_train.recipes.registry import recipe
from models.wavediff import presets
from models.wavediff.config import WaveDiffConfig
from models.wavediff.data_space import PixelSpace
from models.wavediff.diffusion import DiffusionConfig
from models.wavediff.discriminator import DiscriminatorConfig
from models.wavediff.generator_config import GeneratorConfig


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of the official training scripts.

    Attributes:
        dataset: Name of the packed set's directory.
        images: Training images.
        batch: Images per GPU and step.
        gpus: Number of GPUs.
        epochs: num_epoch; the loop runs one more.
        lr_generator: Base rate of the generator.
        lr_discriminator: Base rate of the discriminator.
        ema_decay: Decay of the generator's average.
    """

    dataset: str
    images: int
    batch: int
    gpus: int = 1
    epochs: int
    lr_generator: float = 1.6e-4
    lr_discriminator: float = 1.25e-4
    ema_decay: float = 0.9999


def _run(objective: WaveDiffConfig, row: _Row) -> RunConfig:
    global_batch_size = row.batch * row.gpus
    epoch_images = row.images // global_batch_size * global_batch_size
    schedule = CosineSchedule(epochs=row.epochs, epoch_images=epoch_images)
    rates = {"discriminator": row.lr_discriminator, "generator": row.lr_generator}
    path = f"datasets/{row.dataset}-{objective.resolution}"
    return RunConfig(
        objective=objective,
        data=DataConfig(path=path, resolution=objective.resolution, flip=True),
        optim={
            name: AdamConfig(lr=rate, betas=(0.5, 0.9), schedule=schedule)
            for name, rate in rates.items()
        },
        ema={"main": ConstantEma(decay=row.ema_decay)},
        total_images=(row.epochs + 1) * epoch_images,
        global_batch_size=global_batch_size,
        seed=1024,
        sharding=ShardingConfig(gpus_per_node=row.gpus),
        compute=ComputeConfig(precision="float32", tf32=True, cudnn_benchmark=False),
        checkpoint=CheckpointConfig(
            every_images=10 * epoch_images, snapshot_every_images=25 * epoch_images
        ),
    )


_CIFAR10 = _Row(dataset="cifar10", images=50_000, batch=256, epochs=1800)
_STL10 = _Row(dataset="stl10", images=100_000, batch=256, epochs=900)
_CELEBAHQ = _Row(
    dataset="celebahq",
    images=27_000,
    batch=32,
    gpus=2,
    epochs=500,
    lr_generator=2e-4,
    lr_discriminator=1e-4,
)
# The number of training images of the larger CelebA-HQ sets is not documented; all are assumed.
_CELEBAHQ_LARGE = dataclasses.replace(_CELEBAHQ, images=30_000, batch=4, gpus=8, epochs=400)
_CHURCH = _Row(
    dataset="lsun_church",
    images=120_000,
    batch=16,
    gpus=4,
    epochs=500,
    lr_discriminator=1e-4,
    ema_decay=0.999,
)


@recipe
def wavediff_cifar10() -> RunConfig:
    """WaveDiff on CIFAR-10: FID 4.01, recall 0.55 (best snapshot at epoch 1300)."""
    return _run(presets.wavediff_cifar10(), _CIFAR10)


@recipe
def wavediff_stl10() -> RunConfig:
    """WaveDiff on STL-10 (unlabelled part, 64x64): FID 12.93, recall 0.41 (epoch 600)."""
    return _run(presets.wavediff_stl10(), _STL10)


@recipe
def wavediff_celebahq256() -> RunConfig:
    """WaveDiff on CelebA-HQ 256: FID 5.94, recall 0.37 (epoch 475)."""
    return _run(presets.wavediff_celebahq256(), _CELEBAHQ)


@recipe
def wavediff_celebahq512() -> RunConfig:
    """WaveDiff on CelebA-HQ 512: FID 6.40, recall 0.35 (epoch 350)."""
    return _run(presets.wavediff_celebahq512(), _CELEBAHQ_LARGE)


@recipe
def wavediff_celebahq1024() -> RunConfig:
    """WaveDiff on CelebA-HQ 1024: FID 5.98, recall 0.39 (epoch 350)."""
    return _run(presets.wavediff_celebahq1024(), _CELEBAHQ_LARGE)


@recipe
def wavediff_lsun_church256() -> RunConfig:
    """WaveDiff on LSUN Church 256: FID 5.06, recall 0.40 (epoch 400)."""
    return _run(presets.wavediff_lsun_church256(), _CHURCH)


@recipe
def ddgan_cifar10() -> RunConfig:
    """DDGAN on CIFAR-10: FID 3.75, recall 0.57 (epoch 1200)."""
    return _run(presets.ddgan_cifar10(), _CIFAR10)


@recipe
def ddgan_stl10() -> RunConfig:
    """DDGAN on STL-10, 64x64 (epoch 900)."""
    row = dataclasses.replace(_STL10, batch=128, epochs=1800)
    return _run(presets.ddgan_stl10(), row)


@recipe
def ddgan_celebahq256() -> RunConfig:
    """DDGAN on CelebA-HQ 256: FID 7.64, recall 0.36."""
    return _run(presets.ddgan_celebahq256(), _CELEBAHQ)


@recipe
def ddgan_celebahq512() -> RunConfig:
    """DDGAN on CelebA-HQ 512: FID 8.43, recall 0.33 (epoch 325)."""
    row = dataclasses.replace(_CELEBAHQ_LARGE, batch=2)
    return _run(presets.ddgan_celebahq512(), row)


@recipe
def ddgan_lsun_church256() -> RunConfig:
    """DDGAN on LSUN Church 256: FID 5.25 (epoch 500)."""
    row = dataclasses.replace(_CHURCH, batch=8)
    return _run(presets.ddgan_lsun_church256(), row)


@recipe
def wavediff_celebahq256_no_frequency_bottleneck() -> RunConfig:
    """Ablation on CelebA-HQ 256 with a plain bottleneck: FID 6.18."""
    return _ablation(frequency_bottleneck=False)


@recipe
def wavediff_celebahq256_no_frequency_blocks() -> RunConfig:
    """Ablation on CelebA-HQ 256 with FIR resampling in the blocks: FID 6.23."""
    return _ablation(frequency_blocks=False)


@recipe
def wavediff_celebahq256_no_frequency_residual() -> RunConfig:
    """Ablation on CelebA-HQ 256 with FIR-smoothed inputs as residual connections: FID 6.25."""
    return _ablation(frequency_pyramid=False)


@recipe
def wavediff_celebahq256_no_reconstruction() -> RunConfig:
    """Ablation on CelebA-HQ 256 without the reconstruction term: FID 6.55."""
    config = wavediff_celebahq256()
    return dataclasses.replace(
        config,
        objective=dataclasses.replace(presets.wavediff_celebahq256(), reconstruction_weight=0.0),
    )


def _ablation(**switches: bool) -> RunConfig:
    objective = presets.wavediff_celebahq256()
    generator = dataclasses.replace(objective.generator, **switches)  # type: ignore[arg-type]
    return dataclasses.replace(
        wavediff_celebahq256(),
        objective=dataclasses.replace(objective, generator=generator),
    )


@recipe
def wavediff_debug() -> RunConfig:
    """CPU-sized WaveDiff on 32x32 synthetic images: every part of the wavelet generator."""
    return _debug(_tiny())


@recipe
def ddgan_debug() -> RunConfig:
    """CPU-sized DDGAN of 16x16 synthetic images: the same sizes in pixel space."""
    plain = dataclasses.replace(
        _tiny().generator,
        frequency_blocks=False,
        frequency_bottleneck=False,
        frequency_pyramid=False,
    )
    objective = dataclasses.replace(
        _tiny(), resolution=16, space=PixelSpace(), generator=plain, reconstruction_weight=0.0
    )
    return _debug(objective)


def _tiny() -> WaveDiffConfig:
    return WaveDiffConfig(
        resolution=32,
        generator=GeneratorConfig(
            base_channels=16,
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            attention_resolutions=(8,),
            latent_dim=16,
            embedding_dim=32,
            mapping_layers=1,
        ),
        discriminator=DiscriminatorConfig(layers=3, base_channels=8, embedding_dim=32),
        diffusion=DiffusionConfig(steps=2),
        r1_interval=3,
    )


def _debug(objective: WaveDiffConfig) -> RunConfig:
    row = _Row(dataset="synthetic", images=64, batch=8, epochs=3)
    config = _run(objective, row)
    return dataclasses.replace(
        config,
        data=DataConfig(backend="synthetic", resolution=objective.resolution, flip=True),
        total_images=192,
        compute=ComputeConfig(),
        checkpoint=CheckpointConfig(every_images=64, snapshot_every_images=192),
        logging=LoggingConfig(every_images=64),
    )
