"""Preprocessing: from uint8 images to what a detector's network expects.

Published numbers differ by how images were resized; so each way has a name, the name is stored in
every file, and features of different names are not compared (docs/reference/evaluation.md#1.3, #2).
All take uint8 RGB [B, 3, H, W] and return float32 [B, 3, S, S].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

INCEPTION_SIZE = 299
DINO_SIZE = 224
CLIP_SIZE = 336
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Preprocessing = Callable[[Tensor], Tensor]


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """Resize as TensorFlow 1 does: source coordinate i * (n / size) in float32, no antialias.

    Horizontal interpolation first, then vertical, on 0..255 floats; not quantised.
    """
    left, right, x_weight = _tf1_taps(images.shape[3], size, images.device)
    top, bottom, y_weight = _tf1_taps(images.shape[2], size, images.device)
    x = images.to(torch.float32)
    a = x[..., left]
    x = a + (x[..., right] - a) * x_weight
    a = x[..., top, :]
    return a + (x[..., bottom, :] - a) * y_weight[:, None]


def _tf1_taps(n: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    scale = torch.tensor(n, dtype=torch.float32, device=device) / size
    position = torch.arange(size, dtype=torch.float32, device=device) * scale
    low = position.floor().long()
    return low, (low + 1).clamp(max=n - 1), position - low


def tf1(images: Tensor) -> Tensor:
    """TTUR, ADM, EDM, RDM, torch-fidelity: TF1 bilinear to 299, (x - 128) / 128."""
    return (tf1_bilinear(images, INCEPTION_SIZE) - 128) / 128


def nvidia_grid(images: Tensor) -> Tensor:
    """TF1 bilinear as NVIDIA's detectors write it; within 5.2e-3 grey levels of `tf1`."""
    height, width = images.shape[2:]
    theta = torch.eye(2, 3, device=images.device)
    theta[0, 2] = 1 / width - 1 / INCEPTION_SIZE
    theta[1, 2] = 1 / height - 1 / INCEPTION_SIZE
    shape = [len(images), 3, INCEPTION_SIZE, INCEPTION_SIZE]
    grid = functional.affine_grid(theta.expand(len(images), 2, 3), shape, align_corners=False)
    x = functional.grid_sample(
        images.to(torch.float32), grid, padding_mode="border", align_corners=False
    )
    return (x - 128) / 128


def pytorch_fid(images: Tensor) -> Tensor:
    """pytorch-fid, DDGAN, WaveDiff: half-pixel bilinear to 299 of [0, 1] floats, 2x - 1."""
    x = images.to(torch.float32) / 255
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    return 2 * functional.interpolate(x, size, mode="bilinear", align_corners=False) - 1


def clean(images: Tensor) -> Tensor:
    """clean-fid: PIL bicubic of float channels (antialiased shrinking), clipped, not rounded."""
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    planes = images.cpu().numpy().astype(np.float32)
    resized = np.empty((*planes.shape[:2], *size), np.float32)
    for target, source in zip(resized, planes, strict=True):
        for channel in range(3):
            plane = Image.fromarray(source[channel])
            target[channel] = np.asarray(plane.resize(size, Image.Resampling.BICUBIC))
    x = torch.from_numpy(resized).clip(0, 255).to(images.device)
    return (x - 128) / 128


def edm2_dino(images: Tensor) -> Tensor:
    """EDM2's FD-DINOv2: torch bicubic with antialias to 224, unclipped, ImageNet mean and std."""
    x = images.to(torch.float32)
    size = (DINO_SIZE, DINO_SIZE)
    x = functional.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)
    return _standardise(x / 255, IMAGENET_MEAN, IMAGENET_STD)


def dgm_dino(images: Tensor) -> Tensor:
    """dgm-eval's DINOv2: PIL bicubic to 224 on the uint8 image, ImageNet mean and std."""
    return _standardise(_pil_bicubic(images, DINO_SIZE) / 255, IMAGENET_MEAN, IMAGENET_STD)


def cmmd(images: Tensor) -> Tensor:
    """CMMD: centre crop to the short side, PIL bicubic to 336 on uint8, CLIP mean and std."""
    height, width = images.shape[2:]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    crop = images[..., top : top + edge, left : left + edge]
    return _standardise(_pil_bicubic(crop, CLIP_SIZE) / 255, CLIP_MEAN, CLIP_STD)


def raw(images: Tensor) -> Tensor:
    """No resizing: 0..255 floats, for TorchScript detectors that resize inside (NVIDIA's)."""
    return images.to(torch.float32)


def half_pixel(images: Tensor, size: int) -> Tensor:
    """EfficientNet-Lite0: half-pixel bilinear, antialiased when shrinking, (x - 127) / 128."""
    x = images.to(torch.float32)
    x = functional.interpolate(
        x, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return (x - 127) / 128


def _pil_bicubic(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images with PIL's bicubic (quantised); float32 0..255."""
    resized = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        for image in images.permute(0, 2, 3, 1).cpu().numpy()
    ]
    x = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    return x.to(images.device, torch.float32)


def _standardise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


PREPROCESSINGS: dict[str, Preprocessing] = {
    "tf1": tf1,
    "nvidia_grid": nvidia_grid,
    "pytorch_fid": pytorch_fid,
    "clean": clean,
    "edm2_dino": edm2_dino,
    "dgm_dino": dgm_dino,
    "cmmd": cmmd,
    "raw": raw,
    "half_pixel112": partial(half_pixel, size=112),
    "half_pixel224": partial(half_pixel, size=224),
}
