"""What the data benchmark measures."""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_pipelines.bench import measure_backend
from data_pipelines.datasets import open_data
from data_pipelines.images import Resize, centre_square, decode, encode, pixel_decoder
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.pipeline import Backend, DataConfig
from data_pipelines.sample_order import SampleOrder, classes_per_batch
from data_pipelines.sources.kinds import make_source

THREADS = 2
BATCH = 32
RAW_EDGE = 256
BACKENDS: tuple[Backend, ...] = ("dali", "pillow", "ffcv")
COLUMNS = ("(a) torch", "(b) bare", *BACKENDS, "best / (a)", "best / (b)")


class Samples(Dataset[Tensor]):
    """The samples of a set, one by one, as a plain PyTorch data set; repeated for long epochs."""

    def __init__(self, path: Path) -> None:
        self._images = ShardedImages(path)
        self._decode = pixel_decoder(self._images.info.resolution, RAW_EDGE)

    def __len__(self) -> int:
        return 200 * len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        encoded, _ = self._images.read(index % len(self._images))
        return torch.from_numpy(np.ascontiguousarray(self._decode(encoded)))


def rate(step: Callable[[], int], seconds: float) -> float:
    begin, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        done += step()
    return done / elapsed


def torch_loader(path: Path, seconds: float) -> float:
    loader = DataLoader(Samples(path), BATCH, shuffle=True, num_workers=THREADS)
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


def turbo_decoder() -> Callable[[bytes], object] | None:
    """Return libjpeg-turbo's accurate decoder, None if it is not installed."""
    name = ctypes.util.find_library("turbojpeg")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    library.tjInitDecompress.restype = ctypes.c_void_p

    def turbo(data: bytes) -> object:
        handle = ctypes.c_void_p(library.tjInitDecompress())
        size = ctypes.c_ulong(len(data))
        width, height, other = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        fields = (ctypes.byref(number) for number in (width, height, other, other))
        library.tjDecompressHeader3(handle, data, size, *fields)
        pixels = ctypes.create_string_buffer(3 * width.value * height.value)
        edges = (width, 3 * width.value, height)
        code = library.tjDecompress2(handle, data, size, pixels, *edges, 0, 4096)
        library.tjDestroy(handle)
        return pixels if code == 0 else decode(data)  # CMYK, or no JPEG at all

    return turbo


def alternate(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median of each measure over rounds in which all take turns."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: statistics.median(values) for name, values in found.items()}


def backend_rate(
    path: Path, backend: Backend, edge: int, seconds: float, resize: Resize = "pillow"
) -> float:
    config = DataConfig(
        path=str(path),
        backend=backend,
        resolution=edge,
        flip=True,
        workers=THREADS,
        resize=resize,
    )
    measured = measure_backend(config, batch_size=BATCH, seconds=seconds, device="cpu")
    return measured.images_per_second


def encoded_samples(path: Path) -> list[bytes]:
    images = ShardedImages(path)
    encoded = [images.read(index)[0] for index in range(len(images))]
    images.close()
    return encoded


def measure_set(path: Path, seconds: float, rounds: int) -> dict[str, float]:
    """Return median images/s by name for a set of one size."""
    encoded = encoded_samples(path)
    edge = ShardedImages(path).info.resolution
    jpeg = encoded[0].startswith(b"\xff\xd8")
    bare = (turbo_decoder() if jpeg else None) or decode
    measures: dict[str, Callable[[], float]] = {
        "torch": lambda: torch_loader(path, seconds),
        "bare": lambda: in_threads(bare, encoded, seconds),
    }
    for backend in BACKENDS:
        measures[backend] = lambda backend=backend: backend_rate(path, backend, edge, seconds)
    return alternate(measures, rounds)


def print_raw(path: Path, seconds: float, rounds: int) -> None:
    """Measure original files that are cropped and resized, and print the table's rows."""
    encoded = encoded_samples(path)
    resized = pixel_decoder(0, RAW_EDGE)
    bare = turbo_decoder() or decode
    found = alternate(
        {
            "torch": lambda: torch_loader(path, seconds),
            "bare": lambda: in_threads(bare, encoded, seconds),
            "resized": lambda: in_threads(resized, encoded, seconds),
            "dali": lambda: backend_rate(path, "dali", RAW_EDGE, seconds),
            "pillow": lambda: backend_rate(path, "pillow", RAW_EDGE, seconds),
            "fast": lambda: backend_rate(path, "pillow", RAW_EDGE, seconds, resize="torch"),
        },
        rounds,
    )
    resized, fast = found.pop("resized"), found.pop("fast")
    print_row("raw to 256", found)
    print_row("raw to 256, resize=torch", {**found, "pillow": fast})
    print(f"(Pillow's decoding and resizing in 2 bare threads: {resized:.0f})")


def print_title() -> None:
    print("| set | " + " | ".join(COLUMNS) + " |")
    print("|---" * (1 + len(COLUMNS)) + "|", flush=True)


def print_row(title: str, rates: dict[str, float]) -> None:
    best = max(rates[backend] for backend in BACKENDS if backend in rates)
    cells = [
        f"{rates[name]:.0f}" if name in rates else "-" for name in ("torch", "bare", *BACKENDS)
    ]
    ratios = f"{best / rates['torch']:.2f} | {best / rates['bare']:.2f}"
    print(f"| {title} | {' | '.join(cells)} | {ratios} |", flush=True)


def measure_packing(source: Path, work_dir: Path, seconds: float, rounds: int) -> None:
    """Compare the command `pack` at 256 pixels as JPEG with the same work in bare threads.

    The source is taken eight times, so that the start of the processes does not decide.
    """
    for number in range(8):
        (work_dir / "many").mkdir(exist_ok=True)
        (work_dir / f"many/{number}").symlink_to(source.absolute())
    made = make_source("folder", work_dir / "many")
    entries = made.list_items().entries
    with made.open() as read:
        files = [data for data in map(read, entries) if isinstance(data, bytes)]
    numbers = itertools.count()

    def packing() -> float:
        begin = time.perf_counter()
        places = [str(work_dir / "many"), str(work_dir / f"packing{next(numbers)}")]
        options = f"--resolution 256 --format jpeg --duplicates keep --workers {THREADS}".split()
        command = [sys.executable, "-m", "data_pipelines", "pack", "folder", *places, *options]
        subprocess.run(command, check=True, capture_output=True)
        return len(entries) / (time.perf_counter() - begin)

    def bare() -> float:
        return in_threads(
            lambda data: encode(centre_square(decode(data), 256), "jpeg", 95), files, seconds
        )

    found = alternate({"bare": bare, "packing": packing}, rounds)
    ratio = found["packing"] / found["bare"]
    print(f"packing at 256 as JPEG: {found['packing']:.0f} images/s, {ratio:.2f} of bare threads")


def measure_million(path: Path) -> None:
    """Print the time to the first batch and the memory of opening a set of a million samples.

    A backend's first line includes its import, and compiling. CPU time counts all threads.
    """
    for backend in BACKENDS:
        for start in (0, 10**13 + 7):
            for window in (None, 10_000):
                config = DataConfig(
                    path=str(path), backend=backend, resolution=8, shuffle_window=window
                )
                begin = time.process_time()
                measured = measure_backend(
                    config, batch_size=BATCH, seconds=0.0, device="cpu", start=start
                )
                spent = f"{time.process_time() - begin:.2f} s of CPU time"
                title = f"{backend}, position {start:.0e}, window {window}"
                print(f"{title}: first batch after {measured.first_batch_seconds:.2f} s, {spent}")
    tracemalloc.start()
    data = open_data(DataConfig(path=str(path), backend="dali", resolution=8), seed=0)
    data.order.samples(np.arange(10**9, 10**9 + BATCH))
    print(f"memory of the set and its order: {tracemalloc.get_traced_memory()[1] / 1e6:.2f} MB")
    tracemalloc.stop()


def shuffle_table(shards: int = 900, per_shard: int = 1400) -> None:
    """Print how well the orders of a set of ImageNet's size mix, by window."""
    count = shards * per_shard
    bounds = np.arange(shards + 1) * per_shard
    labels = np.arange(count) * 1000 // count
    print(
        "| window (shards) | distance of neighbours | same shard | shards per 1000"
        " | classes per 4096 |"
    )
    print("|---|---|---|---|---|")
    for window in (1, 2, 8, 32, 128, None):
        images = None if window is None else window * per_shard
        order = SampleOrder(count, seed=1, window=images, bounds=bounds)
        first = order.samples(np.arange(count))
        distance = np.abs(np.diff(first)).mean() / (count / 3)
        same = (first[1:] // per_shard == first[:-1] // per_shard).mean()
        stretches = first[: count // 1000 * 1000].reshape(-1, 1000) // per_shard
        touched = np.mean([len(np.unique(stretch)) for stretch in stretches[::10]])
        name = "all (full shuffle)" if window is None else window
        classes = classes_per_batch(order, labels, 4096)
        print(f"| {name} | {distance:.2f} | {same:.4f} | {touched:.0f} | {classes:.0f} |")
