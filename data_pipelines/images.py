"""Single images: decoding to RGB, cropping and resizing as the papers' tools do, encoding."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

if TYPE_CHECKING:
    import torch  # otherwise where it is needed: `pack` and its workers do without

Pixels = NDArray[np.uint8]
ImageFormat = Literal["png", "webp", "jpeg"]
Filter = Literal["lanczos", "bilinear"]
Resize = Literal["pillow", "torch"]

ORIGINAL = 0
"""The "resolution" of sets whose images keep the sizes, and mostly the bytes, of their source."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded: none of Pillow's formats that run other programs, or have no signature."""
SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|GIF8[79]a|II\*\0|MM\0\*|II\+\0|MM\0\+"
    rb"|BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}|P[1-6]\s+[#\d]"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftypavi[fs]",
    re.DOTALL,
)
SIGNATURE_BYTES = 32
OTHER_FORMATS = {
    "HEIC": re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "Photoshop": re.compile(rb"8BPS"),
}
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image is turned upright, by its EXIF orientation."""


class BadImage(ValueError):  # noqa: N818 (a finding about the input, reported as a skip)
    """Bytes that are no usable image; the message is the reason."""


def decode_rgb(encoded: bytes, *, upright: bool = False) -> Pixels:
    """Decode any common image to RGB, uint8 [H, W, 3]; see `decode`."""
    return np.asarray(decode(encoded, upright=upright))


def decode(encoded: bytes, *, upright: bool = False) -> Image.Image:
    """Decode any common image to RGB.

    Grey is tripled, CMYK and palettes are converted, 16-bit grey is scaled to 8 bits, transparency
    is composited over white, colour profiles are dropped. All pixels are decoded, so truncation is
    detected.

    Args:
        encoded: The file's bytes.
        upright: Turn the image as its EXIF orientation says (the papers' tools ignore it).

    Raises:
        BadImage: The bytes are not an image, are cut short, or are damaged.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            image.load()
            turn = ORIENTATIONS.get(_orientation(image)) if upright else None
            plain = _to_rgb(image if turn is None else image.transpose(turn))
    except UnidentifiedImageError:
        raise BadImage("not an image of a known format") from None
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to
        raise BadImage(f"undecodable: {_in_one_line(error)}") from None
    plain.info = {}
    return plain


def is_picture(start: bytes) -> bool:
    """Return whether a file that starts with these SIGNATURE_BYTES is an image we decode."""
    return SIGNATURES.match(start) is not None


def other_format(start: bytes) -> str:
    """Return the name of an image format that we do not decode, "" if it is none."""
    return next((name for name, mark in OTHER_FORMATS.items() if mark.match(start)), "")


def _orientation(image: Image.Image) -> int:
    """Return an image's EXIF orientation; 1 (upright) if it has none, or one that is unreadable.

    Only this tag is looked at: Pillow's exif_transpose writes the others anew, which fails if a
    camera (or an editor) gave one of them a wrong type.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in `decode`: any kind of damage
        return 1
    return value if isinstance(value, int) else 1


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no defined range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def may_stay(encoded: bytes, *, upright: bool = False) -> bool:
    """Return whether all decoders read an image alike: a still JPEG or WebP of RGB or grey.

    Args:
        encoded: The bytes of an image that can be decoded.
        upright: Whether its EXIF orientation is applied; if so it must be the normal one.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        plain = image.format in ("JPEG", "WEBP") and image.mode in ("RGB", "L")
        turned = upright and _orientation(image) != 1
        return plain and not turned and getattr(image, "n_frames", 1) == 1


def centre_crop(image: Image.Image) -> Image.Image:
    """Cut the largest centred square, starting at floor((edge - crop) / 2).

    See docs/reference/rdm.md#1.2.
    """
    width, height = image.size
    crop = min(width, height)
    left, top = (width - crop) // 2, (height - crop) // 2
    return image.crop((left, top, left + crop, top + crop))


def centre_square(image: Image.Image, resolution: int) -> Image.Image:
    """Cut the largest centred square and resize it with Pillow's Lanczos filter.

    An image that already has the resolution passes unchanged.
    """
    return centre_crop(image).resize((resolution, resolution), Image.Resampling.LANCZOS)


def bilinear_square(image: Image.Image, resolution: int) -> Image.Image:
    """Resize the shorter side with Pillow's bilinear filter, then cut the centred square.

    As WaveDiff's loaders do (docs/reference/wavediff.md#7.4): the longer side is rounded down, the
    square starts at round((edge - resolution) / 2), halves to even.
    """
    shorter = min(image.size)
    width, height = (resolution * edge // shorter for edge in image.size)
    left, top = round((width - resolution) / 2), round((height - resolution) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + resolution, top + resolution))


def encode(image: Image.Image, image_format: ImageFormat, quality: int) -> bytes:
    """Encode an RGB image; PNG and WebP are lossless.

    JPEG (of `quality` 1..95) keeps colour at full resolution: a generator would learn the blur of
    subsampled colour, and decoders differ in how they enlarge it.
    """
    buffer = io.BytesIO()
    if image_format == "png":
        image.save(buffer, "PNG", compress_level=4)
    elif image_format == "webp":
        image.save(buffer, "WEBP", lossless=True, quality=50, method=2)
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
    return buffer.getvalue()


def pixel_decoder(
    stored: int, resolution: int, resize: Resize = "pillow"
) -> Callable[[bytes], Pixels]:
    """Return a function from a packed sample to pixels uint8 [3, R, R]; it raises BadImage.

    Args:
        stored: Edge of the set's images, which are not changed; those of an ORIGINAL set are
            cropped and resized.
        resolution: Edge R of the images of an ORIGINAL set.
        resize: Which Lanczos filter resizes these: `pillow`, exactly as `pack` would, or `torch`,
            four times as fast and up to 2 of 255 levels off.

    Raises:
        ValueError: This torch has no Lanczos filter.
    """
    if stored != ORIGINAL:
        return lambda encoded: _planes(_of_edge(decode_rgb(encoded), stored))
    if resize == "pillow":
        return lambda encoded: _planes(np.asarray(centre_square(decode(encoded), resolution)))
    _check_torch()
    return lambda encoded: _resized_by_torch(encoded, resolution)


def _of_edge(pixels: Pixels, edge: int) -> Pixels:
    if pixels.shape != (edge, edge, 3):
        raise BadImage(f"has {pixels.shape[1]}x{pixels.shape[0]} pixels, not {edge}")
    return pixels


def _planes(pixels: Pixels) -> Pixels:
    return pixels.transpose(2, 0, 1)


def _resized_by_torch(encoded: bytes, resolution: int) -> Pixels:
    """Return the centred square of an image at an edge, uint8 [3, R, R]."""
    import torch

    square = torch.from_numpy(np.array(centre_crop(decode(encoded))))
    planes: Pixels = _lanczos(square.permute(2, 0, 1)[None], resolution)[0].numpy()
    return planes


def _lanczos(images: torch.Tensor, edge: int) -> torch.Tensor:
    import torch.nn.functional as F

    return F.interpolate(images, (edge, edge), mode="lanczos", antialias=True)


def _check_torch() -> None:
    import torch

    try:
        _lanczos(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 2)
    except (NotImplementedError, ValueError):  # by version
        raise ValueError(
            f"resize='torch' needs a Lanczos filter, which torch {torch.__version__} lacks;"
            " install a newer torch, or set data.resize=pillow"
        ) from None
