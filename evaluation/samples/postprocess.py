"""Apply the post-processing of the published evaluations: retouching and lossy files.

Off by default; protocols that reproduce a paper switch it on, and results record it
(docs/reference/evaluation.md#6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evaluation.image_sets.files import decode_image, encode_image
from models.rdm.enhance import enhance
from models.sampler import quantise

Quantisation = Literal["edm", "adm"]
Retouch = Literal["none", "rdm_imagenet", "rdm_celebahq"]
Codec = Literal["png", "jpeg"]

RETOUCHES: dict[Retouch, tuple[tuple[str, float], ...]] = {
    "none": (),
    "rdm_imagenet": (("brightness", 1.06),),
    "rdm_celebahq": (("contrast", 0.9), ("brightness", 1.05), ("color", 0.99)),
}


def quantise_adm(images: Tensor) -> Tensor:
    """Map [-1, 1] to uint8 by ADM's rule, trunc((x + 1) 127.5): up to one level darker."""
    return ((images + 1) * 127.5).clip(0, 255).to(torch.uint8)


QUANTISATIONS: dict[Quantisation, Callable[[Tensor], Tensor]] = {
    "edm": quantise,
    "adm": quantise_adm,
}


@dataclass(frozen=True)
class PostProcess:
    """Steps between quantised samples and the detector.

    Attributes:
        quantisation: Rule from [-1, 1] to uint8: `edm` (torchvision's, StyleGAN's) or `adm`.
        retouch: Enhancement by the RDM paper's scripts, one of RETOUCHES.
        codec: File format that samples pass through; `jpeg` is lossy (Pillow defaults, as DDGAN).
    """

    quantisation: Quantisation = "edm"
    retouch: Retouch = "none"
    codec: Codec = "png"

    def apply(self, images: Tensor) -> Tensor:
        """Return the images that the detector would read from files, uint8 [B, 3, H, W]."""
        return self.through_codec(self.retouched(images))

    def retouched(self, images: Tensor) -> Tensor:
        """Return uint8 images [B, 3, H, W] after the retouch."""
        return enhance(images, RETOUCHES[self.retouch])

    def through_codec(self, images: Tensor) -> Tensor:
        """Return what decoding the files of these images gives; PNG changes nothing."""
        if self.codec == "png":
            return images
        files = [encode_image(image, self.codec) for image in images]
        return torch.stack([decode_image(data, "sample") for data in files])
