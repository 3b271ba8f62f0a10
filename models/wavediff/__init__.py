"""WaveDiff (CVPR 2023), a diffusion GAN in Haar-wavelet space, and DDGAN, its pixel baseline.

blocks.py            Residual blocks and input pyramids of the generators
config.py            The configuration of a WaveDiff or DDGAN pair
data_space.py        The space that the diffusion takes place in: wavelet subbands or pixels
diagnostics.py       Detects divergence and collapse of a generator and discriminator pair
diffusion.py         The few-step diffusion: schedule, forward pairs, posterior
discriminator.py     The time-conditional discriminators of DDGAN and WaveDiff
generator.py         The generators of WaveDiff and DDGAN
generator_config.py  The shape of a generator
haar.py              The one-level Haar transform in closed form
layers.py            Layers of both networks, with their initial weights
objective.py         The losses of a WaveDiff or DDGAN pair
presets.py           The published WaveDiff and DDGAN configurations, by name
resample.py          FIR resampling with the kernel (1, 3, 3, 1)
sampler.py           Sampling of WaveDiff and DDGAN
wavelets.py          Other discrete wavelets of PyWavelets, as strided convolutions
"""
