"""Figure 2 of the RDM paper: spectra of a packed set's images and of noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evaluation.image_sets.image_set import open_images
from evaluation.results.formats import Block
from models.analysis.spectrum import Spectra, compute_spectra, plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGMA, UPSCALE, LIMIT, BATCH, SEED = 0.5, 4, 256, 32, 0
HEADER = ["cycles per image", "iid noise", "iid noise of the small image", "block noise"]


def spectra_of(data: Path, edge: int) -> Spectra:
    """Return the spectra of a packed set's first images and of as much noise.

    Raises:
        ValueError: The set does not exist, or has images of another size.
    """
    images = open_images(data)
    if (found := images.batch([0]).shape[-1]) != edge:
        raise ValueError(f"{data} has images of {found} pixels, not {edge}")

    def batches() -> Iterator[Tensor]:
        count = min(len(images), LIMIT)
        for start in range(0, count, BATCH):
            yield images.batch(range(start, min(start + BATCH, count))).float() / 127.5 - 1

    return compute_spectra(batches(), UPSCALE, SIGMA, torch.Generator().manual_seed(SEED))


def spectrum_block(spectra: Spectra) -> tuple[Block, Figure]:
    """Return ratios of image to noise power by octave, and the figure of all frequencies."""
    columns = spectra.columns()
    ratios = [columns[n] for n in ("snr_iid_large", "snr_iid_small_enlarged", "snr_block_large")]
    rows = [HEADER]
    low = 1
    while low < len(spectra.frequency):
        high = min(2 * low, len(spectra.frequency))
        means = [float(values[low:high].log().mean().exp()) for values in ratios]
        rows.append([f"{low / 2:g} to {(high - 1) / 2:g}", *(f"{mean:.3g}" for mean in means)])
        low = high
    return Block(rows), plot(spectra, SIGMA, UPSCALE)
