"""The space that a diffusion GAN works in: wavelet subbands (WaveDiff) or pixels (DDGAN)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.wavediff.haar import haar_dwt, haar_idwt
from models.wavediff.wavelets import filter_bank


@dataclass(frozen=True, kw_only=True)
class WaveletSpace:
    """One-level wavelet subbands, scaled so that images in [-1, 1] have coefficients in [-1, 1].

    Attributes:
        wavelet: `haar`, or the name of any discrete wavelet of PyWavelets (`db2`, `bior1.3`, ...),
            continued periodically at the borders.
        band_order: Groups of channels. `LL_LH_HL_HH` is the official in-house layer, `LL_HL_LH_HH`
            the official code with use_pytorch_wavelet. A network works only in the order that it
            was trained in.
    """

    wavelet: str = "haar"
    band_order: Literal["LL_LH_HL_HH", "LL_HL_LH_HH"] = "LL_LH_HL_HH"

    channels = 12

    def __post_init__(self) -> None:
        if self.wavelet != "haar":
            filter_bank(self.wavelet)

    def edge(self, resolution: int) -> int:
        """Return the edge of the subbands. Raises ValueError if the resolution is odd."""
        if resolution % 2:
            raise ValueError(
                f"resolution={resolution} is odd; the wavelet transform needs an even one"
            )
        return resolution // 2

    def pack(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to subbands [B, 12, H/2, W/2]."""
        if self.wavelet == "haar":
            return self._reorder(haar_dwt(images, scale=0.5))
        bank = filter_bank(self.wavelet)
        return self._reorder(bank.dwt(images) / bank.gain)

    def unpack(self, y: Tensor) -> Tensor:
        """Map subbands [B, 12, H/2, W/2] to images [B, 3, H, W], not clipped."""
        if self.wavelet == "haar":
            return haar_idwt(self._reorder(y), scale=0.5)
        bank = filter_bank(self.wavelet)
        return bank.idwt(self._reorder(y) * bank.gain)

    def _reorder(self, y: Tensor) -> Tensor:
        """Change between LL, LH, HL, HH and this space's order; its own inverse."""
        if self.band_order == "LL_LH_HL_HH":
            return y
        ll, first, second, hh = y.chunk(4, 1)
        return torch.cat([ll, second, first, hh], 1)


@dataclass(frozen=True, kw_only=True)
class PixelSpace:
    """Plain pixels in [-1, 1]: the DDGAN baseline."""

    channels = 3

    def edge(self, resolution: int) -> int:
        """Return the edge of the images."""
        return resolution

    def pack(self, images: Tensor) -> Tensor:
        """Return the images."""
        return images

    def unpack(self, y: Tensor) -> Tensor:
        """Return the images."""
        return y
