"""Spectra of images and noise at two resolutions, the paper's Figure 2.

See docs/reference/rdm.md#12.4 and #5.3.

Noise of one level hides less of a larger image: enlarged to the same size, the noise of the small
image has upscale^2 times the power at low frequencies. Block noise gives the large image the small
one's noise spectrum, so that a relay can continue at equal levels.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from models.analysis.figures import save_figure
from models.objective import images_to_unit_range
from models.rdm.block_noise import block_noise
from models.rdm.dct import dct_matrix
from models.rdm.relay_sampler import enlarge
from models.safe_files.atomic import atomic_file, check_replaceable_file
from models.safe_files.transient import retried

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
BATCH = 16


@dataclass(frozen=True)
class Spectra:
    """Mean power per DCT coefficient by radial frequency, float64 [n] each.

    Attributes:
        frequency: Cycles per image, k / 2 for coefficient k.
        large: Images of the full resolution.
        small: The same images reduced by upscale, and enlarged again by pixel repetition.
        iid_large: Noise sigma n of the full resolution.
        iid_small: Noise sigma n of the reduced resolution, enlarged in the same way.
        block_large: Block noise sigma Block(n) of the full resolution.
    """

    frequency: Tensor
    large: Tensor
    small: Tensor
    iid_large: Tensor
    iid_small: Tensor
    block_large: Tensor

    def columns(self) -> dict[str, Tensor]:
        """Return what the CSV file holds: powers, and ratios of image to noise power."""
        return {
            "cycles_per_image": self.frequency,
            "power_large": self.large,
            "power_small_enlarged": self.small,
            "noise_iid_large": self.iid_large,
            "noise_iid_small_enlarged": self.iid_small,
            "noise_block_large": self.block_large,
            "snr_iid_large": self.large / self.iid_large,
            "snr_iid_small_enlarged": self.small / self.iid_small,
            "snr_block_large": self.large / self.block_large,
        }


def analyse(
    image_dir: Path,
    out_dir: Path,
    *,
    resolution: int = 256,
    upscale: int = 4,
    sigma: float = 0.5,
    limit: int = 256,
    seed: int = 0,
) -> list[Path]:
    """Write `spectrum.csv`, `spectrum.png` and `spectrum.svg`; return their paths.

    Args:
        image_dir: Directory of images, see `read_images`.
        out_dir: Created if missing.
        resolution: Full resolution in pixels.
        upscale: Ratio of the two resolutions.
        sigma: Noise level.
        limit: Largest number of images.
        seed: Seed of the noise.

    Raises:
        ValueError: A setting is impossible, there are no images, or matplotlib is not installed.
    """
    if not sigma > 0:
        raise ValueError(f"sigma={sigma} must be positive")
    if upscale < 1 or resolution < 2 * upscale:
        raise ValueError(
            f"resolution={resolution} must be at least twice upscale={upscale},"
            " which must be positive"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib; pip install 'relaywave[plots]'")
    batches = read_images(image_dir, resolution, limit)
    generator = torch.Generator().manual_seed(seed)
    spectra = compute_spectra(batches, upscale, sigma, generator)
    pictures = save_figure(plot(spectra, sigma, upscale), out_dir / "spectrum")
    write_table(spectra, out_dir / "spectrum.csv")
    return [out_dir / "spectrum.csv", *pictures]


def radial_power(images: Tensor) -> Tensor:
    """Return the mean squared whole-image DCT by rounded radial index, float64 [R].

    Args:
        images: [B, C, R, R], any floating dtype. Indices of R and more (the corner) are left out.
    """
    edge = images.shape[-1]
    matrix = dct_matrix(edge, images.device)
    power = (matrix @ images.double() @ matrix.T).square().mean(dim=(0, 1))
    index = torch.arange(edge, dtype=torch.float64, device=images.device)
    radius = (index.square().unsqueeze(1) + index.square()).sqrt().round().long().flatten()
    sums = torch.zeros(int(radius.max()) + 1, dtype=torch.float64, device=images.device)
    counts = sums.clone().scatter_add_(0, radius, torch.ones_like(power.flatten()))
    return (sums.scatter_add_(0, radius, power.flatten()) / counts)[:edge]


def compute_spectra(
    batches: Iterable[Tensor], upscale: int, sigma: float, generator: torch.Generator
) -> Spectra:
    """Average the spectra of images and of as much noise.

    Args:
        batches: Images in [-1, 1], float32 [B, 3, R, R].
        upscale: Ratio of the resolutions; divides R.
        sigma: Noise level.
        generator: Source of the noise.

    Raises:
        ValueError: There is no image, or upscale does not divide R.
    """
    totals: list[Tensor] = []
    count = 0
    for images in batches:
        edge = images.shape[-1]
        if edge % upscale:
            raise ValueError(f"resolution={edge} is not a multiple of upscale={upscale}")
        noise = sigma * torch.randn(images.shape, generator=generator)
        small_shape = (*images.shape[:2], edge // upscale, edge // upscale)
        small_noise = sigma * torch.randn(small_shape, generator=generator)
        reduced = torch.nn.functional.avg_pool2d(images, upscale)
        signals = (images, enlarge(reduced, upscale), noise, enlarge(small_noise, upscale),
                   block_noise(noise, upscale))  # fmt: skip
        powers = [radial_power(signal) * len(images) for signal in signals]
        totals = [a + b for a, b in zip(totals, powers, strict=True)] if totals else powers
        count += len(images)
    if not count:
        raise ValueError("there is no image to analyse")
    means = [total / count for total in totals]
    frequency = torch.arange(len(means[0]), dtype=torch.float64) / 2
    return Spectra(frequency, *means)


def read_images(image_dir: Path, resolution: int, limit: int) -> Iterator[Tensor]:
    """Yield batches of a directory's images: centre-cropped, resized (Lanczos), in [-1, 1].

    Args:
        image_dir: Searched with its subdirectories, in order of the paths.
        resolution: Edge of the images returned; smaller ones are left out.
        limit: Largest number of images.

    Raises:
        ValueError: The directory does not exist, or holds no image of that size.
    """
    if not image_dir.is_dir():
        raise ValueError(f"{image_dir} is not a directory of images")
    paths = sorted(path for path in image_dir.rglob("*") if _is_image(path))
    images = islice(filter(None, (_read_image(path, resolution) for path in paths)), limit)
    found = False
    while batch := list(islice(images, BATCH)):
        found = True
        pixels = np.stack([np.asarray(image) for image in batch])
        yield images_to_unit_range(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    if not found:
        raise ValueError(
            f"{image_dir} holds no image of at least {resolution}x{resolution} pixels; lower"
            " --resolution, or choose another directory"
        )


def _read_image(path: Path, resolution: int) -> Image.Image | None:
    content = retried(lambda: path.read_bytes(), f"reading {path}")
    try:
        with Image.open(io.BytesIO(content)) as file:
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError):  # it is no picture, or a damaged one
        return None
    edge = min(image.size)
    if edge < resolution:
        return None
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge))
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS)


def write_table(spectra: Spectra, path: Path) -> None:
    """Write the columns of spectra as CSV. Raises NotOurs if a file of other columns is there."""
    columns = {name: values.tolist() for name, values in spectra.columns().items()}
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    header = ",".join(columns).encode()
    target = check_replaceable_file(path, lambda start: start.startswith(header), "such a table")
    with atomic_file(target) as file:
        file.write(text.getvalue().encode())


def plot(spectra: Spectra, sigma: float, upscale: int) -> Figure:
    """Return a figure of powers and of ratios of image to noise power, on logarithmic axes."""
    from matplotlib.figure import Figure

    columns = spectra.columns()
    edge = len(spectra.frequency)
    large, small = f"{edge} px", f"{edge // upscale} px enlarged"
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    power = {
        f"images, {large}": columns["power_large"],
        f"images, {small}": columns["power_small_enlarged"],
        f"iid noise, {large}": columns["noise_iid_large"],
        f"iid noise, {small}": columns["noise_iid_small_enlarged"],
        f"block noise, {large}": columns["noise_block_large"],
    }
    _draw_curves(left, spectra.frequency, power)
    left.set_title(f"Power per DCT coefficient, sigma = {sigma:g}")
    ratio = {
        f"iid noise, {large}": columns["snr_iid_large"],
        f"iid noise, {small}": columns["snr_iid_small_enlarged"],
        f"block noise, {large}": columns["snr_block_large"],
    }
    _draw_curves(right, spectra.frequency, ratio, first_colour=len(power) - len(ratio))
    right.set_title(f"Signal-to-noise ratio, sigma = {sigma:g}")
    return figure


def _draw_curves(
    axes: Axes, frequency: Tensor, curves: Mapping[str, Tensor], first_colour: int = 0
) -> None:
    """Draw curves over all frequencies but 0, which a logarithmic axis does not have."""
    for number, (name, values) in enumerate(curves.items(), first_colour):
        axes.loglog(frequency[1:].tolist(), values[1:].tolist(), color=f"C{number}", label=name)
    axes.set_xlabel("cycles per image")
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize="small")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()  # and no FIFO, which never ends
