"""A detector without weights, a metric of two means, and a protocol that uses both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dist_train.runtime.world import World
from evaluation.detectors.base import Detector, DetectorConfig, Network
from evaluation.detectors.registry import DETECTORS, DetectorKind
from evaluation.metrics.registry import METRICS, Kind
from evaluation.metrics.statistics import FeatureSet
from evaluation.protocols import PROTOCOLS, Protocol

EDGE = 4


def thumbnails(config: DetectorConfig, preprocessing: str, device: torch.device) -> Detector:
    """Return the detector whose features are the pixels of 4x4 thumbnails, 0..255."""
    del config
    identity = {"name": "thumbnail", "pipeline": preprocessing, "weights_sha256": "none"}

    def load(taps: Sequence[str]) -> Network:
        del taps
        return features

    return Detector(identity, {"pixels": 3 * EDGE**2}, load, device, resizes_inside=True)


def features(images: Tensor) -> Mapping[str, Tensor]:
    """Return float32 [B, 48] of images [B, 3, H, W]."""
    return {"pixels": functional.adaptive_avg_pool2d(images.float(), EDGE).flatten(1)}


def shift(gen: FeatureSet, ref: FeatureSet, tap: str, world: World) -> dict[str, float]:
    """Return how far the mean feature of the samples is from that of the reference."""
    del world  # all ranks have the same moments
    return {"distance": float(np.linalg.norm(gen.gaussian(tap).mu - ref.gaussian(tap).mu))}


DETECTORS.register(
    "thumbnail", DetectorKind(thumbnails, ("raw",), ("pixels",), ("fd:pixels", "shift:pixels"))
)
METRICS.register("shift", Kind(shift, generated="moments", reference="moments"))
PROTOCOLS.register(
    "flow_debug",
    Protocol(
        name="flow_debug",
        num_samples=64,
        reference="the training images",
        num_features=64,
        detector="thumbnail",
        preprocessing="raw",
        metrics=("fd:pixels", "shift:pixels"),
    ),
)
