"""Relay Diffusion (RDM, ICLR 2024): EDM at low resolution, blurring diffusion above it."""
