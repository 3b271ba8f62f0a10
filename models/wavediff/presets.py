"""The published WaveDiff and DDGAN configurations, by name (docs/reference/wavediff.md#5, #7.3).

They live here, below the training recipes, because the converter of official weights checks against
them. Band orders follow the official commands' `use_pytorch_wavelet`.
"""

from __future__ import annotations

import dataclasses

from models.wavediff.config import WaveDiffConfig
from models.wavediff.data_space import PixelSpace, WaveletSpace
from models.wavediff.diffusion import DiffusionConfig
from models.wavediff.discriminator import DiscriminatorConfig
from models.wavediff.generator_config import GeneratorConfig

LAYER = WaveletSpace(band_order="LL_LH_HL_HH")
PYTORCH_WAVELETS = WaveletSpace(band_order="LL_HL_LH_HH")


def wavediff_cifar10() -> WaveDiffConfig:
    """Return CIFAR-10, 32x32: wavelets at the image only, the generator is NCSN++."""
    return WaveDiffConfig(
        resolution=32,
        space=PYTORCH_WAVELETS,
        generator=GeneratorConfig(
            channel_multipliers=(1, 2, 2), attention_resolutions=(32,)
        ).without_wavelets(),
        discriminator=DiscriminatorConfig(kind="small", layers=3),
    )


def wavediff_stl10() -> WaveDiffConfig:
    """Return STL-10, 64x64."""
    return WaveDiffConfig(
        resolution=64,
        space=PYTORCH_WAVELETS,
        generator=GeneratorConfig(channel_multipliers=(1, 2, 2, 2)),
        discriminator=DiscriminatorConfig(kind="small", layers=4),
    )


def wavediff_celebahq256() -> WaveDiffConfig:
    """Return CelebA-HQ, 256x256, two steps."""
    return WaveDiffConfig(
        resolution=256,
        space=LAYER,
        generator=GeneratorConfig(
            base_channels=64, channel_multipliers=(1, 2, 2, 2, 4), mapping_layers=3
        ),
        discriminator=DiscriminatorConfig(kind="large", layers=5),
        diffusion=DiffusionConfig(steps=2),
        r1_gamma=2.0,
        r1_interval=10,
    )


def wavediff_celebahq512() -> WaveDiffConfig:
    """Return CelebA-HQ, 512x512, two steps."""
    config = wavediff_celebahq256()
    return dataclasses.replace(
        config,
        resolution=512,
        space=PYTORCH_WAVELETS,
        generator=dataclasses.replace(config.generator, channel_multipliers=(1, 1, 2, 2, 4, 4)),
        discriminator=DiscriminatorConfig(kind="large", layers=6),
    )


def wavediff_celebahq1024() -> WaveDiffConfig:
    """Return CelebA-HQ, 1024x1024, two steps, with 2x2 patches and no attention in the levels."""
    config = wavediff_celebahq512()
    generator = dataclasses.replace(config.generator, patch_size=2, attention_resolutions=(0,))
    return dataclasses.replace(config, resolution=1024, space=LAYER, generator=generator)


def wavediff_lsun_church256() -> WaveDiffConfig:
    """Return LSUN Church, 256x256: the networks of CelebA-HQ 256 with four steps."""
    return dataclasses.replace(
        wavediff_celebahq256(),
        space=PYTORCH_WAVELETS,
        diffusion=DiffusionConfig(steps=4),
        r1_gamma=1.0,
    )


def ddgan_cifar10() -> WaveDiffConfig:
    """Return DDGAN on CIFAR-10, 32x32."""
    return WaveDiffConfig(
        resolution=32,
        space=PixelSpace(),
        generator=GeneratorConfig(channel_multipliers=(1, 2, 2, 2)).without_wavelets(),
        discriminator=DiscriminatorConfig(kind="small", layers=4),
        reconstruction_weight=0.0,
    )


def ddgan_stl10() -> WaveDiffConfig:
    """Return DDGAN on STL-10, 64x64 (the official command omits the size and cannot run)."""
    return dataclasses.replace(ddgan_cifar10(), resolution=64)


def ddgan_celebahq256() -> WaveDiffConfig:
    """Return DDGAN on CelebA-HQ, 256x256, two steps."""
    return WaveDiffConfig(
        resolution=256,
        space=PixelSpace(),
        generator=GeneratorConfig(
            base_channels=64, channel_multipliers=(1, 1, 2, 2, 4, 4), mapping_layers=3
        ).without_wavelets(),
        discriminator=DiscriminatorConfig(kind="large", layers=6),
        diffusion=DiffusionConfig(steps=2),
        r1_gamma=2.0,
        r1_interval=10,
        reconstruction_weight=0.0,
    )


def ddgan_celebahq512() -> WaveDiffConfig:
    """Return DDGAN on CelebA-HQ, 512x512, two steps; two images per GPU form a stddev group."""
    config = ddgan_celebahq256()
    discriminator = dataclasses.replace(config.discriminator, stddev_group=2)
    return dataclasses.replace(config, resolution=512, discriminator=discriminator)


def ddgan_lsun_church256() -> WaveDiffConfig:
    """Return DDGAN on LSUN Church, 256x256, four steps."""
    diffusion = DiffusionConfig(steps=4)
    return dataclasses.replace(ddgan_celebahq256(), diffusion=diffusion, r1_gamma=1.0)


PRESETS = {
    preset.__name__: preset
    for preset in (
        wavediff_cifar10, wavediff_stl10, wavediff_celebahq256, wavediff_celebahq512,
        wavediff_celebahq1024, wavediff_lsun_church256, ddgan_cifar10, ddgan_stl10,
        ddgan_celebahq256, ddgan_celebahq512, ddgan_lsun_church256,
    )
}  # fmt: skip
