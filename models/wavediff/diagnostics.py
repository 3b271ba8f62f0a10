"""Detects divergence and collapse of a generator and discriminator pair.

Metrics are named as the training loop names them: `network/metric`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

EXPLODED_LOSS = 100.0
"""Adversarial losses are a few units when training works; here logits are beyond 100. Not for sums
of losses, which grow with their weights r1_gamma and reconstruction_weight."""
EXPLODED_PENALTY = 1e4
"""The weighted R1 penalty is at most a few units when training works."""
SUMS = ("discriminator/loss", "generator/loss")
SATURATED_LOSS = 20.0
"""An adversarial loss from which the generator gets no usable gradient."""


def diversity(images: Tensor) -> Tensor:
    """Return how far images [B, C, H, W] differ: their deviation over their root mean square.

    0 is a collapsed generator (one image for every latent), 1 are unrelated images.
    """
    deviation = images.var(0).sum().sqrt()
    return deviation / images.square().mean(0).sum().sqrt()


def diagnose_pair(metrics: Mapping[str, float]) -> str | None:
    """Return how training has failed, by a pair's mean metrics, and which setting to try."""
    losses = {name: value for name, value in metrics.items() if "/loss" in name}
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        return (
            f"{bad[0]} is non-finite: training has diverged; lower the learning rates, raise"
            " objective.r1_gamma, or set compute.precision=float32"
        )
    exploded = [name for name in losses if name not in SUMS and losses[name] > EXPLODED_LOSS]
    if exploded:
        return (
            f"{exploded[0]}={losses[exploded[0]]:.4g} has exploded; lower optim.discriminator.lr or"
            " raise objective.r1_gamma"
        )
    penalty = metrics.get("discriminator/r1", 0.0)
    if penalty > EXPLODED_PENALTY:
        return (
            f"the R1 penalty is {penalty:.3g}: the discriminator's gradient has exploded; lower"
            " optim.discriminator.lr or objective.r1_interval, or raise objective.r1_gamma"
        )
    return _diagnose_discriminator(metrics) or _diagnose_generator(metrics)


def _diagnose_discriminator(metrics: Mapping[str, float]) -> str | None:
    real, fake = (metrics.get(f"discriminator/accuracy_{kind}", 0.5) for kind in ("real", "fake"))
    adversarial = metrics.get("generator/loss_adversarial", 0.0)
    if min(real, fake) > 0.999 and adversarial > SATURATED_LOSS:
        return (
            f"the discriminator is saturated (accuracy {real:.3f} on real, {fake:.3f} on fake, the"
            f" generator's loss is {adversarial:.4g}); raise objective.r1_gamma, lower"
            " objective.r1_interval or optim.discriminator.lr"
        )
    total = sum(metrics.get(f"discriminator/loss_{kind}", 0.0) for kind in ("real", "fake"))
    if min(real, fake) < 0.01 and total > SATURATED_LOSS / 2:
        return (
            f"the discriminator has collapsed: it gives one answer to everything (accuracy"
            f" {real:.3f} on real, {fake:.3f} on fake); lower optim.discriminator.lr or raise"
            " objective.r1_interval"
        )
    return None


def _diagnose_generator(metrics: Mapping[str, float]) -> str | None:
    spread = metrics.get("generator/diversity", math.nan)
    if spread < 1e-3 and metrics.get("discriminator/accuracy_fake", 0.0) > 0.95:
        return (
            f"the generator has collapsed: its images differ by {spread:.1e} of their magnitude;"
            " raise objective.reconstruction_weight or r1_gamma, or lower optim.generator.lr"
        )
    return None
