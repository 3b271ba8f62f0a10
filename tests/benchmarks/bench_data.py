"""Speed of packing and of all backends, as ratios to a plain PyTorch loader and the bare decoder.

    python -m tests.benchmarks.bench_data IMAGE_FOLDER [--rounds 3] [--seconds 3]

Packs the folder at 64 and 256 pixels as PNG and JPEG into a temporary folder, and measures in
alternation, on two threads: (a) torch's DataLoader with Pillow and 2 workers on the same packed
samples; (b) the bare decoder, libjpeg-turbo for JPEG (through ctypes) and Pillow for PNG, from
memory; and each backend. Prints medians and ratios as a Markdown table.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_pipelines.bench import measure_backend
from data_pipelines.beton import write_beton
from data_pipelines.images import centre_square, decode_rgb, encode
from data_pipelines.pack import pack
from data_pipelines.pack_options import PackOptions
from data_pipelines.pipeline import DataConfig
from data_pipelines.shards import ShardedImages
from data_pipelines.sources.kinds import make_source

THREADS = 2
BATCH = 32
BACKENDS = ("dali", "webdataset", "ffcv")


class Packed(Dataset[Tensor]):
    """The packed samples, one by one, as a plain PyTorch data set; repeated for long epochs."""

    def __init__(self, path: Path) -> None:
        self._images = ShardedImages(path)

    def __len__(self) -> int:
        return 200 * len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images.decode(index % len(self._images))


def rate(step: Callable[[], int], seconds: float) -> float:
    begin, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        done += step()
    return done / elapsed


def torch_loader(path: Path, seconds: float) -> float:
    loader = DataLoader(Packed(path), BATCH, shuffle=True, num_workers=THREADS)
    batches = iter(loader)
    next(batches)
    return rate(lambda: len(next(batches)), seconds)


def in_threads(work: Callable[[bytes], object], encoded: list[bytes], seconds: float) -> float:
    """Return items per second of a function of encoded bytes, in THREADS bare threads."""
    endless = itertools.cycle(encoded)
    with ThreadPoolExecutor(THREADS) as pool:

        def step() -> int:
            parts = [list(itertools.islice(endless, 64)) for _ in range(THREADS)]
            list(pool.map(lambda part: [work(data) for data in part], parts))
            return 64 * THREADS

        return rate(step, seconds)


def turbo_decoder(edge: int) -> Callable[[bytes], object] | None:
    """Return libjpeg-turbo's accurate decoder of square images, None if it is not installed."""
    name = ctypes.util.find_library("turbojpeg")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    library.tjInitDecompress.restype = ctypes.c_void_p

    def decode(data: bytes) -> object:
        handle = ctypes.c_void_p(library.tjInitDecompress())
        pixels = ctypes.create_string_buffer(3 * edge * edge)
        size = ctypes.c_ulong(len(data))
        code = library.tjDecompress2(handle, data, size, pixels, edge, 3 * edge, edge, 0, 4096)
        library.tjDestroy(handle)
        assert code == 0
        return pixels

    return decode


def measure_set(path: Path, seconds: float, rounds: int) -> dict[str, float]:
    """Return median images/s by name."""
    images = ShardedImages(path)
    edge = images.info.resolution
    encoded = [images.read(index)[0] for index in range(len(images))]
    jpeg = images.manifest.options["image_format"] == "jpeg"
    bare = (turbo_decoder(edge) if jpeg else None) or decode_rgb
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        found.setdefault("torch", []).append(torch_loader(path, seconds))
        found.setdefault("bare", []).append(in_threads(bare, encoded, seconds))
        for backend in BACKENDS:
            config = DataConfig(
                path=str(path), backend=backend, resolution=edge, flip=True, workers=THREADS
            )
            measured = measure_backend(config, batch_size=BATCH, seconds=seconds, device="cpu")
            found.setdefault(backend, []).append(measured.images_per_second)
    return {name: statistics.median(rates) for name, rates in found.items()}


def measure_packing(source: Path, folder: Path, seconds: float, rounds: int) -> tuple[float, float]:
    """Return images/s of packing at 256 pixels as JPEG, and of the same work in bare threads."""
    made = make_source("folder", source)
    entries = made.list_items().entries
    with made.open() as read:
        files = [data for data in map(read, entries) if isinstance(data, bytes)]

    def work(data: bytes) -> bytes:
        return encode(centre_square(decode_rgb(data), 256), "jpeg", 95)

    packing, bare = [], []
    for number in range(rounds):
        bare.append(in_threads(work, files, seconds))
        begin = time.perf_counter()
        options = PackOptions(resolution=256, image_format="jpeg")
        pack(made, folder / f"packing{number}", options, workers=THREADS)
        packing.append(len(entries) / (time.perf_counter() - begin))
    return statistics.median(packing), statistics.median(bare)


def packed_sets(source: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    for image_format in ("jpeg", "png"):
        options = PackOptions(resolution=(64, 256), image_format=image_format)
        for path in pack(make_source("folder", source), folder / image_format, options):
            write_beton(path)
            yield f"{path.name} {image_format}", path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| set | (a) torch | (b) bare | " + " | ".join(BACKENDS) + " | best/(a) | best/(b) |")
        print("|---" * (5 + len(BACKENDS)) + "|")
        for title, path in packed_sets(arguments.source, folder):
            rates = measure_set(path, arguments.seconds, arguments.rounds)
            best = max(rates[backend] for backend in BACKENDS)
            cells = [rates["torch"], rates["bare"], *(rates[backend] for backend in BACKENDS)]
            text = " | ".join(f"{cell:.0f}" for cell in cells)
            print(
                f"| {title} | {text} | {best / cells[0]:.2f} | {best / cells[1]:.2f} |", flush=True
            )
        packing, bare = measure_packing(
            arguments.source, folder, arguments.seconds, arguments.rounds
        )
        print(
            f"packing at 256 as JPEG: {packing:.0f} images/s, {packing / bare:.2f} of bare threads"
        )


if __name__ == "__main__":
    main()
