"""The three objectives at a size that trains in milliseconds, with every random draw in use."""

from __future__ import annotations

from data_pipelines.pipeline import DataConfig
from dist_train.config import (
    AdamConfig,
    CheckpointConfig,
    ConstantEma,
    CosineSchedule,
    HalflifeEma,
    LoggingConfig,
    RunConfig,
    WarmupSchedule,
)
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.unet import UNetConfig
from models.wavediff.config import WaveDiffConfig
from models.wavediff.discriminator import DiscriminatorConfig
from models.wavediff.generator_config import GeneratorConfig

BATCH = 8


def _unet(resolution: int) -> UNetConfig:
    return UNetConfig(
        resolution=resolution,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        label_dim=4,
        dropout=0.1,
        augment_dim=9,
    )


def tiny_edm() -> RunConfig:
    """EDM at 8x8 with dropout, label dropout and augmentation."""
    return RunConfig(
        recipe="tiny_edm",
        objective=EdmConfig(unet=_unet(8), label_dropout=0.2, augment_probability=0.3),
        data=DataConfig(backend="synthetic", resolution=8, flip=True),
        optim={"denoiser": AdamConfig(lr=1e-3, schedule=WarmupSchedule(images=4 * BATCH))},
        ema={"main": HalflifeEma(halflife_images=3 * BATCH)},
        total_images=6 * BATCH,
        global_batch_size=BATCH,
        checkpoint=CheckpointConfig(every_images=3 * BATCH, snapshot_every_images=6 * BATCH),
        logging=LoggingConfig(every_images=BATCH, grid_seeds=0),
    )


def tiny_relay() -> RunConfig:
    """Relay from 4x4 to 16x16."""
    return RunConfig(
        recipe="tiny_relay",
        objective=RelayConfig(unet=_unet(16), label_dropout=0.2, augment_probability=0.3),
        data=DataConfig(backend="synthetic", resolution=16, flip=True),
        optim={"denoiser": AdamConfig(lr=1e-3)},
        ema={"main": HalflifeEma(halflife_images=3 * BATCH, rampup_ratio=None)},
        total_images=6 * BATCH,
        global_batch_size=BATCH,
        checkpoint=CheckpointConfig(every_images=3 * BATCH, snapshot_every_images=6 * BATCH),
        logging=LoggingConfig(every_images=BATCH, grid_seeds=0),
    )


def tiny_wavediff() -> RunConfig:
    """WaveDiff pair at 32x32 with lazy R1 and minibatch-stddev groups of two."""
    adam = AdamConfig(
        lr=1e-3, betas=(0.5, 0.9), schedule=CosineSchedule(epochs=3, epoch_images=2 * BATCH)
    )
    return RunConfig(
        recipe="tiny_wavediff",
        objective=WaveDiffConfig(
            resolution=32,
            generator=GeneratorConfig(
                base_channels=4,
                channel_multipliers=(1, 2),
                blocks_per_level=1,
                attention_resolutions=(8,),
                latent_dim=6,
                embedding_dim=8,
                mapping_layers=1,
            ),
            discriminator=DiscriminatorConfig(
                kind="large", layers=3, base_channels=2, embedding_dim=8, stddev_group=2
            ),
            r1_gamma=0.5,
            r1_interval=2,
        ),
        data=DataConfig(backend="synthetic", resolution=32, flip=True),
        optim={"discriminator": adam, "generator": adam},
        ema={"main": ConstantEma(decay=0.9)},
        total_images=6 * BATCH,
        global_batch_size=BATCH,
        checkpoint=CheckpointConfig(every_images=3 * BATCH, snapshot_every_images=6 * BATCH),
        logging=LoggingConfig(every_images=BATCH, grid_seeds=0),
    )


def last_of_each(*assignments: str) -> list[str]:
    """Return arguments with only the last of those that assign the same key."""
    return list({text.partition("=")[0]: text for text in assignments}.values())


TINY = {recipe.__name__: recipe for recipe in (tiny_edm, tiny_relay, tiny_wavediff)}
