"""Processes and sampler settings of published runs (docs/reference/rdm.md#1.1, #10.1, #12)."""

from __future__ import annotations

from dataclasses import replace

from models.rdm.edm_sampler import Churn, EdmSampling, Guidance
from models.rdm.process import RelayProcess
from models.rdm.relay_sampler import RelaySampling

IMAGENET_PROCESS = RelayProcess(upscale=4, prob_length=0.93, blur_sigma_max=3.0)
CELEBAHQ_PROCESS = RelayProcess(upscale=4, prob_length=0.89, blur_sigma_max=2.0)

GENERIC_EDM = EdmSampling()
"""Script `generate`, stage 1: 18 steps of the deterministic sampler, NFE 35."""
GENERIC_RELAY = RelaySampling()
"""Script `generate`, stage 2: 7 of 18 steps are kept, NFE 13."""

IMAGENET_EDM = EdmSampling(
    steps=256, churn=Churn(amount=40, sigma_min=0.05, sigma_max=50, noise=1.003)
)
"""ImageNet script, stage 1: NFE 511."""
IMAGENET_RELAY = RelaySampling(steps=200, rho=100.0)
"""ImageNet script, stage 2 without guidance: 100 of 200 steps are kept, NFE 199 (Table 2: RDM)."""
IMAGENET_RELAY_GUIDED = replace(IMAGENET_RELAY, guidance=Guidance(scale=3.5))
"""ImageNet script, stage 2 with guidance 3.5: 398 evaluations (Table 2: RDM-G)."""
IMAGENET_ENHANCE = (("brightness", 1.06),)
"""What the ImageNet script does to finished images (docs/reference/rdm.md#11.8)."""

CELEBAHQ_EDM = EdmSampling(steps=120, sde_scale=0.05)
"""CelebA-HQ script, stage 1: NFE 239."""
CELEBAHQ_RELAY = RelaySampling(steps=150, truncation_sigma=0.95, prob_length=1.05, churn_draws=True)
"""CelebA-HQ script, stage 2: 54 of 150 steps are kept, NFE 107 (Table 1)."""
CELEBAHQ_ENHANCE = (("contrast", 0.9), ("brightness", 1.05), ("color", 0.99))
"""What the CelebA-HQ script does to finished images (docs/reference/rdm.md#11.8)."""

STOCHASTICITY_ETAS = (0.0, 0.10, 0.15, 0.20, 0.25, 0.30)
"""The eta of Table 3, whose best is 0.20 for both data sets."""


def with_eta(settings: RelaySampling, eta: float) -> RelaySampling:
    """Return settings with another eta (Table 3); 0 is the ODE sampler."""
    return replace(settings, eta=eta)


def allocate_nfe(budget: int, first_stage: int) -> tuple[EdmSampling, RelaySampling]:
    """Return ImageNet settings that spend an equivalent NFE, "10n + (N/2 - n)" (Figure 5).

    An evaluation of stage 1 costs a tenth of one of stage 2, and a Heun step takes two. Of a budget
    of N evaluations of stage 2, stage 2 gets N/2 - n steps, and stage 1 the 10 n steps that cost
    what n steps of stage 2 would.

    Args:
        budget: N, in evaluations of the stage-2 network.
        first_stage: n, at least 1 and less than N/2.

    Raises:
        ValueError: n leaves a stage without steps.
    """
    if not 1 <= first_stage < budget // 2:
        raise ValueError(
            f"first_stage={first_stage} of a budget of {budget} evaluations leaves a stage without"
            f" steps; set it to 1..{budget // 2 - 1}"
        )
    relay = keep_steps(IMAGENET_RELAY, budget // 2 - first_stage)
    return replace(IMAGENET_EDM, steps=10 * first_stage), relay


def keep_steps(settings: RelaySampling, kept: int) -> RelaySampling:
    """Return settings whose grid is fine enough that `kept` of its steps survive truncation.

    The kept number grows with the grid by 0 or 1 per step, so every number is met.
    """
    steps = kept
    while len(replace(settings, steps=steps).levels()) - 1 < kept:
        steps += 1
    return replace(settings, steps=steps)
