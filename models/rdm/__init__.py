"""Relay Diffusion (RDM, ICLR 2024): EDM at low resolution, blurring diffusion above it.

augment.py        Geometric augmentation, whose parameters condition the network
block_noise.py    Block noise: Gaussian noise with a low-resolution part
blocks.py         Building blocks of the U-Net, with keyed dropout
config.py         Configurations of the two kinds of RDM stage
dct.py            Cosine transform and blur of image tiles
edm_sampler.py    The stage-1 sampler
enhance.py        The 8-bit operations of the official scripts before saving
objective.py      The objective of all stages: denoise what a process has corrupted
precond.py        EDM preconditioning, from the raw network F to the denoiser D
presets.py        Processes and sampler settings of published runs
process.py        How images are corrupted: noise in stage 1, blur and block noise in relay stages
relay_sampler.py  The relay sampler: from a low to a high resolution
sampler.py        What the samplers of all stages share: grid, churn, guidance
unet.py           The ADM U-Net of both stages
"""
