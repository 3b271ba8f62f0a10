"""Spectra of images and noise at two resolutions, the paper's Figure 2.

See docs/reference/rdm.md#12.4 and #5.3.

Noise of one level hides less of a larger image: enlarged to the same size, the noise of the small
image has upscale^2 times the power at low frequencies. Block noise gives the large image the small
one's noise spectrum, so that a relay can take over at equal levels.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from models.objective import images_to_unit_range
from models.rdm.block_noise import block_noise
from models.rdm.dct import dct_matrix
from models.rdm.figure import Panel, draw_figure
from models.rdm.relay_sampler import enlarge

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
        iid_small: Noise sigma n of the reduced resolution, enlarged likewise.
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


def read_images(folder: Path, resolution: int, limit: int) -> Iterator[Tensor]:
    """Yield batches of a folder's images: centre-cropped, resized (Lanczos), in [-1, 1].

    Args:
        folder: Searched with its sub-folders, in order of the paths.
        resolution: Edge of the images returned; smaller ones are left out.
        limit: Largest number of images.

    Raises:
        ValueError: The folder does not exist, or holds no image of that size.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    images = islice(filter(None, (_read_image(path, resolution) for path in paths)), limit)
    found = False
    while batch := list(islice(images, BATCH)):
        found = True
        pixels = np.stack([np.asarray(image) for image in batch])
        yield images_to_unit_range(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    if not found:
        raise ValueError(
            f"{folder} holds no image of at least {resolution}x{resolution} pixels; lower"
            " --resolution, or give another folder"
        )


def _read_image(path: Path, resolution: int) -> Image.Image | None:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    edge = min(image.size)
    if edge < resolution:
        return None
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge))
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS)


def write_figure(spectra: Spectra, sigma: float, upscale: int, folder: Path) -> None:
    """Write `spectrum.csv` and `spectrum.png` into a folder, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {name: values.tolist() for name, values in spectra.columns().items()}
    with open(folder / "spectrum.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    edge = len(spectra.frequency)
    large, small = f"{edge} px", f"{edge // upscale} px enlarged"
    power = {
        f"images, {large}": columns["power_large"],
        f"images, {small}": columns["power_small_enlarged"],
        f"iid noise, {large}": columns["noise_iid_large"],
        f"iid noise, {small}": columns["noise_iid_small_enlarged"],
        f"block noise, {large}": columns["noise_block_large"],
    }
    ratio = {
        f"iid noise, {large}": columns["snr_iid_large"],
        f"iid noise, {small}": columns["snr_iid_small_enlarged"],
        f"block noise, {large}": columns["snr_block_large"],
    }
    panels = [
        Panel(f"Power per DCT coefficient, sigma = {sigma:g}", power),
        Panel(f"Signal to noise, sigma = {sigma:g}", ratio),
    ]
    x = columns["cycles_per_image"]
    draw_figure(panels, x, "cycles per image").save(folder / "spectrum.png")


def add_parser(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `spectrum` command to the parsers of `python -m models`."""
    parser = parsers.add_parser(
        "spectrum",
        help="spectra of images, iid noise and block noise at two resolutions",
        description="Compute DCT power spectra and signal-to-noise ratios (Figure 2 of the RDM"
        " paper) and write them as spectrum.csv and spectrum.png.",
    )
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("output", type=Path, help="folder to write, made if missing")
    parser.add_argument("--resolution", type=int, default=256, help="full resolution in pixels")
    parser.add_argument("--upscale", type=int, default=4, help="ratio of the two resolutions")
    parser.add_argument("--sigma", type=float, default=0.5, help="noise level")
    parser.add_argument("--limit", type=int, default=256, help="largest number of images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    if not arguments.sigma > 0:
        raise ValueError(f"--sigma={arguments.sigma} must be positive")
    if arguments.upscale < 1 or arguments.resolution < 2 * arguments.upscale:
        raise ValueError(
            f"--resolution={arguments.resolution} must be at least twice --upscale="
            f"{arguments.upscale}, which must be positive"
        )
    batches = read_images(arguments.images, arguments.resolution, arguments.limit)
    generator = torch.Generator().manual_seed(arguments.seed)
    spectra = compute_spectra(batches, arguments.upscale, arguments.sigma, generator)
    write_figure(spectra, arguments.sigma, arguments.upscale, arguments.output)
    print(f"wrote {arguments.output}/spectrum.csv and spectrum.png")
