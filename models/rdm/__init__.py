"""Relay Diffusion (RDM, ICLR 2024): EDM at low resolution, blurring diffusion above it.

augment.py        Geometric augmentation with labels that the network is told
block_noise.py    Block noise
blocks.py         The building blocks of the U-Net
config.py         Configurations of the two kinds of RDM stage
dct.py            Tile-wise cosine transform and blur
edm_sampler.py    The stage-1 sampler, and what all samplers of RDM share
enhance.py        The 8-bit operations of the official scripts before saving
figure.py         Line plots with two logarithmic axes, drawn by Pillow alone
objective.py      The one objective of both RDM stages: denoise what a process has corrupted
precond.py        EDM preconditioning: from the raw network F to the denoiser D
presets.py        Processes and sampler settings of published runs
process.py        Stage 2 and later: patch-wise blurring and block noise
relay_sampler.py  The relay sampler: from a low to a high resolution
unet.py           The ADM U-Net of both stages
"""
