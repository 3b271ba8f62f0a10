"""Part d: images per second of every sampler, the WaveDiff paper's protocol, Inception features."""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dist_train.precision import set_float32_mode
from evaluation.detectors.fold_batchnorm import fold_inception
from evaluation.detectors.inception import FidInception
from models.sample_rng import SampleStreams
from models.wavediff.config import WaveDiffConfig
from tests.benchmarks.bench_wavediff import WholeBatchDraws
from tests.gpu.cases import build_sampler, families, one_gpu_run, recipe_names
from tests.gpu.device import Device
from tests.gpu.ledger import Outcome, Task

WARM_UP, REPETITIONS = 10, 300
"""Of the paper's protocol (docs/reference/wavediff.md#8)."""
PATIENCE = 60.0
"""Seconds that the repetitions of one recipe may take; fewer are made of slow ones, and said so."""
BATCH = 64
"""Images at once of RDM's samplers at 64 pixels; 8 at 256."""


def tasks(debug: bool) -> list[Task]:
    names = recipe_names(debug)
    telling = families(names)
    ordered = [*telling, *(name for name in names if name not in telling)]
    samplers = [Task("d", f"samples/{name}", partial(measure_sampling, name)) for name in ordered]
    first = len(telling)
    return [*samplers[:first], Task("d", "inception", measure_inception), *samplers[first:]]


def measure_sampling(name: str, device: Device, work: Path) -> Outcome:
    """Time the sampler with the recipe's own settings: whole batches, after a warm-up."""
    del work
    run = one_gpu_run(name)
    set_float32_mode(run.compute)
    config: Any = run.objective
    objective = config.build()
    with torch.device(device.torch_device):
        network = objective.build_networks()[objective.sampled_network]
        sampler = build_sampler(config, network)
        if isinstance(config, WaveDiffConfig):
            return _by_the_protocol(config, sampler, device)
        return _one_batch(sampler, device)


def _by_the_protocol(config: WaveDiffConfig, sampler: Any, device: Device) -> Outcome:
    """Mean time of a batch over T generator steps and the inverse transform, y_T drawn before."""
    batch = 25 if config.resolution >= 512 else 100
    if device.debug:
        batch = 4

    def generate() -> None:
        with torch.inference_mode():
            sampler.generate(waiting.pop())

    waiting = [WholeBatchDraws(config, batch) for _ in range(2)]
    device.seconds(generate, 1, 0)
    one = device.seconds(generate, 1, 0)[0]
    repetitions = 3 if device.debug else max(min(REPETITIONS, int(PATIENCE / one)), 3)
    warm_up = 1 if device.debug else WARM_UP
    times = []
    for count in (warm_up, repetitions):
        waiting = [WholeBatchDraws(config, batch) for _ in range(count)]
        times = device.seconds(generate, count, 0)
    mean = statistics.mean(times)
    return Outcome(
        {
            "batch": batch,
            "repetitions": repetitions,
            "seconds_per_batch": mean,
            "deviation": statistics.pstdev(times),
            "images_per_second": batch / mean,
        }
    )


def _one_batch(sampler: Any, device: Device) -> Outcome:
    batch = 2 if device.debug else BATCH if sampler.resolution <= 64 else 8
    labels = None
    if sampler.label_dim:
        labels = (torch.arange(batch) % sampler.label_dim).to(device.torch_device)

    def generate() -> None:
        with torch.inference_mode():
            sampler.generate(SampleStreams(range(batch), device.torch_device), labels)

    began = time.perf_counter()
    (seconds,) = device.seconds(generate, 1, 0)
    if time.perf_counter() - began < PATIENCE / 2:  # the first one had kernels to choose
        (seconds,) = device.seconds(generate, 1, 0)
    return Outcome(
        {
            "batch": batch,
            "evaluations": sampler.nfe,
            "seconds_per_batch": seconds,
            "images_per_second": batch / seconds,
        }
    )


def measure_inception(device: Device, work: Path) -> Outcome:
    """Images per second of the FID Inception in float32, as it is, folded, and compiled."""
    del work
    torch.manual_seed(0)
    batch = 2 if device.debug else 64
    plain = FidInception().eval()
    folded = FidInception().eval()
    folded.load_state_dict(plain.state_dict())
    folded = fold_inception(folded).to(device.torch_device, memory_format=torch.channels_last)
    plain = plain.to(device.torch_device)
    networks: dict[str, Any] = {"plain": plain, "folded": folded}
    if not device.debug:
        networks["compiled"] = torch.compile(folded)
    x = torch.randn(batch, 3, 299, 299, device=device.torch_device)
    rounds = 1 if device.debug else 10
    outcome = Outcome()
    with torch.inference_mode():
        expected = plain(x)["pool"]
        for name, network in networks.items():
            times = device.seconds(partial(network, x), rounds, 1)
            outcome.numbers[f"{name}/images_per_second"] = batch / statistics.median(times)
            got = network(x)["pool"]
            error = float((got - expected).norm() / expected.norm())
            outcome.bound(f"{name}/error", error, 1e-4)
    return outcome
