"""WaveDiff (CVPR 2023), a diffusion GAN in Haar-wavelet space, and DDGAN, its pixel baseline.

blocks.py            Residual blocks and input pyramids of the generators
config.py            The configuration of a WaveDiff or DDGAN pair
data_space.py        The space that a diffusion GAN works in
diagnostics.py       Watching the health of a generator and discriminator pair
diffusion.py         The few-step diffusion of DDGAN
discriminator.py     The time-conditional discriminators of DDGAN and WaveDiff
generator.py         The generators of WaveDiff and DDGAN
generator_config.py  The shape of a generator
haar.py              The one-level Haar transform of images in closed form
layers.py            Layers of the WaveDiff networks
objective.py         Training of a WaveDiff or DDGAN pair
presets.py           The published WaveDiff and DDGAN configurations, by name
resample.py          FIR resampling with the kernel
sampler.py           Sampling of WaveDiff and DDGAN
wavelets.py          Discrete wavelets of PyWavelets other than Haar, through strided convolutio
"""
