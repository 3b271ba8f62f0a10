"""RDM's arithmetic against its definitions: `python -m tests.benchmarks.bench_rdm [--device cuda]`.

Medians of time and their ratios to plain implementations (rdm_reference.py), in turn in one
process; and, whatever the device, the operations launched and the bytes that they touch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from models.rdm.block_noise import block_noise
from models.rdm.dct import tile_blur
from models.rdm.process import RelayProcess
from models.rdm.relay_sampler import RelaySampling, heun_update, step_matrices
from models.sample_rng import SampleStreams
from tests.benchmarks import rdm_reference as reference
from tests.benchmarks.timing import compare

SHAPE = (8, 3, 256, 256)
PROCESS = RelayProcess()


def bench_corruption(rounds: int) -> None:
    images = torch.rand(SHAPE) * 2 - 1
    streams = SampleStreams(range(SHAPE[0]), images.device)

    def ours() -> None:
        level = PROCESS.sample_level(streams)
        PROCESS.corrupt(images, level, streams)
        PROCESS.weight(level.sigma)

    runs = {"definitions": lambda: reference.corrupt(images, PROCESS), "ours": ours}
    compare("corruption, draws included", runs, rounds)


def bench_parts(rounds: int) -> None:
    images, blur_sigma = torch.rand(SHAPE) * 2 - 1, torch.rand(SHAPE[0]) * 3
    blurs = {
        "definition": lambda: reference.blur(images, blur_sigma, 4, 1e-3),
        "ours": lambda: tile_blur(images, blur_sigma, 4, 1e-3),
    }
    compare("blur", blurs, rounds)
    gaussian = torch.randn(SHAPE)
    noises = {
        "definition": lambda: reference.block_noise(gaussian, 4),
        "ours": lambda: block_noise(gaussian, 4),
    }
    compare("block noise without its draw", noises, rounds)


def bench_sampler(rounds: int) -> None:
    settings = RelaySampling()
    t, t_next = settings.levels()[2:4]
    double = [torch.randn(SHAPE, dtype=torch.float64) for _ in range(5)]
    device = double[0].device
    levels = torch.tensor([t, t_next], dtype=torch.float64, device=device)
    a, a_next = PROCESS.attenuation_at(levels)
    matrix = step_matrices(PROCESS, settings, [t], [t_next])[0].to(device)
    gamma = (1 - settings.eta**2) ** 0.5 * t_next / t

    def plain() -> None:
        x, first, second, *noises = double
        reference.heun_step(x, first, second, noises, a, a_next, t, t_next, settings.eta, 4)

    def ours(dtype: torch.dtype) -> Callable[[], None]:
        x, first, second, *noises = (tensor.to(dtype) for tensor in double)
        tile_matrix = matrix.to(dtype)
        amplitude = settings.eta * t_next

        def step() -> None:
            end = heun_update(x, first, None, tile_matrix, gamma, t / t_next)
            end = end.add_(noises[0], alpha=amplitude)
            end = heun_update(x, first, end - second, tile_matrix, gamma, t / t_next)
            end.add_(noises[1], alpha=amplitude)

        return step

    runs = {
        "definition, float64": plain,
        "ours, float64": ours(torch.float64),
        "ours, float32": ours(torch.float32),
    }
    compare("arithmetic of a sampler's Heun step", runs, rounds)


BENCHES = {"corruption": bench_corruption, "parts": bench_parts, "sampler": bench_sampler}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    arguments = parser.parse_args()
    torch.set_default_device(arguments.device)
    print(f"{'x'.join(map(str, SHAPE))} on {arguments.device}")
    for name in arguments.only:
        BENCHES[name](arguments.rounds)


if __name__ == "__main__":
    main()
