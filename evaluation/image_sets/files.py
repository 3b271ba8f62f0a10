"""Image files as evaluation reads them: decoded strictly, encoded as published sets are."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data_pipelines.images import FORMATS

PLAIN_MODES = {"RGB", "L", "1"}


def decode_image(data: bytes, name: str) -> Tensor:
    """Decode an image file to uint8 RGB [3, H, W]; grey is tripled.

    Raises:
        ValueError: The file is damaged, or has alpha, a palette, 16 bits or CMYK, for which the
            conversion to RGB would be a choice that changes the metric.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            mode = image.mode
            pixels = np.asarray(image.convert("RGB")) if mode in PLAIN_MODES else None
    except UnidentifiedImageError:
        raise ValueError(f"{name} cannot be decoded: not an image of a known format") from None
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be decoded: {reason}") from None
    if pixels is None:
        raise ValueError(f"{name} has mode {mode}; convert it to 8-bit RGB or grey")
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def encode_image(image: Tensor, codec: str = "png") -> bytes:
    """Encode a uint8 RGB image [3, H, W] as `png`, or as `jpeg` with Pillow's defaults."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    picture.save(buffer, format=codec.upper())
    return buffer.getvalue()
