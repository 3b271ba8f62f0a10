"""WaveDiff (CVPR 2023), a diffusion GAN in Haar-wavelet space, and DDGAN, its pixel baseline."""
