"""Speed of evaluation: `python -m tests.benchmarks.bench_evaluation [--only frechet ...]`.

Ratios to straightforward implementations, measured in turn in one process, one thread; medians.
Targets are those of the project's issue on evaluation. `--only ranks` starts processes of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image

from data_pipelines.images import Pixels
from data_pipelines.sources.base import Entry
from dist_train.runtime.world import World, init_world
from evaluation.detectors.base import DetectorConfig
from evaluation.detectors.fold_batchnorm import fold_inception
from evaluation.detectors.inception import FidInception
from evaluation.detectors.registry import build_detector
from evaluation.features.extract import extract
from evaluation.image_sets import image_set
from evaluation.image_sets.image_set import open_images
from evaluation.metrics import precision_recall
from evaluation.metrics.frechet import frechet_distance, frechet_of_features
from evaluation.metrics.precision_recall import (
    half_precision_recall,
    manifold_scores,
    stylegan_distance,
)
from evaluation.metrics.statistics import FloatArray, Gaussian, Moments, gaussian_of, moments_of
from evaluation.overlap import cores_of_rank
from tests.ranks import run_ranks

DIM = 2048


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of functions that are run in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def report(what: str, ratio: float, target: float, seconds: str) -> None:
    verdict = "ok" if ratio >= target else "MISSED"
    print(f"  {what:52} {ratio:8.2f}x  (target {target:g}x) {verdict:6} {seconds}", flush=True)


def features(n: int, dim: int, rank: int, shift: float, seed: int) -> FloatArray:
    """Return features with the decaying spectrum of a real extractor's."""
    generator = np.random.default_rng(seed)
    scales = 3 * np.arange(1, rank + 1) ** -0.5
    basis = np.random.default_rng(99).normal(size=(rank, dim)) / np.sqrt(rank)
    x = 0.4 + shift + (generator.normal(size=(n, rank)) * scales) @ basis
    return (x + 0.05 * generator.normal(size=(n, dim))).astype(np.float32)


def with_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """Return the Fréchet distance as pytorch-fid computes it."""
    root = scipy.linalg.sqrtm(a.sigma @ b.sigma).real
    return float(np.square(a.mu - b.mu).sum() + np.trace(a.sigma + b.sigma - 2 * root))


def bench_frechet(rounds: int) -> None:
    x, y = features(3000, DIM, 256, 0.02, 0), features(2600, DIM, 256, 0.0, 1)
    a, b = gaussian_of(x), gaussian_of(y)
    fresh = lambda g: Gaussian(g.mu, g.sigma, g.n)  # noqa: E731 - no cached factor
    assert b.factor().shape[0] == DIM
    times = medians(
        {
            "sqrtm": lambda: with_sqrtm(a, b),
            "cold": lambda: frechet_distance(fresh(a), fresh(b)),
            "cached": lambda: frechet_distance(fresh(a), b),
        },
        rounds,
    )
    for name, target in (("cold", 2.5), ("cached", 4)):
        seconds = f"{times['sqrtm']:.2f} s / {times[name]:.2f} s"
        report(f"FD of 2048-d statistics, {name}", times["sqrtm"] / times[name], target, seconds)
    traces = float(np.trace(a.sigma) + np.trace(b.sigma))
    error = abs(frechet_distance(a, b) - frechet_of_features(x, y)) / traces
    print(f"  error against the features' own singular values: {error:.1e} of the traces")
    x, y = x[:300], y[:260]
    a, b = gaussian_of(x), gaussian_of(y)
    times = medians(
        {"sqrtm": lambda: with_sqrtm(a, b), "features": lambda: frechet_of_features(x, y)}, rounds
    )
    seconds = f"{times['sqrtm']:.2f} s / {times['features'] * 1e3:.0f} ms"
    ratio = times["sqrtm"] / times["features"]
    report("FD of 300 / 260 samples, from features", ratio, 100, seconds)


def plain_precision_recall(gen: FloatArray, ref: FloatArray, k: int = 3, rows: int = 1000) -> tuple:
    """Return precision and recall by blocks of full rows in numpy, float64 as RDM's estimator."""

    def distances(a: FloatArray, b: FloatArray) -> FloatArray:
        squares = np.square(a).sum(1)[:, None] - 2 * (a @ b.T) + np.square(b).sum(1)
        return np.maximum(squares, 0)

    def radii(a: FloatArray) -> FloatArray:
        blocks = (distances(a[i : i + rows], a) for i in range(0, len(a), rows))
        return np.concatenate([np.partition(block, k, axis=1)[:, k] for block in blocks])

    gen, ref = gen.astype(np.float64), ref.astype(np.float64)
    gen_radii, ref_radii = radii(gen), radii(ref)
    precise, recalled = [], np.zeros(len(ref), np.bool_)
    for i in range(0, len(gen), rows):
        block = distances(gen[i : i + rows], ref)
        precise.append((block <= ref_radii).any(1))
        recalled |= (block <= gen_radii[i : i + rows, None]).any(0)
    return float(np.concatenate(precise).mean()), float(recalled.mean())


def bench_precision_recall(rounds: int) -> None:
    x, y = features(10_000, DIM, 256, 0.02, 0), features(10_000, DIM, 256, 0.0, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifold_scores(x, y)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = medians(
        {"plain": lambda: plain_precision_recall(x, y), "ours": lambda: manifold_scores(x, y)},
        rounds,
    )
    seconds = f"{times['plain']:.1f} s / {times['ours']:.1f} s"
    ratio = times["plain"] / times["ours"]
    report("precision and recall, 10k x 10k x 2048", ratio, 3, seconds)
    print(f"  peak memory: {after / 2**20:.2f} GiB, of which {before / 2**20:.2f} before")
    ours = manifold_scores(x, y)
    print(f"  values: {plain_precision_recall(x, y)} and {(ours.precision, ours.recall)}")


def bench_inception(rounds: int) -> None:
    torch.manual_seed(0)
    plain, folded = FidInception().eval(), FidInception().eval()
    folded.load_state_dict(plain.state_dict())
    folded = fold_inception(folded).to(memory_format=torch.channels_last)
    compiled = torch.compile(folded)
    x = torch.randn(16, 3, 299, 299)
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        compiled(last)
        times = medians(
            {
                "plain": lambda: plain(x),
                "eager": lambda: folded(last),
                "compiled": lambda: compiled(last),
            },
            rounds,
        )
        expected = plain(x)["pool"]
        errors = {
            name: float((network(last)["pool"] - expected).norm() / expected.norm())
            for name, network in (("eager", folded), ("compiled", compiled))
        }
    for name, target in (("eager", 1.25), ("compiled", 1.5)):
        rate = f"{16 / times['plain']:.1f} -> {16 / times[name]:.1f} images/s"
        rate += f", relative error {errors[name]:.1e}"
        report(f"Inception features, {name}", times["plain"] / times[name], target, rate)


def extract_images(images: Path, work: Path, seconds: Path) -> None:
    """Extract features as one of several ranks, each on a core of its own."""
    torch.set_num_threads(1)
    world = init_world()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[world.rank % len(cores)]})
    try:
        detector = build_detector(DetectorConfig())
        for _ in range(3):  # loads the network, and its memory is at hand
            detector(torch.zeros(64, 3, 64, 64, dtype=torch.uint8))
        source = open_images(images)
        assert source.identity
        world.barrier()
        started = time.perf_counter(), time.process_time()
        extract(source, source.identity, [detector], work, world)
        wall = time.perf_counter() - started[0]
        slowest = max(world.gather_objects(time.process_time() - started[1]))
        if world.rank == 0:
            seconds.write_text(f"{wall} {slowest}")
    finally:
        os.sched_setaffinity(0, cores)


def bench_ranks(rounds: int) -> None:
    """Wall clock, and CPU time of the slowest rank, which other processes hardly move."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "images").mkdir()
        generator = np.random.default_rng(0)
        for i in range(1024):
            pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{i:04d}.png")
        times: dict[int, list[list[float]]] = {1: [], 2: []}
        for turn in range(rounds):
            for ranks in times:
                work = root / f"work{turn}-{ranks}"
                run_ranks(ranks, extract_images, root / "images", work, root / "seconds")
                times[ranks].append([float(v) for v in (root / "seconds").read_text().split()])
    for kind, name in enumerate(("wall clock", "CPU time of the slowest rank")):
        one, two = ([pair[kind] for pair in times[ranks]] for ranks in (1, 2))
        ratio = statistics.median(a / b for a, b in zip(one, two, strict=True))
        seconds = f"{statistics.median(one):.2f} s / {statistics.median(two):.2f} s, 1024 images"
        report(f"features on 2 ranks, one core each, {name}", ratio, 1.8, seconds)


def bench_moments(rounds: int) -> None:
    """Products of blocks of 1024 rows against one per batch of 64 images."""
    x = features(8192, DIM, 256, 0.0, 0)

    def by_batches() -> Moments:
        moments = Moments.empty(DIM)
        for start in range(0, len(x), 64):
            moments.add(x[start : start + 64])
        return moments

    times = medians({"batches": by_batches, "blocks": lambda: moments_of(x)}, rounds)
    np.testing.assert_allclose(moments_of(x).scatter, by_batches().scatter, rtol=1e-8, atol=1e-6)
    seconds = f"{times['batches']:.2f} s -> {times['blocks']:.2f} s"
    report("moments of 8192 x 2048", times["batches"] / times["blocks"], 2, seconds)


def bench_half_precision(rounds: int) -> None:
    """CPU time of the slowest of 2 ranks, against that of 1 rank."""
    _bench_shared("StyleGAN's P/R, 1500 x 2000 x 256, 2 ranks", score_half, rounds)


def score_half(seconds: Path) -> None:
    gen, ref = features(1500, 256, 128, 0.02, 0), features(2000, 256, 128, 0.0, 1)
    _timed_alone(lambda w: half_precision_recall(gen, ref, 3, stylegan_distance, w), seconds)


def _bench_shared(what: str, function: Callable[[Path], None], rounds: int) -> None:
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(rounds):
            for ranks in times:
                run_ranks(ranks, function, Path(directory) / "seconds")
                times[ranks].append(float((Path(directory) / "seconds").read_text()))
    ratio = statistics.median(a / b for a, b in zip(times[1], times[2], strict=True))
    one, two = (statistics.median(values) for values in times.values())
    report(what, ratio, 1.7, f"CPU of the slowest rank: {one:.2f} s / {two:.2f} s")


def _timed_alone(work: Callable[[World], object], seconds: Path) -> None:
    """Write the CPU seconds of the slowest rank, which other processes hardly move."""
    torch.set_num_threads(1)
    precision_recall.BLOCK = 250
    world = init_world()
    work(world)
    world.barrier()
    started = time.process_time()
    work(world)
    slowest = max(world.gather_objects(time.process_time() - started))
    if world.rank == 0:
        seconds.write_text(str(slowest))


def bench_overlap(rounds: int) -> None:
    """Wall clock with threads against without: hashing, decoding, and both beside a device.

    The device is a stand-in that lets the CPU alone for 40 ms a batch, as a GPU does.
    """
    with tempfile.TemporaryDirectory() as directory:
        generator = np.random.default_rng(0)
        for i in range(512):
            pixels = generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(directory) / f"{i:04d}.png")
        batches = [range(start, start + 64) for start in range(0, 512, 64)]

        def read(device_seconds: float) -> None:
            for _ in open_images(Path(directory)).batches(batches):
                time.sleep(device_seconds)

        def hash_slowly() -> None:
            images = open_images(Path(directory))
            assert isinstance(images, image_set.EncodedImages)
            read = images._read

            def slowly(entry: Entry) -> bytes | Pixels:
                time.sleep(0.002)
                return read(entry)

            images._read = slowly  # type: ignore[assignment]
            assert images.identity

        parts: dict[str, Callable[[], object]] = {
            "hashing 512 files that take 2 ms to open": hash_slowly,
            "decoding 512 PNG files of 256 pixels": lambda: read(0),
            "decoding beside a device busy for 40 ms a batch": lambda: read(0.04),
        }
        for what, part in parts.items():
            ratios = [_wall(part, plainly=True) / _wall(part) for _ in range(rounds + 1)][1:]
            cores = cores_of_rank()
            report(f"{what}, {cores} cores", statistics.median(ratios), 1.3, "wall clock")


def _wall(part: Callable[[], object], *, plainly: bool = False) -> float:
    """Return the seconds of a part; plainly: every item is worked on when it is used."""
    usual = image_set.ahead
    if plainly:
        image_set.ahead = lambda function, items, **_: map(function, items)  # type: ignore
    try:
        start = time.perf_counter()
        part()
        return time.perf_counter() - start
    finally:
        image_set.ahead = usual


BENCHES: dict[str, Callable[[int], None]] = {
    "frechet": bench_frechet,
    "precision_recall": bench_precision_recall,
    "inception": bench_inception,
    "ranks": bench_ranks,
    "moments": bench_moments,
    "half_precision": bench_half_precision,
    "overlap": bench_overlap,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(BENCHES), default=list(BENCHES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        print(name)
        BENCHES[name](options.rounds)


if __name__ == "__main__":
    main()
