"""Recipes of `bash quickstart.sh`: minutes on two CPU cores, the same code as at full size.

The relay's two stages draw 16x16 and 64x64 pixels, the WaveDiff pair 64x64 (32x32 subbands, folded
to 16x16). All read the same 64-pixel shards; stage 1 gets their 4x4 box averages, the limit of
stage 2's blur.
"""

from __future__ import annotations

from data_pipelines.pipeline import DataConfig
from dist_train.config import (
    AdamConfig,
    CheckpointConfig,
    ComputeConfig,
    ConstantEma,
    HalflifeEma,
    LoggingConfig,
    RunConfig,
    ShardingConfig,
    WarmupSchedule,
)
from dist_train.recipes.registry import recipe
from models.rdm.config import EdmConfig, RelayConfig
from models.rdm.edm_sampler import EdmSampling
from models.rdm.relay_sampler import RelaySampling
from models.rdm.unet import UNetConfig
from models.wavediff.config import WaveDiffConfig
from models.wavediff.diffusion import DiffusionConfig
from models.wavediff.discriminator import DiscriminatorConfig
from models.wavediff.generator_config import GeneratorConfig

PHOTOGRAPHS = 8
"""Classes of the embedded image set; --data sets override objective.unet.label_dim."""
WANDB_PROJECT = "relaywave-quickstart"


@recipe
def quickstart_edm16() -> RunConfig:
    """RDM stage 1 of the quickstart: EDM at 16x16."""
    return RunConfig(
        objective=EdmConfig(
            unet=UNetConfig(
                resolution=16,
                model_channels=32,
                channel_mult=(1, 2),
                num_blocks=1,
                attn_resolutions=(8,),
                label_dim=PHOTOGRAPHS,
            ),
            sampling=EdmSampling(steps=12),
        ),
        data=DataConfig(resolution=16),
        optim={"denoiser": AdamConfig(lr=2e-3, schedule=WarmupSchedule(images=3_200))},
        ema={"main": HalflifeEma(halflife_images=2_000, rampup_ratio=0.1)},
        total_images=12_800,
        global_batch_size=32,
        sharding=ShardingConfig(gpus_per_node=2),
        compute=ComputeConfig(channels_last=True),
        checkpoint=CheckpointConfig(every_images=3_200, snapshot_every_images=6_400),
        logging=LoggingConfig(every_images=3_200, wandb_project=WANDB_PROJECT),
    )


@recipe
def quickstart_relay64() -> RunConfig:
    """RDM stage 2 of the quickstart: relay from 16x16 to 64x64.

    Sampling without fresh noise (eta 0) and down to 0.05 only leaves less grain: after minutes, a
    network hardly knows the lowest noise levels.
    """
    return RunConfig(
        objective=RelayConfig(
            unet=UNetConfig(
                resolution=64,
                model_channels=16,
                channel_mult=(1, 2, 2, 4),
                num_blocks=1,
                label_dim=PHOTOGRAPHS,
            ),
            sampling=RelaySampling(steps=12, sigma_min=0.05, eta=0.0),
        ),
        data=DataConfig(resolution=64, flip=True),
        optim={"denoiser": AdamConfig(lr=2e-3, schedule=WarmupSchedule(images=800))},
        ema={"main": HalflifeEma(halflife_images=800, rampup_ratio=0.1)},
        total_images=7_200,
        global_batch_size=8,
        sharding=ShardingConfig(gpus_per_node=2),
        compute=ComputeConfig(channels_last=True),
        checkpoint=CheckpointConfig(every_images=800, snapshot_every_images=2_400),
        logging=LoggingConfig(every_images=800, wandb_project=WANDB_PROJECT),
    )


@recipe
def quickstart_wavediff64() -> RunConfig:
    """WaveDiff pair of the quickstart: wavelet generator and discriminator, 64x64, 4 steps.

    Patches of 2, as in the published 1024x1024 model, leave the networks 16x16 pixels: three times
    the images in the same minutes. A reconstruction weight of 10 (published: 1) teaches the
    generator what to draw when the discriminator alone cannot yet. For that the middle steps have
    to show some of the picture, which the published beta_max of 20 hides; with 6 the noisiest step
    still shows how bright it is, and of pure noise, which is grey on average, only the grey
    photographs are drawn.
    """
    betas = (0.5, 0.9)
    return RunConfig(
        objective=WaveDiffConfig(
            resolution=64,
            generator=GeneratorConfig(
                patch_size=2,
                base_channels=20,
                channel_multipliers=(1, 2, 4),
                blocks_per_level=1,
                attention_resolutions=(),
                latent_dim=50,
                embedding_dim=128,
                mapping_layers=2,
            ),
            discriminator=DiscriminatorConfig(
                kind="small", layers=3, patch_size=2, base_channels=16, embedding_dim=128
            ),
            diffusion=DiffusionConfig(steps=4, beta_max=11.0),
            r1_gamma=0.05,
            r1_interval=10,
            reconstruction_weight=10.0,
        ),
        data=DataConfig(resolution=64, flip=True),
        optim={
            "discriminator": AdamConfig(lr=3e-4, betas=betas),
            "generator": AdamConfig(lr=1e-3, betas=betas),
        },
        ema={"main": ConstantEma(decay=0.995)},
        total_images=24_000,
        global_batch_size=16,
        sharding=ShardingConfig(gpus_per_node=2),
        checkpoint=CheckpointConfig(every_images=1_600, snapshot_every_images=8_000),
        logging=LoggingConfig(every_images=1_600, wandb_project=WANDB_PROJECT),
    )
