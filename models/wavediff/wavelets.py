"""Discrete wavelets of PyWavelets other than Haar, through strided convolutions with its filters.

Coefficients equal PyWavelets' `dwt2` and `idwt2` in mode "periodization", the mode that halves
every even size exactly. Subbands are ordered LL, LH, HL, HH as in haar.py (PyWavelets: cA, cV,
cH, cD).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FilterBank:
    """Filters of a two-channel wavelet, each (low, high), as sequences of the same even length."""

    analysis: tuple[tuple[float, ...], tuple[float, ...]]
    synthesis: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def gain(self) -> float:
        """Largest coefficient that images in [-1, 1] can have (2 for Haar)."""
        return max(sum(map(abs, taps)) for taps in self.analysis) ** 2

    def dwt(self, x: Tensor) -> Tensor:
        """Return the four subbands, [B, C, H, W] -> [B, 4C, H/2, W/2].

        Raises:
            ValueError: H or W is odd.
        """
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise ValueError(f"the wavelet transform needs even sizes, got {list(x.shape[-2:])}")
        batch, _, height, width = x.shape
        size = len(self.analysis[0])
        before, after = size // 2 - 1, size // 2
        kernel = _squares(self.analysis, x).flip(-2, -1)
        single = _wrap(x.flatten(0, 1)[:, None], before, after)
        bands = F.conv2d(single, kernel, stride=2)
        bands = bands.view(batch, -1, 4, height // 2, width // 2)
        return bands.transpose(1, 2).flatten(1, 2)

    def idwt(self, y: Tensor) -> Tensor:
        """Invert dwt, [B, 4C, H, W] -> [B, C, 2H, 2W]."""
        batch, channels, height, width = y.shape
        bands = y.view(batch, 4, channels // 4, height, width).transpose(1, 2).flatten(0, 1)
        half = len(self.synthesis[0]) // 2
        x = F.conv_transpose2d(_wrap(bands, half, half), _squares(self.synthesis, y), stride=2)
        first = 3 * half - 1
        x = x[..., first : first + 2 * height, first : first + 2 * width]
        return x.reshape(batch, channels // 4, 2 * height, 2 * width)


@lru_cache(maxsize=16)
def filter_bank(wavelet: str) -> FilterBank:
    """Return the filters of a discrete wavelet of PyWavelets.

    Raises:
        ValueError: PyWavelets is not installed, or knows no such discrete wavelet.
    """
    try:
        import pywt
    except ImportError:
        raise ValueError(
            f"wavelet={wavelet!r} needs PyWavelets: pip install PyWavelets, or set wavelet=haar"
        ) from None
    try:
        bank = pywt.Wavelet(wavelet)
    except ValueError:
        known = ", ".join(pywt.families())
        raise ValueError(
            f"wavelet={wavelet!r} is no discrete wavelet of PyWavelets; its families are {known}"
        ) from None
    analysis, synthesis = (bank.dec_lo, bank.dec_hi), (bank.rec_lo, bank.rec_hi)
    return FilterBank(
        analysis=(tuple(analysis[0]), tuple(analysis[1])),
        synthesis=(tuple(synthesis[0]), tuple(synthesis[1])),
    )


def _squares(filters: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """Return the outer products of (height, width) filters: LL, LH, HL, HH, [4, 1, n, n]."""
    taps = torch.tensor(filters, dtype=like.dtype)
    squares = torch.einsum("ai,bj->abij", taps, taps).flatten(0, 1)[:, None]
    return squares.to(like.device, non_blocking=True)


def _wrap(x: Tensor, before: int, after: int) -> Tensor:
    """Continue the last two axes periodically, also further than one period."""
    for axis in (-2, -1):
        size = x.shape[axis]
        index = torch.arange(-before, size + after, device=x.device) % size
        x = x.index_select(axis, index)
    return x
