"""Options of the evaluation commands that have no effect on what the others ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from evaluation.image_sets.image_set import ImageSet
from evaluation.metrics.bootstrap import RESAMPLED
from evaluation.metrics.registry import MetricSettings
from evaluation.reference.reference import ReferenceSettings
from evaluation.samples.sample_dir import SampleRequest
from models.command_line import reject_unused

DRAWING = ("seeds", "labels", "quantisation", "retouch", "codec", "keep_images", "shard_images")
"""Options of how samples are drawn and stored."""


def check_grid_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError if a grid is described that is not drawn."""
    if not arguments.grid:
        why = "no grid is drawn without --grid FILE"
        reject_unused(arguments, dict.fromkeys(("grid_images", "grid_upscale"), why))


def check_run_options(
    arguments: argparse.Namespace,
    images: SampleRequest | ImageSet,
    reference: ReferenceSettings,
    metrics: Sequence[MetricSettings],
) -> None:
    """Raise ValueError if an option of `run` has no effect.

    Args:
        arguments: The command line.
        images: What is evaluated.
        reference: What it is compared with; empty if it does not exist yet.
        metrics: The metrics of each request.
    """
    unused: dict[str, str] = {}
    if not isinstance(images, SampleRequest):
        why = "the images are there already, and none are drawn"
        unused |= dict.fromkeys(DRAWING, why)
    if reference.statistics is None and reference.images is not None:
        unused["reference_pipeline"] = "the reference are images, which --pipeline prepares"
    if reference.statistics is not None and reference.images is None:
        unused["features"] = (
            f"{reference.features or reference.statistics} has the features that it has"
        )
    kinds = {name.partition(":")[0] for settings in metrics for name in settings.names}
    if all(settings.names for settings in metrics) and not kinds & RESAMPLED.keys():
        unused["bootstrap"] = f"only {', '.join(sorted(RESAMPLED))} have intervals"
    reject_unused(arguments, unused)
