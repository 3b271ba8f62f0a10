"""How fast each backend delivers a packed set, compared with the bare decoder."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from data_pipelines.backends.build import build_pipeline
from data_pipelines.images import pixel_decoder
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.pipeline import OURS, Backend, DataConfig, ImageBatch, Share


@dataclass(frozen=True)
class Rate:
    """A measured rate.

    Attributes:
        name: What was measured.
        images_per_second: After the first batch.
        first_batch_seconds: From opening the set to the first batch.
    """

    name: str
    images_per_second: float
    first_batch_seconds: float

    def __str__(self) -> str:
        start = f", first batch after {self.first_batch_seconds:.2f} s"
        text = f"{self.name:24s}{self.images_per_second:9.0f} images/s"
        return text + start if self.first_batch_seconds else text


def measure_all(
    path: Path | str, *, resolution: int, batch_size: int, workers: int, seconds: float, device: str
) -> Iterator[Rate | str]:
    """Yield the rate of the bare decoder, then of each backend, or why it cannot be used.

    The set is at a path or at a URL.
    """
    yield measure_pillow(path, resolution=resolution, threads=workers, seconds=seconds)
    for backend in backends():
        config = DataConfig(path=str(path), backend=backend, resolution=resolution, workers=workers)
        try:
            yield measure_backend(config, batch_size=batch_size, seconds=seconds, device=device)
        except ValueError as error:
            yield f"{backend}: {error}"


def measure_backend(
    config: DataConfig, *, batch_size: int, seconds: float, device: str, start: int = 0
) -> Rate:
    """Measure one backend for about `seconds`, after its first batch at position `start`.

    Raises:
        ValueError: The set or the backend cannot be used.
    """
    begin = time.perf_counter()
    pipeline = build_pipeline(config, seed=0, share=Share(0, 1, batch_size), device=device)
    batches = cast("Generator[ImageBatch]", pipeline.batches(start))
    try:
        next(batches)
        first = time.perf_counter() - begin
        rate = _rate(lambda: len(next(batches).positions), seconds)
    finally:
        batches.close()
        pipeline.close()
    return Rate(config.backend, rate, first)


def measure_pillow(path: Path | str, *, resolution: int, threads: int, seconds: float) -> Rate:
    """Measure bare decoding by Pillow from memory in `threads` threads: no reading, no batches.

    Args:
        path: Directory of the set, or its URL.
        resolution: Edge to which original images are resized.
        threads: Threads.
        seconds: About how long to measure.
    """
    images = ShardedImages(path)
    decode = pixel_decoder(images.info.resolution, resolution)
    encoded = [images.read(index)[0] for index in range(min(512, len(images)))]
    images.close()
    chunk = 32
    with ThreadPoolExecutor(threads) as pool:
        endless = itertools.cycle(encoded)

        def step() -> int:
            work = [list(itertools.islice(endless, chunk)) for _ in range(threads)]
            list(pool.map(lambda part: [decode(data) for data in part], work))
            return chunk * threads

        return Rate(f"bare Pillow, {threads} threads", _rate(step, seconds), 0.0)


def backends() -> list[Backend]:
    """Return the backends that read packed sets."""
    return [name for name in OURS if name not in ("webdataset", "synthetic")]


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Return the images per second of a step that returns how many it has done."""
    begin = time.perf_counter()
    done = 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        done += step()
    return done / elapsed
