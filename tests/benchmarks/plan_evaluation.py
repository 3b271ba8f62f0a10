"""What FID-50k would take on 8 A100s: `python -m tests.benchmarks.plan_evaluation`.

Operations and kernel launches are counted on the recipes' own networks and on the FID Inception,
without data and without a GPU. Times follow from named assumptions; none was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dist_train.planning.flops import CostMeter
from dist_train.planning.hardware import GPUS
from dist_train.recipes import find_recipe
from evaluation.detectors.fold_batchnorm import fold_inception
from evaluation.detectors.inception import FidInception
from models.rdm import presets
from models.rdm.config import DenoisingConfig
from models.rdm.sampler import NetworkDenoiser, SamplingBase
from models.wavediff.config import WaveDiffConfig
from tests.launches import Launches

IMAGES, RANKS, BATCH = 50_000, 8, 64
FLOAT32_PEAK = 19.5e12
"""Operations per second of an A100 without TF32: detectors run in full float32."""
TF32_PEAK = 156e12
"""The same with TF32, which samplers that train in float32 use."""
ASSUMED_MFU = 0.35
"""Fraction of the peak that networks reach."""
LAUNCH = 6e-6
"""Seconds that PyTorch needs per kernel in eager mode; no kernel of small batches takes longer."""
START = 30.0
"""Seconds to start ranks, load weights and read the reference."""
CODEC = {32: 0.3e-3, 256: 8e-3}
"""CPU seconds per image: PNG or JPEG round trip, by its edge (an Intel Xeon core)."""
CORES = 8
"""Threads per rank that encode and decode while the GPU works."""


@dataclass(frozen=True)
class Pass:
    """One pass of a network on a batch.

    Attributes:
        name: Which.
        flops: Operations of one evaluation of one image.
        launches: Kernels of one call on a batch.
        count: Evaluations of each image.
        calls: Calls for a batch: guidance takes two evaluations in one.
        draws: Draws of noise for a batch, a kernel for each of its images.
        peak: Operations per second of the device, in this precision.
    """

    name: str
    flops: float
    launches: int
    count: int
    calls: int
    draws: int
    peak: float

    def seconds(self) -> tuple[float, float]:
        """Return what one rank's share takes by its arithmetic, and by its launches."""
        images = IMAGES / RANKS
        arithmetic = images * self.flops * self.count / (self.peak * ASSUMED_MFU)
        kernels = images / BATCH * (self.launches * self.calls + BATCH * self.draws)
        return arithmetic, kernels * LAUNCH


def measured(call: Callable[[int], Any]) -> tuple[float, int]:
    """Return the operations on one image and the kernels of one batch of a call on B images."""
    with torch.no_grad(), CostMeter() as meter, Launches() as counted:
        call(2)
    kernels = [name for name in counted.names if name != "device"]  # a question of fake tensors
    return meter.flops / 2, len(kernels)


def wavediff(recipe: str) -> list[Pass]:
    """Return the passes of a WaveDiff generator: one for each of its steps."""
    config = find_recipe(recipe)().objective
    assert isinstance(config, WaveDiffConfig)
    objective = config.build()
    network = objective.build_networks()[objective.sampled_network].eval()
    sampler: Any = config.build_sampler(network)
    edge = config.space.edge(config.resolution)

    def call(batch: int) -> Tensor:
        y = torch.empty(batch, config.space.channels, edge, edge)
        t = torch.zeros(batch, dtype=torch.int64)
        result: Tensor = network(y, t, torch.empty(batch, sampler.latent_dim))
        return result

    flops, launches = measured(call)
    steps = sampler.diffusion.steps
    return [Pass(recipe, flops, launches, steps, steps, 1 + 2 * steps, TF32_PEAK)]


def denoiser(recipe: str, sampling: SamplingBase) -> list[Pass]:
    """Return the evaluations of an RDM stage, guidance included; each step draws noise."""
    config = find_recipe(recipe)().objective
    assert isinstance(config, DenoisingConfig)
    objective = config.build()
    network = objective.build_networks()[objective.sampled_network].eval()
    denoise = NetworkDenoiser(network, 0.5)
    edge = config.unet.resolution

    def call(batch: int) -> Tensor:
        labels = torch.zeros(batch, dtype=torch.int64) if config.label_dim else None
        return denoise(torch.empty(batch, 3, edge, edge), 1.0, labels)

    flops, launches = measured(call)
    count, calls = sampling.evaluations(True), sampling.evaluations(False)
    draws = calls // 2 + 1 if sampling.second_order else calls
    return [Pass(recipe, flops, launches, count, calls, draws, GPUS["a100-80g"].peak_flops)]


def inception() -> list[Pass]:
    """Return the detector's pass, at 299 pixels."""
    network = fold_inception(FidInception(("pool",)).eval())
    with FakeTensorMode(allow_non_fake_inputs=True):
        flops, launches = measured(lambda batch: network(torch.empty(batch, 3, 299, 299)))
    return [Pass("FID Inception", flops, launches, 1, 1, 0, FLOAT32_PEAK)]


def report(title: str, edge: int, passes: list[Pass]) -> None:
    """Print a row for each pass, and what bounds the whole."""
    print(title)
    total = 0.0
    for each in passes:
        arithmetic, launches = each.seconds()
        total += max(arithmetic, launches)
        bound = "arithmetic" if arithmetic >= launches else "kernel launches"
        print(
            f"  {each.name:24} {each.flops * each.count / 1e9:10.1f} GFLOP/image in {each.count:3}"
            f" evaluations, {each.calls:3} calls of {each.launches:5} kernels:"
            f" {arithmetic:8.1f} s by arithmetic, {launches:6.1f} s by launches; bound by {bound}"
        )
    codec = IMAGES / RANKS * CODEC[edge] / CORES
    print(
        f"  codec on {CORES} cores, beside the GPU: {codec:.1f} s; start {START:.0f} s;"
        f" in all {max(total, codec) + START:.0f} s = {(max(total, codec) + START) / 60:.1f} min"
    )


def main() -> None:
    """Print the plan of both evaluations."""
    print(
        f"FID of {IMAGES:,} images on {RANKS} A100s, batches of {BATCH}; assumed: {ASSUMED_MFU:.0%}"
        f" of the peak ({GPUS['a100-80g'].peak_flops / 1e12:.0f} TFLOP/s in bfloat16,"
        f" {TF32_PEAK / 1e12:.0f} in TF32, {FLOAT32_PEAK / 1e12:.1f} in float32),"
        f" {LAUNCH * 1e6:.0f} us per kernel"
    )
    detector = inception()  # folding reads its weights
    with FakeTensorMode(allow_non_fake_inputs=True):
        report("WaveDiff CIFAR-10", 32, [*wavediff("wavediff_cifar10"), *detector])
        stages = [
            *denoiser("rdm_imagenet64", presets.IMAGENET_EDM),
            *denoiser("rdm_imagenet256_guided", presets.IMAGENET_RELAY_GUIDED),
        ]
        report("RDM ImageNet-256, guidance 3.5", 256, [*stages, *detector])


if __name__ == "__main__":
    main()
