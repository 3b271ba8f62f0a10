"""Image files as evaluation reads them: decoded strictly, encoded as published sets are."""

from __future__ import annotations

import io
import threading
import warnings

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from data_pipelines.images import FORMATS

PLAIN_MODES = {"RGB", "L", "1"}
MAX_PIXELS = 1 << 26
"""Pixels of an image, or of a grid of them, that are decoded: 8192 x 8192."""
_OPENING = threading.Lock()
"""Held while headers are read: filters of warnings are not of one thread only."""


class OddSizeError(ValueError):
    """An image that is too large, or of another size than the others."""


def decode_image(data: bytes, name: str, size: tuple[int, ...] | None = None) -> Tensor:
    """Decode an image file to uint8 RGB [3, H, W]; grey is tripled.

    Args:
        data: The file.
        name: Its name, for messages.
        size: The shape [3, H, W] that it must have; null takes any up to MAX_PIXELS.

    Raises:
        ValueError: The file is damaged, or has alpha, a palette, 16 bits or CMYK, for which the
            conversion to RGB would be a choice that changes the metric.
    """
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        with image:
            mode = image.mode
            _check_edges(image, size, name)
            pixels = np.asarray(image.convert("RGB")) if mode in PLAIN_MODES else None
    except OddSizeError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{name} cannot be decoded: not an image of a known format") from None
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be decoded: {reason}") from None
    if pixels is None:
        raise ValueError(f"{name} has mode {mode}; convert it to 8-bit RGB or grey")
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def check_size(image: Tensor, size: tuple[int, ...], name: str) -> None:
    """Raise ValueError unless an image [3, H, W] is of the shape of the others."""
    if tuple(image.shape) != size:
        raise OddSizeError(
            f"{name} is {image.shape[2]}x{image.shape[1]} pixels, others are {size[2]}x{size[1]};"
            " evaluation needs images of one size"
            " (pack them first: relaywave data pack)"
        )


def _check_edges(image: Image.Image, size: tuple[int, ...] | None, name: str) -> None:
    """Check an image's size before its pixels are decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise OddSizeError(
            f"{name} is {image.width}x{image.height} pixels, more than any that is evaluated"
        )
    if size is not None:
        check_size(torch.empty(3, image.height, image.width, device="meta"), size, name)


def encode_image(image: Tensor, codec: str = "png") -> bytes:
    """Encode a uint8 RGB image [3, H, W] as `png`, or as `jpeg` with Pillow's defaults."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    picture.save(buffer, format=codec.upper())
    return buffer.getvalue()
