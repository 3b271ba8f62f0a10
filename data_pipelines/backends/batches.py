"""From decoded images to batches on a device: reading ahead, flips, box reduction, labels."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from data_pipelines.packed.manifest import DatasetInfo
from data_pipelines.pipeline import ImageBatch, Share
from data_pipelines.sample_order import Order

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What all backends of packed sets need besides the data; see DataConfig.

    Attributes:
        share: The micro-batches of this rank.
        device: Where the batches go.
        workers: Threads that read and decode.
        prefetch: Micro-batches prepared ahead.
        max_corrupt: Tolerated fraction of damaged samples.
    """

    share: Share
    device: torch.device
    workers: int
    prefetch: int
    max_corrupt: float


class BatchFinisher:
    """Turns decoded images into an ImageBatch: flips, box reduction, labels on the device.

    Args:
        order: Says which visits are flipped.
        info: Says whether there are labels.
        factor: Edge of the boxes that images are reduced by.
    """

    def __init__(self, order: Order, info: DatasetInfo, factor: int = 1) -> None:
        self._order, self._factor = order, factor
        self._labelled = bool(info.class_names)

    def flips(self, positions: range) -> list[bool]:
        """Return which images of a batch are flipped horizontally."""
        flips: list[bool] = self._order.flips(np.arange(positions.start, positions.stop)).tolist()
        return flips

    def __call__(self, images: Tensor, labels: Sequence[int], positions: range) -> ImageBatch:
        """Return a batch from images uint8 [B, 3, S, S] that are not flipped yet."""
        return self.finish_flipped(hflip(images, self.flips(positions)), labels, positions)

    def finish_flipped(self, images: Tensor, labels: Sequence[int], positions: range) -> ImageBatch:
        """Return a batch from images uint8 [B, 3, S, S] that the decoder has flipped."""
        on_device = to_device(torch.tensor(labels), images.device) if self._labelled else None
        return ImageBatch(
            images=box_reduce(images, self._factor),
            labels=on_device,
            positions=tuple(positions),
        )


def hflip(images: Tensor, flips: Sequence[bool]) -> Tensor:
    """Return images [B, 3, H, W], those marked by `flips` flipped horizontally."""
    if not any(flips):
        return images
    mask = to_device(torch.tensor(flips), images.device)
    return torch.where(mask[:, None, None, None], images.flip(3), images)


def box_reduce(images: Tensor, factor: int) -> Tensor:
    """Average blocks of factor x factor pixels, rounding halves up; exact on any device.

    Args:
        images: uint8 [B, 3, H, W], H and W multiples of factor.
        factor: Edge of a block; 1 returns the images themselves.

    Returns:
        uint8 [B, 3, H / factor, W / factor].
    """
    if factor == 1:
        return images
    batch, channels, height, width = images.shape
    blocks = images.view(batch, channels, height // factor, factor, width // factor, factor)
    area = factor * factor
    sums = blocks.sum(dim=(3, 5), dtype=torch.int32)
    return ((sums + area // 2) // area).to(torch.uint8)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a CPU tensor to a device without waiting for the copy."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def read_ahead(produce: Callable[[int], T], workers: int, depth: int) -> Generator[T]:
    """Yield produce(0), produce(1), ... endlessly, computed ahead by threads.

    Args:
        produce: Pure function of its number; an exception is raised when its turn comes.
        workers: Threads.
        depth: Results that are computed ahead of the one being used, at least one per thread.
    """
    jobs = (functools.partial(produce, number) for number in itertools.count())
    return run_ahead(jobs, workers, depth)


def run_ahead(jobs: Iterable[Callable[[], T]], workers: int, depth: int) -> Generator[T]:
    """Yield the results of endless jobs, in order, as `read_ahead` does; this thread makes them."""
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="data_pipelines")
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) > max(depth, workers):
                yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
