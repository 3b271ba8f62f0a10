"""What the papers and their repositories say their runs and samplers took, by recipe."""

from __future__ import annotations

from typing import NamedTuple

DAY, HOUR = 86400.0, 3600.0


class Training(NamedTuple):
    """A published run: wall seconds on so many GPUs of a kind (planning.hardware.GPUS)."""

    seconds: float
    ranks: int
    gpu: str


TRAINING = {
    "rdm_imagenet64": Training(13 * DAY, 32, "a100-80g"),
    "rdm_imagenet256": Training(12.5 * DAY, 64, "a100-40g"),
    "rdm_celebahq64": Training(16 * HOUR, 32, "a100-40g"),
    "rdm_celebahq256": Training(25.5 * HOUR, 32, "a100-40g"),
}
"""docs/reference/rdm.md#12.7: the RDM paper, and EDM's README for ImageNet 64. Those at 64 pixels
ran other code than ours, on software of 2022."""

SAMPLING = {
    "wavediff_cifar10": 0.08,
    "ddgan_cifar10": 0.21,
    "wavediff_stl10": 0.38,
    "wavediff_celebahq256": 0.79,
    "ddgan_celebahq256": 1.73,
    "wavediff_celebahq512": 0.59,
    "ddgan_celebahq512": 1.49,
    "wavediff_celebahq1024": 0.59,
    "wavediff_lsun_church256": 1.54,
    "ddgan_lsun_church256": 3.42,
}
"""Seconds of a batch of 100 images (25 from 512 pixels on) on an A100 of 40 GB
(docs/reference/wavediff.md#9, where the source of each is)."""
SAMPLING_GPU = "a100-40g"
