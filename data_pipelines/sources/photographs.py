"""The embedded set: crops, at several scales, of the colour photographs in the scikit-image wheel.

It needs no network: the files are read from the installed package, not through skimage.data, which
would download what the wheel does not carry. One class per photograph.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.images import Pixels, decode_rgb
from data_pipelines.sources.base import Entry, Listing, ReadItem, SourceError

PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "ihc": "ihc.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
CROPS_PER_PHOTOGRAPH = 512
SMALLEST_CROP = 0.8
"""Least edge of a crop, as a share of the photograph's short side: each shows what it is of."""


@dataclass(frozen=True)
class PhotographSource:
    """Square crops with edges of 80 to 100 % of the photograph's short side."""

    kind: str = "photographs"
    published: bool = True

    def list_items(self) -> Listing:
        """Return all crops, classes alternating. Raises SourceError if a photograph is missing."""
        names = tuple(PHOTOGRAPHS)
        sizes = [_photograph_path(name).stat().st_size for name in names]
        entries = [
            Entry(f"{names[label]}/{crop:04d}", label, sizes[label], crop)
            for crop in range(CROPS_PER_PHOTOGRAPH)
            for label in range(len(names))
        ]
        return Listing(entries, names)

    @contextmanager
    def open(self) -> Iterator[ReadItem]:
        """Open the source for reading."""
        names = tuple(PHOTOGRAPHS)

        @functools.cache
        def photograph(label: int) -> Pixels:
            return decode_rgb(_photograph_path(names[label]).read_bytes())

        yield lambda entry: _crop(photograph(entry.label), entry.label, entry.locator)

    def describe(self) -> dict[str, Any]:
        """Return where the photographs are from."""
        return {"path": "the scikit-image wheel"}


def _crop(photograph: Pixels, label: int, number: int) -> Pixels:
    """Return crop `number` of a photograph: scale and place are a function of both numbers."""
    rng = np.random.default_rng((label, number))
    height, width = photograph.shape[:2]
    edge = round(min(height, width) * rng.uniform(SMALLEST_CROP, 1))
    top = int(rng.integers(height - edge + 1))
    left = int(rng.integers(width - edge + 1))
    return photograph[top : top + edge, left : left + edge]


def _photograph_path(name: str) -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SourceError("the photographs need scikit-image: pip install 'relaywave[quickstart]'")
    path = Path(spec.origin).parent / "data" / PHOTOGRAPHS[name]
    if not path.is_file():
        raise SourceError(f"this scikit-image lacks {path.name}; pip install 'scikit-image>=0.24'")
    return path
