"""What all backends of packed shards share; a backend only decodes.

Positions to samples, replacement of damaged ones, reading ahead, and the finishing of a batch.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from data_pipelines.images import BadImage
from data_pipelines.packed.prefetch import ShardPrefetcher
from data_pipelines.packed.reader import Samples
from data_pipelines.pipeline import ImageBatch
from data_pipelines.sample_order import Order

T = TypeVar("T")
Stored = TypeVar("Stored")
MAX_REPLACEMENTS = 1000
logger = logging.getLogger(__name__)


class TooManyCorrupt(RuntimeError):  # noqa: N818 (reads better where it is raised)
    """More samples of the set are damaged than `max_corrupt` allows."""


class SampleReader(Generic[Stored]):
    """Maps global positions to samples; a damaged sample is replaced by the next one of the order.

    Which sample stands in depends on the position and on the files alone, so it is the same on any
    number of ranks.

    Args:
        images: The packed set.
        order: The global order over it.
        max_corrupt: Tolerated fraction of damaged samples in the set; one is always allowed.
        prefetcher: Is told how far reading has come.

    Attributes:
        corrupt: Reason by sample index of all damaged samples met so far.
    """

    def __init__(
        self,
        images: Samples[Stored],
        order: Order,
        max_corrupt: float,
        prefetcher: ShardPrefetcher | None = None,
    ) -> None:
        self.images = images
        self._prefetcher = prefetcher
        self.order = order
        self.corrupt: dict[int, str] = {}
        self._allowed = max(1, int(max_corrupt * len(images)))
        self._max_corrupt = max_corrupt
        self._lock = threading.Lock()

    def load(
        self, positions: range, convert: Callable[[int, Stored], T]
    ) -> tuple[list[T], list[int]]:
        """Return the samples at `positions`, converted, and their labels (-1: none).

        Args:
            positions: Global positions.
            convert: Makes what is wanted of a sample's number and of what is stored of it; raises
                BadImage if it cannot.

        Raises:
            TooManyCorrupt: The tolerated fraction of damaged samples is exceeded.
        """
        if self._prefetcher:
            self._prefetcher.advance(positions.start)
        indices = self.order.samples(np.arange(positions.start, positions.stop))
        loaded = [
            self._load_one(position, int(index), convert)
            for position, index in zip(positions, indices, strict=True)
        ]
        return [item for item, _ in loaded], [label for _, label in loaded]

    def close(self) -> None:
        """Stop reading ahead, and close the set."""
        if self._prefetcher:
            self._prefetcher.close()
        self.images.close()

    def _load_one(
        self, position: int, index: int, convert: Callable[[int, Stored], T]
    ) -> tuple[T, int]:
        for candidate in range(position + 1, position + 1 + MAX_REPLACEMENTS):
            try:
                stored, label = self.images.read(index)
                return convert(index, stored), -1 if label is None else label
            except BadImage as error:
                self._note(index, str(error))
                index = int(self.order.samples(np.array([candidate]))[0])
        raise TooManyCorrupt(
            f"{MAX_REPLACEMENTS} samples in a row are damaged from position {position} on;"
            f" run `python -m data_pipelines check {self.images.path}`"
        )

    def _note(self, index: int, reason: str) -> None:
        with self._lock:
            if index in self.corrupt:
                return
            self.corrupt[index] = reason
            count = len(self.corrupt)
        where = f"{self.images.locate(index)} of {self.images.path}"
        logger.warning("%s is replaced by the next of the order: %s", where, reason)
        if count > self._allowed:
            raise TooManyCorrupt(
                f"{count} of {len(self.images)} samples are damaged, more than"
                f" max_corrupt={self._max_corrupt} allows (the last: {where}: {reason});"
                f" find all with `python -m data_pipelines check {self.images.path}`,"
                " then copy or pack the set again"
            )


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


def mirror(images: Tensor, flips: Sequence[bool]) -> Tensor:
    """Return a copy of images [B, 3, H, W] in which the ones marked by `flips` are mirrored."""
    if images.device.type != "cpu":
        mask = to_device(torch.tensor(flips), images.device)
        return torch.where(mask[:, None, None, None], images.flip(3), images)
    mirrored = images.flip(3)  # on the CPU several times faster than torch.where
    for row, flip in enumerate(flips):
        if not flip:
            mirrored[row] = images[row]
    return mirrored


def planes_first(images: Tensor) -> Tensor:
    """Return images [B, H, W, 3] as contiguous [B, 3, H, W]."""
    planes = images.permute(0, 3, 1, 2)
    if images.device.type != "cpu":
        return planes.contiguous()
    copied = torch.empty(planes.shape, dtype=images.dtype)
    for target, source in zip(copied, planes, strict=True):  # twice as fast as contiguous()
        target.copy_(source)
    return copied


class BatchFinisher:
    """Turns decoded images into an ImageBatch: mirroring, box reduction, labels on the device."""

    def __init__(self, order: Order, factor: int, labelled: bool) -> None:
        self._order = order
        self._factor = factor
        self._labelled = labelled

    def flips(self, positions: range) -> list[bool]:
        """Return which of a batch's images are to be mirrored."""
        flips: list[bool] = self._order.flips(np.arange(positions.start, positions.stop)).tolist()
        return flips

    def __call__(self, images: Tensor, labels: Sequence[int], positions: range) -> ImageBatch:
        """Return a batch from images uint8 [B, 3, S, S] that are not mirrored yet."""
        flips = self.flips(positions)
        return self.finish_mirrored(
            mirror(images, flips) if any(flips) else images, labels, positions
        )

    def finish_mirrored(
        self, images: Tensor, labels: Sequence[int], positions: range
    ) -> ImageBatch:
        """Return a batch from images uint8 [B, 3, S, S] that the decoder has mirrored."""
        on_device = to_device(torch.tensor(labels), images.device) if self._labelled else None
        return ImageBatch(
            images=box_reduce(images, self._factor),
            labels=on_device,
            positions=tuple(positions),
        )


def read_ahead(produce: Callable[[int], T], workers: int, depth: int) -> Generator[T]:
    """Yield produce(0), produce(1), ... endlessly, computed ahead by threads.

    Args:
        produce: Pure function of its number; an exception is raised when its turn comes.
        workers: Threads.
        depth: Results that are computed ahead of the one being used, at least one per thread.
    """
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="data_pipelines")
    try:
        for number in itertools.count():
            pending.append(pool.submit(produce, number))
            if len(pending) > max(depth, workers):
                yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
