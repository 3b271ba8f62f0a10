"""Folding of inference-mode batch norms into the convolutions before them.

Exact up to rounding (3e-7 relative, docs/reference/evaluation.md#1.6), and faster.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evaluation.detectors.effnet import EfficientNetLite0, InvertedResidual
from evaluation.detectors.inception import ConvUnit, FidInception


def fold(module: nn.Module, conv: str, norm: str) -> None:
    """Replace the module's convolution by one that includes the norm, and the norm by identity."""
    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
    setattr(module, norm, nn.Identity())


def fold_inception(network: FidInception) -> FidInception:
    """Fold all norms of the FID Inception in place and return it, in eval mode."""
    network.eval()
    for module in network.modules():
        if isinstance(module, ConvUnit):
            fold(module, "conv", "bn")
    return network


def fold_effnet(network: EfficientNetLite0) -> EfficientNetLite0:
    """Fold all norms of EfficientNet-Lite0 in place and return it."""
    fold(network, "_conv_stem", "_bn0")
    fold(network, "_conv_head", "_bn1")
    for block in network._blocks:
        assert isinstance(block, InvertedResidual)
        if block.expands:
            fold(block, "_expand_conv", "_bn0")
        fold(block, "_depthwise_conv", "_bn1")
        fold(block, "_project_conv", "_bn2")
    return network
