"""Speed of RDM's arithmetic: `python -m tests.benchmarks.bench_rdm [--threads 1 2] [--only ...]`.

Ratios to plain implementations of the definitions (rdm_reference.py), measured alternately in one
process on an otherwise idle machine; medians. Targets are those of the project's issue on RDM.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from models.rdm.block_noise import block_noise
from models.rdm.dct import tile_blur
from models.rdm.process import RelayProcess
from models.rdm.relay_sampler import RelaySampling, heun_update, step_matrices
from models.rdm.unet import UNet, UNetConfig
from models.sample_rng import SampleStreams
from tests.benchmarks import rdm_reference as reference

SHAPE = (8, 3, 256, 256)
PROCESS = RelayProcess()


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of functions that are run in turn.

    Each is timed in its steady state, right after an untimed call of itself: else the memory that
    its predecessor gave back to the system would be charged to it.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def report(what: str, ratio: float, target: float, at_least: bool = True) -> None:
    met = ratio >= target if at_least else ratio <= target
    bound = ">=" if at_least else "<="
    print(f"  {what:58} {ratio:6.2f}x  (target {bound} {target:g}x) {'ok' if met else 'MISSED'}")


def bench_corruption(rounds: int) -> None:
    """Compare with two floors: what torch.randn takes for the batch, and what the streams take."""
    images = torch.rand(SHAPE) * 2 - 1
    streams = SampleStreams(range(SHAPE[0]))

    def ours() -> None:
        level = PROCESS.sample_level(streams)
        PROCESS.corrupt(images, level, streams)
        PROCESS.weight(level.sigma)

    times = medians(
        {
            "plain": lambda: reference.corrupt(images, PROCESS),
            "ours": ours,
            "torch.randn": lambda: (torch.randn(SHAPE), torch.randn(SHAPE)),
            "streams": lambda: (streams.randn(SHAPE[1:]), streams.randn(SHAPE[1:])),
        },
        rounds,
    )
    report("corruption with its draws, against the definitions", times["plain"] / times["ours"], 8)
    for floor in ("torch.randn", "streams"):
        what = f"corruption with its draws, against two draws by {floor}"
        report(what, times["ours"] / times[floor], 1.6, at_least=False)
    print("    (" + ", ".join(f"{name} {t * 1e3:.1f} ms" for name, t in times.items()) + ")")


def bench_parts(rounds: int) -> None:
    images, blur_sigma = torch.rand(SHAPE) * 2 - 1, torch.rand(SHAPE[0]) * 3
    gaussian = torch.randn(SHAPE)
    times = medians(
        {
            "plain blur": lambda: reference.blur(images, blur_sigma, 4, 1e-3),
            "blur": lambda: tile_blur(images, blur_sigma, 4, 1e-3),
            "plain blocks": lambda: reference.block_noise(gaussian, 4),
            "blocks": lambda: block_noise(gaussian, 4),
        },
        rounds,
    )
    report("blur", times["plain blur"] / times["blur"], 20)
    report("block noise, draw given", times["plain blocks"] / times["blocks"], 6)


def bench_sampler(rounds: int) -> None:
    settings = RelaySampling()
    t, t_next = settings.levels()[2:4]
    a, a_next = PROCESS.attenuation_at(torch.tensor([t, t_next], dtype=torch.float64))
    matrix = step_matrices(PROCESS, settings, [t], [t_next])[0]
    gamma = (1 - settings.eta**2) ** 0.5 * t_next / t
    double = [torch.randn(SHAPE, dtype=torch.float64) for _ in range(5)]

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

    times = medians(
        {"plain": plain, "float32": ours(torch.float32), "float64": ours(torch.float64)}, rounds
    )
    report("sampler arithmetic per Heun step, float32", times["plain"] / times["float32"], 12)
    report("sampler arithmetic per Heun step, float64", times["plain"] / times["float64"], 4)


def bench_network(rounds: int) -> None:
    """Forward, and forward with backward, at 64 pixels with 64 model channels."""
    for label, settings, layout, compiled in (
        ("float32", {}, torch.contiguous_format, False),
        ("float32, channels_last", {}, torch.channels_last, False),
        ("float32, compiled", {}, torch.contiguous_format, True),
        ("float32, channels_last, compiled", {}, torch.channels_last, True),
        ("bfloat16", {"compute_dtype": "bfloat16"}, torch.contiguous_format, False),
        ("bfloat16, channels_last", {"compute_dtype": "bfloat16"}, torch.channels_last, False),
        ("float32, recomputed blocks", {"recompute_blocks": True}, torch.contiguous_format, False),
    ):
        config = UNetConfig(
            resolution=64, model_channels=64, channel_mult=(1, 2, 3, 4), num_blocks=1,
            attn_resolutions=(16, 8), **settings,
        )  # fmt: skip
        network = UNet(config).to(memory_format=layout)
        called = torch.compile(network) if compiled else network
        x = torch.randn(4, 3, 64, 64).contiguous(memory_format=layout)
        noise = torch.zeros(4)

        def forward(called=called, x=x, noise=noise) -> None:
            with torch.no_grad():
                called(x, noise)

        def both(called=called, x=x, noise=noise) -> None:
            called(x, noise).float().square().mean().backward()

        times = medians({"forward": forward, "both": both}, max(rounds // 2, 3))
        print(
            f"  {label:34} forward {times['forward'] * 1e3:7.1f} ms"
            f"   with backward {times['both'] * 1e3:7.1f} ms",
            flush=True,
        )


BENCHES = {
    "corruption": bench_corruption,
    "parts": bench_parts,
    "sampler": bench_sampler,
    "network": bench_network,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"{threads} thread(s), {'x'.join(map(str, SHAPE))}")
        for name in arguments.only:
            BENCHES[name](arguments.rounds)


if __name__ == "__main__":
    main()
