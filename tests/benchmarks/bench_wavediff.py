"""Speed of WaveDiff: `python -m tests.benchmarks.bench_wavediff [--threads 1 2] [--only haar ...]`.

Ratios to the same networks on plain definitions (wavediff_reference.py), measured in turn in one
process on an otherwise idle machine. Each round times every variant once, in an order that changes
from round to round (what ran before decides how much fresh memory the next one must be given by the
kernel), and a ratio is the median over rounds of the ratios within a round. Results are freshly
allocated, as in use. Targets are those of the project's issue on WaveDiff.
`--only protocol` measures sampling as the paper does: T steps and the inverse transform, warmed up,
per batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.objective import Example
from models.wavediff.config import WaveDiffConfig
from models.wavediff.haar import haar_dwt, haar_idwt
from models.wavediff.objective import WaveDiffObjective
from models.wavediff.presets import PRESETS
from tests.benchmarks import wavediff_reference as reference

CHANNELS_LAST = torch.channels_last
VARIANTS = ("other_layout", "compiled")
"""What is not the default: the other memory layout of activations, and torch.compile."""

FRUGAL = "plain, G not differentiated"
"""Plain definitions, but as the official trainer of WaveDiff; "plain" is as that of DDGAN, which
computes and discards the gradient of the generator in the discriminator's step."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of functions in each round, after one that warms up and compiles."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for round_ in range(rounds + 1):
        for name in names:
            start = clock()
            functions[name]()
            if round_:
                times[name].append(clock() - start)
        names = names[1:] + names[:1] if round_ % 2 else names[::-1]
    return times


def ratio(times: dict[str, list[float]], name: str, to: str) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def report(what: str, times: dict[str, list[float]], target: float) -> None:
    """Print medians, and ratios to each of the plain variants, of which there may be two."""
    print(f"  {what}, target {target:g}x")
    references = [name for name in times if name.startswith("plain")]
    for name, seconds in times.items():
        ratios = ", ".join(f"{ratio(times, other, name):.2f}x of {other}" for other in references)
        print(f"    {name:24} {statistics.median(seconds) * 1e3:8.1f} ms: {ratios}", flush=True)


def chosen(runs: dict[str, Callable[[], object]], variants: Sequence[str]) -> dict:
    """Leave out the variants that are not asked for."""
    wanted = {"plain", FRUGAL, "ours", *(f"ours, {variant}" for variant in variants)}
    return {name: run for name, run in runs.items() if name in wanted}


def bench_haar(rounds: int, variants: Sequence[str]) -> None:
    images = torch.rand(8, 3, 256, 256) * 2 - 1
    y = haar_dwt(images)
    copy = torch.empty_like(images)
    for what, ours, plain, target in (
        ("Haar transform 8x3x256x256", lambda: haar_dwt(images), reference.haar_dwt, 5),
        ("Haar inverse 8x3x256x256", lambda: haar_idwt(y), reference.haar_idwt, 3),
    ):
        argument = images if plain is reference.haar_dwt else y
        times = measure(
            {
                "plain": lambda plain=plain, argument=argument: plain(argument),
                "ours": ours,
                "copy": lambda: copy.copy_(images),
            },
            8 * rounds,
        )
        report(what, times, target)
        print(f"    {ratio(times, 'ours', 'copy'):.1f} times a copy (one read, one write)")


def bench_generator(rounds: int, variants: Sequence[str]) -> None:
    for preset, batch, target in (
        ("wavediff_cifar10", 8, 1.25),
        ("wavediff_lsun_church256", 1, 1.1),
    ):
        config = PRESETS[preset]()
        network, *given = generator_and_inputs(config, batch)
        ours = generator_and_inputs(config, batch)[0]
        config.build_sampler(ours)  # lays it out
        compiled = torch.compile(ours, dynamic=False)

        def plain(network=network, given=given) -> object:
            with reference.plainly():
                return network(*given)

        runs = {
            "plain": plain,
            "ours": lambda network=ours, given=given: network(*given),
            "ours, other_layout": lambda network=network, given=given: network(*given),
            "ours, compiled": lambda network=compiled, given=given: network(*given),
        }
        with torch.inference_mode():
            times = measure(chosen(runs, variants), rounds)
            report(f"generator {preset}, batch {batch}", times, target)


def generator_and_inputs(config: WaveDiffConfig, batch: int) -> list:
    torch.manual_seed(0)
    network = config.build().build_networks()["generator"].eval()
    edge = config.space.edge(config.resolution)
    y = torch.randn(batch, config.space.channels, edge, edge)
    t = torch.arange(batch) % config.diffusion.steps
    return [network, y, t, torch.randn(batch, config.generator.latent_dim)]


def bench_training(rounds: int, variants: Sequence[str]) -> None:
    bench_pair("wavediff_cifar10", rounds, variants)


def bench_ddgan(rounds: int, variants: Sequence[str]) -> None:
    bench_pair("ddgan_cifar10", rounds, variants)


def bench_pair(preset: str, rounds: int, variants: Sequence[str]) -> None:
    objective = PRESETS[preset]().build()
    plain, frugal = PlainPair(objective, discarding=True), PlainPair(objective)
    ours, last = Pair(objective), Pair(objective, CHANNELS_LAST)
    compiled = Pair(objective, compiled=True)

    for what, step, target in (
        ("discriminator step without R1", lambda pair: pair.update("discriminator", 1), 1.6),
        ("discriminator step with R1", lambda pair: pair.update("discriminator", 0), 1.6),
        ("pair iteration without R1", lambda pair: pair.iterate(1), 1.4),
        ("pair iteration with R1", lambda pair: pair.iterate(0), 1.4),
    ):
        runs = {
            "plain": lambda step=step: step(plain),
            FRUGAL: lambda step=step: step(frugal),
            "ours": lambda step=step: step(ours),
            "ours, other_layout": lambda step=step: step(last),
            "ours, compiled": lambda step=step: step(compiled),
        }
        report(f"{what}, {preset}", measure(chosen(runs, variants), rounds), target)


class Pair:
    """Networks, optimizers and a batch of a training iteration.

    As in training, the layout is that of the batch, not of the weights, and only the generator can
    be compiled: R1 differentiates twice.
    """

    def __init__(
        self,
        objective: WaveDiffObjective,
        layout: torch.memory_format = torch.contiguous_format,
        *,
        compiled: bool = False,
        batch: int = 8,
    ) -> None:
        torch.manual_seed(0)
        self.objective, self.losses = objective, objective.losses()
        self.networks: dict[str, nn.Module] = objective.build_networks()
        self.adam = {
            name: torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.5, 0.9), fused=True)
            for name, network in self.networks.items()
        }
        if compiled:
            self.networks["generator"] = torch.compile(self.networks["generator"], dynamic=False)
        size = objective.resolution
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        x = objective.prepare(images).contiguous(memory_format=layout)
        self.example = Example(x, None, tuple(range(batch)), seed=0)

    def update(self, name: str, step: int) -> None:
        for other, network in self.networks.items():
            network.requires_grad_(other == name)
        loss, _ = self.losses[name](self.networks, self.example, step)
        self.adam[name].zero_grad()
        loss.backward()
        self.adam[name].step()

    def iterate(self, step: int) -> None:
        for name in self.losses:
            self.update(name, step)


class PlainPair(Pair):
    """The same on plain definitions, with the official three backward passes through D.

    Args:
        objective: As of Pair.
        discarding: Whether D's step computes G's gradient, too, and discards it.
    """

    def __init__(self, objective: WaveDiffObjective, *, discarding: bool = False) -> None:
        super().__init__(objective)
        self.discarding = discarding

    def update(self, name: str, step: int) -> None:
        with reference.plainly():
            if name == "generator":
                super().update(name, step)
                return
            self.networks["discriminator"].requires_grad_(True)
            self.networks["generator"].requires_grad_(self.discarding)
            for adam in self.adam.values():
                adam.zero_grad()
            reference.discriminator_backward(
                self.objective, self.networks, self.example, step, discarding=self.discarding
            )
            self.adam[name].step()


def bench_protocol(rounds: int, presets: list[str], batch: int, device: str) -> None:
    """Time T generator steps and the inverse transform per batch as the paper, y_T drawn before."""
    for preset in presets:
        config = PRESETS[preset]()
        sampler = config.build_sampler(generator_and_inputs(config, 1)[0].to(device))
        seconds = []
        for _ in range(rounds + max(1, rounds // 30)):
            draws = WholeBatchDraws(config, batch, device)
            synchronise(device)
            start = time.perf_counter()
            with torch.inference_mode():
                sampler.generate(draws)
            synchronise(device)
            seconds.append(time.perf_counter() - start)
        timed = seconds[-rounds:]
        mean = statistics.mean(timed)
        print(
            f"  {preset}: batch {batch}, {mean:.3f} s per batch (deviation"
            f" {statistics.pstdev(timed):.3f}), {batch / mean:.1f} images/s on {device}"
        )


class WholeBatchDraws:
    """Draws (models.sample_rng) of a whole batch at once; the first ones are made in advance."""

    def __init__(self, config: WaveDiffConfig, batch: int, device: str) -> None:
        edge = config.space.edge(config.resolution)
        self.batch, self.device = batch, device
        self.waiting = [torch.randn(batch, config.space.channels, edge, edge, device=device)]

    def __len__(self) -> int:
        return self.batch

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        if self.waiting:
            return self.waiting.pop()
        return torch.randn(self.batch, *shape, dtype=dtype, device=self.device)

    def rand(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(self.batch, *shape, dtype=dtype, device=self.device)

    def randint(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        return torch.randint(high, (self.batch, *shape), device=self.device)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


BENCHES = {
    "haar": bench_haar,
    "generator": bench_generator,
    "training": bench_training,
    "ddgan": bench_ddgan,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="timed runs (the paper: 300)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: one thread on a busy machine"
    )
    parser.add_argument("--only", nargs="+", choices=[*BENCHES, "protocol"], default=list(BENCHES))
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, default=VARIANTS, help="compiling takes minutes"
    )
    parser.add_argument("--presets", nargs="+", default=["wavediff_cifar10"], choices=list(PRESETS))
    parser.add_argument("--batch", type=int, default=8, help="protocol: batch (the paper: 100)")
    parser.add_argument("--device", default="cpu", help="protocol: cpu or cuda")
    options = parser.parse_args()
    global clock
    clock = CLOCKS[options.clock]
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"{threads} thread(s)")
        for name in options.only:
            if name == "protocol":
                bench_protocol(options.rounds, options.presets, options.batch, options.device)
            else:
                BENCHES[name](options.rounds, options.variants)


if __name__ == "__main__":
    main()
