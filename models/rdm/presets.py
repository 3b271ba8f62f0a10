"""Processes and sampler settings of published runs (docs/reference/rdm.md#1.1, #10.1, #12)."""

from __future__ import annotations

from dataclasses import replace

from models.rdm.edm_sampler import EdmSampling
from models.rdm.process import RelayProcess
from models.rdm.relay_sampler import RelaySampling
from models.rdm.sampler import Churn, Guidance

IMAGENET_PROCESS = RelayProcess(upscale=4, prob_length=0.93, blur_sigma_max=3.0)
CELEBAHQ_PROCESS = RelayProcess(upscale=4, prob_length=0.89, blur_sigma_max=2.0)

IMAGENET_EDM = EdmSampling(
    steps=256, churn=Churn(amount=40, sigma_min=0.05, sigma_max=50, noise=1.003)
)
"""ImageNet script, stage 1: NFE 511."""
IMAGENET_RELAY = RelaySampling(steps=200, rho=100.0)
"""ImageNet script, stage 2 without guidance: 100 of 200 steps remain, NFE 199 (Table 2: RDM)."""
IMAGENET_RELAY_GUIDED = replace(IMAGENET_RELAY, guidance=Guidance(scale=3.5))
"""ImageNet script, stage 2 with guidance 3.5: 398 evaluations (Table 2: RDM-G)."""

CELEBAHQ_EDM = EdmSampling(steps=120, sde_scale=0.05)
"""CelebA-HQ script, stage 1: NFE 239."""
CELEBAHQ_RELAY = RelaySampling(steps=150, truncation_sigma=0.95, prob_length=1.05, churn_draws=True)
"""CelebA-HQ script, stage 2: 54 of 150 steps remain, NFE 107 (Table 1)."""

SAMPLERS: dict[str, EdmSampling | RelaySampling] = {
    "imagenet_edm": IMAGENET_EDM,
    "imagenet_relay_guided": IMAGENET_RELAY_GUIDED,
    "imagenet_relay": IMAGENET_RELAY,
    "celebahq_edm": CELEBAHQ_EDM,
    "celebahq_relay": CELEBAHQ_RELAY,
}
"""By name; of those that fit a network, the first gives the paper's main result."""
