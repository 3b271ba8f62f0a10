"""Recipes for one's own images: both families at 64 to 512 pixels, on one GPU, two or eight.

They are the published recipes of CelebA-HQ (WaveDiff at 64: with the networks of STL-10), in parts
that a single GPU takes (`micro_batch_size=auto`), and with RDM's networks at half the width. Every
relay continues from the same stage 1, at 64 pixels. No FID is known for them.
"""

from __future__ import annotations

from dataclasses import replace

from data_pipelines.pipeline import DataConfig
from dist_train.config import (
    AdamConfig,
    CheckpointConfig,
    ComputeConfig,
    HalflifeEma,
    RunConfig,
    ShardingConfig,
    WarmupSchedule,
)
from dist_train.recipes import rdm, wavediff
from dist_train.recipes.registry import recipe
from models.rdm.config import EdmConfig, RelayConfig
from models.wavediff import presets
from models.wavediff.config import WaveDiffConfig
from models.wavediff.discriminator import DiscriminatorConfig

STAGE_1 = 64
"""Resolution that all relays continue from."""
SNAPSHOTS = CheckpointConfig(every_images=250_000, snapshot_every_images=1_000_000)


@recipe
def rdm_images64() -> RunConfig:
    """Your images, RDM stage 1 at 64x64 (131M parameters); the larger sizes continue from it."""
    objective = rdm.rdm_celebahq64().objective
    assert isinstance(objective, EdmConfig)
    return _rdm(replace(objective, unet=replace(objective.unet, model_channels=128)))


@recipe
def rdm_images128() -> RunConfig:
    """Your images, RDM stage 2, 64 -> 128 pixels (from rdm_images64)."""
    return _relay(128, model_channels=128, channel_mult=(1, 1, 2, 3, 4))


@recipe
def rdm_images256() -> RunConfig:
    """Your images, RDM stage 2, 64 -> 256 pixels (from rdm_images64)."""
    return _relay(256, model_channels=128, channel_mult=(1, 1, 2, 2, 4, 4))


@recipe
def rdm_images512() -> RunConfig:
    """Your images, RDM stage 2, 64 -> 512 pixels (from rdm_images64)."""
    return _relay(512, model_channels=64, channel_mult=(1, 2, 2, 4, 4, 8, 8))


@recipe
def wavediff_images64() -> RunConfig:
    """Your images, WaveDiff at 64x64, four steps."""
    return _wavediff(wavediff.wavediff_celebahq256(), presets.wavediff_stl10())


@recipe
def wavediff_images128() -> RunConfig:
    """Your images, WaveDiff at 128x128, two steps."""
    objective = presets.wavediff_celebahq256()
    generator = replace(objective.generator, channel_multipliers=(1, 2, 2, 4))
    smaller = replace(
        objective,
        resolution=128,
        generator=generator,
        discriminator=DiscriminatorConfig(kind="large", layers=4),
    )
    return _wavediff(wavediff.wavediff_celebahq256(), smaller)


@recipe
def wavediff_images256() -> RunConfig:
    """Your images, WaveDiff at 256x256, two steps."""
    return _wavediff(wavediff.wavediff_celebahq256(), presets.wavediff_celebahq256())


@recipe
def wavediff_images512() -> RunConfig:
    """Your images, WaveDiff at 512x512, two steps."""
    return _wavediff(wavediff.wavediff_celebahq512(), presets.wavediff_celebahq512())


def _relay(resolution: int, model_channels: int, channel_mult: tuple[int, ...]) -> RunConfig:
    """Return a relay from STAGE_1, its blur as wide as CelebA-HQ's, relative to the tiles."""
    objective = rdm.rdm_celebahq256().objective
    assert isinstance(objective, RelayConfig)
    upscale, process = resolution // STAGE_1, objective.process
    blur_sigma_max = process.blur_sigma_max * upscale / process.upscale
    unet = replace(
        objective.unet,
        resolution=resolution,
        model_channels=model_channels,
        channel_mult=channel_mult,
    )
    process = replace(process, upscale=upscale, blur_sigma_max=blur_sigma_max)
    return _rdm(replace(objective, unet=unet, process=process))


def _rdm(objective: EdmConfig | RelayConfig) -> RunConfig:
    """Return a run in bfloat16 where there is one; its mean loss is not rescaled."""
    unet = replace(objective.unet, compute_dtype="float32")  # which compute.precision=auto changes
    return RunConfig(
        objective=replace(objective, unet=unet, gradient_scale=1.0),
        data=DataConfig(path=f"datasets/images-{unet.resolution}", resolution=unet.resolution),
        optim={"denoiser": AdamConfig(lr=1e-4, schedule=WarmupSchedule(images=1_000_000))},
        ema={"main": HalflifeEma(halflife_images=500_000)},
        total_images=20_000_000,
        global_batch_size=256,
        micro_batch_size="auto",
        sharding=ShardingConfig(gpus_per_node=1),
        compute=ComputeConfig(channels_last=True, cudnn_benchmark=True),
        checkpoint=SNAPSHOTS,
    )


def _wavediff(run: RunConfig, objective: WaveDiffConfig) -> RunConfig:
    """Return a published run with another objective, for one's own images."""
    path = f"datasets/images-{objective.resolution}"
    return replace(
        run,
        objective=objective,
        data=replace(run.data, path=path, resolution=objective.resolution),
        micro_batch_size="auto",
        sharding=ShardingConfig(gpus_per_node=1),
        checkpoint=SNAPSHOTS,
    )
