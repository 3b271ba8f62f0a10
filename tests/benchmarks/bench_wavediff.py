"""WaveDiff against its definitions: `python -m tests.benchmarks.bench_wavediff [--device cuda]`.

Medians of time and their ratios to the same networks on plain definitions (wavediff_reference.py),
in turn in one process; and, whatever the device, the operations launched and the bytes that they
touch. `--only protocol` measures sampling as the paper does: T steps and the inverse transform,
warmed up, per batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.objective import Example
from models.wavediff.config import WaveDiffConfig
from models.wavediff.haar import haar_dwt, haar_idwt
from models.wavediff.objective import WaveDiffObjective
from models.wavediff.presets import PRESETS
from tests.benchmarks import wavediff_reference as reference
from tests.benchmarks.timing import compare, synchronise


def bench_haar(rounds: int) -> None:
    images = torch.rand(8, 3, 256, 256) * 2 - 1
    y = haar_dwt(images)
    analysis = {
        "definition": lambda: reference.haar_dwt(images),
        "ours": lambda: haar_dwt(images),
    }
    synthesis = {"definition": lambda: reference.haar_idwt(y), "ours": lambda: haar_idwt(y)}
    compare("Haar transform 8x3x256x256", analysis, 4 * rounds)
    compare("Haar inverse 8x3x256x256", synthesis, 4 * rounds)


def bench_generator(rounds: int) -> None:
    for preset, batch in (("wavediff_cifar10", 8), ("wavediff_lsun_church256", 1)):
        network, *given = generator_and_inputs(PRESETS[preset](), batch)

        def plain(network=network, given=given) -> object:
            with reference.plainly():
                return network(*given)

        def ours(network=network, given=given) -> object:
            return network(*given)

        with torch.inference_mode():
            compare(f"generator {preset}, batch {batch}", {"plain": plain, "ours": ours}, rounds)


def generator_and_inputs(config: WaveDiffConfig, batch: int) -> list:
    torch.manual_seed(0)
    network = config.build().build_networks()["generator"].eval()
    edge = config.space.edge(config.resolution)
    y = torch.randn(batch, config.space.channels, edge, edge)
    t = torch.arange(batch) % config.diffusion.steps
    return [network, y, t, torch.randn(batch, config.generator.latent_dim)]


def bench_training(rounds: int) -> None:
    objective = PRESETS["wavediff_cifar10"]().build()
    plain, ours = PlainPair(objective), Pair(objective)
    for what, step in (
        ("discriminator step without R1", lambda pair: pair.update("discriminator", 1)),
        ("discriminator step with R1", lambda pair: pair.update("discriminator", 0)),
        ("pair iteration without R1", lambda pair: pair.iterate(1)),
        ("pair iteration with R1", lambda pair: pair.iterate(0)),
    ):
        runs = {"plain": lambda step=step: step(plain), "ours": lambda step=step: step(ours)}
        compare(f"{what}, wavediff_cifar10, batch 8", runs, rounds)


class Pair:
    """Networks, optimizers and a batch of a training iteration."""

    def __init__(self, objective: WaveDiffObjective, batch: int = 8) -> None:
        torch.manual_seed(0)
        self.objective, self.losses = objective, objective.losses()
        self.networks: dict[str, nn.Module] = objective.build_networks()
        self.adam = {
            name: torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.5, 0.9), fused=True)
            for name, network in self.networks.items()
        }
        size = objective.resolution
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        self.example = Example(objective.prepare(images), None, tuple(range(batch)), seed=0)

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
    """The same on plain definitions, with the official three backward passes through D."""

    def update(self, name: str, step: int) -> None:
        with reference.plainly():
            if name == "generator":
                super().update(name, step)
                return
            for other, network in self.networks.items():
                network.requires_grad_(other == name)
            self.adam[name].zero_grad()
            reference.discriminator_backward(self.objective, self.networks, self.example, step)
            self.adam[name].step()


def bench_protocol(rounds: int, presets: list[str], batch: int) -> None:
    """Time T generator steps and the inverse transform per batch as the paper, y_T drawn before."""
    for preset in presets:
        config = PRESETS[preset]()
        sampler = config.build_sampler(generator_and_inputs(config, 1)[0])
        seconds = []
        for _ in range(rounds + max(1, rounds // 30)):
            draws = WholeBatchDraws(config, batch)
            synchronise()
            start = time.perf_counter()
            with torch.inference_mode():
                sampler.generate(draws)
            synchronise()
            seconds.append(time.perf_counter() - start)
        timed = seconds[-rounds:]
        mean = statistics.mean(timed)
        print(
            f"  {preset}: batch {batch}, {mean:.3f} s per batch (deviation"
            f" {statistics.pstdev(timed):.3f}), {batch / mean:.1f} images/s"
        )


class WholeBatchDraws:
    """Draws (models.sample_rng) of a whole batch at once; the first ones are made in advance."""

    def __init__(self, config: WaveDiffConfig, batch: int) -> None:
        edge = config.space.edge(config.resolution)
        self.batch = batch
        self.waiting = [torch.randn(batch, config.space.channels, edge, edge)]

    def __len__(self) -> int:
        return self.batch

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        if self.waiting:
            return self.waiting.pop()
        return torch.randn(self.batch, *shape, dtype=dtype)

    def rand(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(self.batch, *shape, dtype=dtype)

    def randint(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        return torch.randint(high, (self.batch, *shape))


BENCHES = {"haar": bench_haar, "generator": bench_generator, "training": bench_training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs (the paper: 300)")
    parser.add_argument("--only", nargs="+", choices=[*BENCHES, "protocol"], default=list(BENCHES))
    parser.add_argument("--presets", nargs="+", default=["wavediff_cifar10"], choices=list(PRESETS))
    parser.add_argument("--batch", type=int, default=8, help="protocol: batch (the paper: 100)")
    arguments = parser.parse_args()
    torch.set_default_device(arguments.device)
    print(f"on {arguments.device}")
    for name in arguments.only:
        if name == "protocol":
            bench_protocol(arguments.rounds, arguments.presets, arguments.batch)
        else:
            BENCHES[name](arguments.rounds)


if __name__ == "__main__":
    main()
