"""Reference images as a protocol prepares them: flipped at random, through a lossy file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from evaluation.image_sets.image_set import ImageSet, Labels
from evaluation.samples.postprocess import Codec, PostProcess
from models.sample_rng import SampleStreams


@dataclass(frozen=True)
class Preparation:
    """What happens to the images of a reference before a detector sees them.

    Attributes:
        hflip: Each image is flipped with probability 1/2, drawn from its index.
        codec: File format that they then pass through; `png` changes nothing.
    """

    hflip: bool = False
    codec: Codec = "png"

    def apply(self, images: Tensor, indices: Sequence[int]) -> Tensor:
        """Return the prepared images of these indices, uint8 [B, 3, H, W]."""
        if self.hflip:
            flipped = SampleStreams(indices).rand() < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return PostProcess(codec=self.codec).through_codec(images)


def prepare_images(images: ImageSet, preparation: Preparation) -> ImageSet:
    """Return a set of images as a protocol prepares it; itself if nothing is done."""
    return images if preparation == Preparation() else PreparedImages(images, preparation)


class PreparedImages:
    """A set of images that are prepared while they are read."""

    def __init__(self, images: ImageSet, preparation: Preparation) -> None:
        self._images, self._preparation = images, preparation
        self.manifest = images.manifest

    @property
    def identity(self) -> dict[str, Any]:
        """That of the images, with the digest, codec and flips of what is made of them."""
        base = self._images.identity
        made_of = json.dumps([base["digest"], asdict(self._preparation)])
        identity = base | {
            "digest": hashlib.sha256(made_of.encode()).hexdigest(),
            "flipped": self._preparation.hflip,
        }
        lossy = self._preparation.codec != "png"
        return identity | ({"codecs": [self._preparation.codec]} if lossy else {})

    def __len__(self) -> int:
        return len(self._images)

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, int64 [B], or None if they are not known."""
        return self._images.labels(indices)

    def name(self, index: int) -> str:
        """Return what an image is called in its set."""
        return self._images.name(index)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the prepared images of these indices, uint8 RGB [B, 3, H, W]."""
        return self._preparation.apply(self._images.batch(indices), indices)

    def batches(self, todo: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the prepared images of each of these batches."""
        for indices, images in zip(todo, self._images.batches(todo), strict=True):
            yield self._preparation.apply(images, indices)
