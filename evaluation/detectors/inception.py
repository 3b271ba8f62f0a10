"""The FID Inception network of 2015-12-05 (docs/reference/evaluation.md#1.1).

Parameter names are torchvision's. It differs from torchvision's `inception_v3` in the stride-1
average pools (padding is not counted), the last block's maximum pool, and 1008 logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPATIAL_CHANNELS = 7
TAPS = {
    "pool": 2048,
    "spatial": SPATIAL_CHANNELS * 17 * 17,
    "logits_unbiased": 1008,
    "logits": 1008,
    "64": 64,
    "192": 192,
    "768": 768,
}
"""Width of each tap: pool features (FID), H, W, C spatial features (sFID), logits (IS), and the
spatial means of three earlier maps (pytorch-fid's `--dims`)."""


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C_out, H', W']."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def average_pool(x: Tensor) -> Tensor:
    """Return the 3x3 mean at stride 1, without the padding in the divisor."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class BlockA(nn.Module):
    """Mixed_5b, 5c, 5d."""

    def __init__(self, c_in: int, pool_width: int) -> None:
        super().__init__()
        self.branch1x1 = ConvUnit(c_in, 64, 1)
        self.branch5x5_1 = ConvUnit(c_in, 48, 1)
        self.branch5x5_2 = ConvUnit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvUnit(c_in, 64, 1)
        self.branch3x3dbl_2 = ConvUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvUnit(96, 96, 3, padding=1)
        self.branch_pool = ConvUnit(c_in, pool_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 224 + pool_width, 35, 35]."""
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average_pool(x)),
        ]
        return torch.cat(branches, 1)


class BlockB(nn.Module):
    """Mixed_6a."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3 = ConvUnit(c_in, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvUnit(c_in, 64, 1)
        self.branch3x3dbl_2 = ConvUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvUnit(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 480 + C_in, 17, 17]."""
        branches = [
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            F.max_pool2d(x, 3, 2),
        ]
        return torch.cat(branches, 1)


class BlockC(nn.Module):
    """Mixed_6b .. 6e."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = ConvUnit(768, 192, 1)
        self.branch7x7_1 = ConvUnit(768, width, 1)
        self.branch7x7_2 = ConvUnit(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = ConvUnit(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = ConvUnit(768, width, 1)
        self.branch7x7dbl_2 = ConvUnit(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = ConvUnit(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = ConvUnit(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = ConvUnit(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = ConvUnit(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 768, 17, 17]."""
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(average_pool(x)),
        ]
        return torch.cat(branches, 1)


class BlockD(nn.Module):
    """Mixed_7a."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvUnit(768, 192, 1)
        self.branch3x3_2 = ConvUnit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvUnit(768, 192, 1)
        self.branch7x7x3_2 = ConvUnit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvUnit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvUnit(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 1280, 8, 8]."""
        wide = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        branches = [
            self.branch3x3_2(self.branch3x3_1(x)),
            self.branch7x7x3_4(wide),
            F.max_pool2d(x, 3, 2),
        ]
        return torch.cat(branches, 1)


class BlockE(nn.Module):
    """Mixed_7b (average pool) and 7c (maximum pool)."""

    def __init__(self, c_in: int, *, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        self.branch1x1 = ConvUnit(c_in, 320, 1)
        self.branch3x3_1 = ConvUnit(c_in, 384, 1)
        self.branch3x3_2a = ConvUnit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvUnit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvUnit(c_in, 448, 1)
        self.branch3x3dbl_2 = ConvUnit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvUnit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvUnit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvUnit(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 2048, 8, 8]."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.max_pool else average_pool(x)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, 1)


class FidInception(nn.Module):
    """The network; input prepared by one of `resize.PREPROCESSINGS`, float [B, 3, 299, 299].

    Args:
        taps: The taps that `forward` returns, of TAPS.
    """

    def __init__(self, taps: Sequence[str] = ("pool",)) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, max_pool=False)
        self.Mixed_7c = BlockE(2048, max_pool=True)
        self.fc = nn.Linear(2048, 1008)

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the output of every top-level unit by name, in order; pools count as units."""
        for name, unit in self.named_children():
            if name == "fc":
                return
            x = unit(x)
            yield name, x
            if name in MAX_POOLS:
                x = F.max_pool2d(x, 3, 2)
                yield MAX_POOLS[name], x

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the taps by name, each [B, D] (see TAPS)."""
        found: dict[str, Tensor] = {}
        for name, x in self.stages(x):  # noqa: B020 - the last map is used below
            if name in MEAN_TAPS:
                found[MEAN_TAPS[name]] = x.mean((2, 3))
            elif name == "Mixed_6d":
                # The block's first branch is its 1x1 one; the order H, W, C is ADM's.
                found["spatial"] = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        found["logits_unbiased"] = F.linear(found["pool"], self.fc.weight)
        found["logits"] = found["logits_unbiased"] + self.fc.bias
        return {tap: found[tap] for tap in self.taps}


MAX_POOLS = {"Conv2d_2b_3x3": "MaxPool_1", "Conv2d_4a_3x3": "MaxPool_2"}
"""The pools between top-level units, by the unit before them."""
MEAN_TAPS = {
    "MaxPool_1": "64",
    "MaxPool_2": "192",
    "Mixed_6e": "768",
    "Mixed_7c": "pool",
}
