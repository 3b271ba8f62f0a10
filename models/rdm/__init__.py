"""Relay Diffusion (RDM, ICLR 2024): EDM at low resolution, patch-wise blurring diffusion above it."""
