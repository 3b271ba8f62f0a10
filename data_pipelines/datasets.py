"""The packed sets of a configuration as one numbered collection of samples, with its order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from data_pipelines.images import ORIGINAL
from data_pipelines.packed.beton import check_beton
from data_pipelines.packed.manifest import DatasetInfo, canonical_json
from data_pipelines.packed.prefetch import RemoteShards, ShardPrefetcher
from data_pipelines.packed.reader import DEFAULT_CACHE, Samples, ShardedImages
from data_pipelines.packed.remote import FileCache
from data_pipelines.pipeline import DataConfig
from data_pipelines.sample_order import (
    Integers,
    MixedOrder,
    Order,
    SampleOrder,
    SelectedOrder,
    hash_words,
    quotas,
    subset,
)


@dataclass(frozen=True)
class OpenedData:
    """What a backend streams.

    Attributes:
        sets: The packed sets.
        samples: The samples of all sets, by number.
        order: The global order over them.
        info: Their description; num_images counts an epoch of the selection.
        factor: Edge of the boxes that reduce stored images to the configured resolution.
        prefetcher: Downloads the coming shards of remote sets; None if all are local.
    """

    sets: tuple[ShardedImages, ...]
    samples: ShardedImages | JoinedImages
    order: Order
    info: DatasetInfo
    factor: int
    prefetcher: ShardPrefetcher | None


def open_data(config: DataConfig, seed: int) -> OpenedData:
    """Open the sets of a configuration.

    Raises:
        ValueError: A set is missing or damaged, or the settings do not fit the sets.
    """
    paths = [config.path, *(other.path for other in config.mix)]
    folder = Path(config.cache) if config.cache else DEFAULT_CACHE.folder
    cache = FileCache(folder, int(config.cache_gb * 1e9))
    sets = tuple(ShardedImages(path, cache=cache) for path in paths)
    for part in sets:
        _check_backend(part, config.backend)
    selections = [_selection(part, config) for part in sets]
    orders = [
        _order(part, selection, config, _set_seed(seed, number))
        for number, (part, selection) in enumerate(zip(sets, selections, strict=True))
    ]
    chosen = [
        len(part) if selection is None else len(selection)
        for part, selection in zip(sets, selections, strict=True)
    ]
    factor = check_resolution(config, sets[0].info.resolution)
    if len(sets) == 1:
        info = replace(sets[0].info, num_images=chosen[0])
        ahead = _prefetcher(sets, sets[0], orders[0], cache)
        return OpenedData(sets, sets[0], orders[0], info, factor, ahead)
    _check_alike(sets)
    weights = [config.weight, *(other.weight for other in config.mix)]
    order = MixedOrder(tuple(orders), tuple(map(len, sets)), quotas(weights), seed)
    identity = canonical_json([[part.info.digest for part in sets], weights])
    info = replace(
        sets[0].info, num_images=sum(chosen), digest=hashlib.sha256(identity).hexdigest()
    )
    joined = JoinedImages(sets)
    return OpenedData(sets, joined, order, info, factor, _prefetcher(sets, joined, order, cache))


def _prefetcher(
    sets: Sequence[ShardedImages], joined: RemoteShards, order: Order, cache: FileCache
) -> ShardPrefetcher | None:
    """Return what downloads ahead, leaving the cache room for one more shard."""
    remote = [part for part in sets if part.is_remote]
    if not remote:
        return None
    largest = max(shard.num_bytes for part in remote for shard in part.manifest.shards)
    return ShardPrefetcher(joined, order, cache.max_bytes - largest)


def _check_backend(images: ShardedImages, backend: str) -> None:
    if images.manifest.only_beton and backend != "ffcv":
        raise ValueError(
            f"{images.path} is a beton alone, without shards, which backend={backend!r} cannot"
            " read; set data.backend=ffcv, or pack with --output both"
        )
    if images.info.resolution == ORIGINAL and backend == "ffcv":
        raise ValueError(
            f"{images.path} holds images of any size, which backend='ffcv' cannot resize;"
            " set data.backend=dali, or pack at one resolution"
        )
    if images.is_remote and backend == "ffcv":
        raise ValueError("backend='ffcv' reads local sets; copy the set, or set data.backend=dali")
    if backend == "ffcv":
        check_beton(images.path, images.info.digest)


def check_resolution(config: DataConfig, stored: int) -> int:
    """Return the box reduction's factor, 1 for images of any size, which are resized.

    Raises:
        ValueError: The stored edge is no multiple.
    """
    if stored == ORIGINAL:
        return 1
    if stored % config.resolution:
        raise ValueError(
            f"resolution={config.resolution} does not divide the {stored} pixels of {config.path};"
            f" set it to {stored} or a divisor, or pack the set at {config.resolution}"
        )
    return stored // config.resolution


def _selection(images: ShardedImages, config: DataConfig) -> Integers | None:
    """Return the samples that the class filter and the subset leave, None for all."""
    if not config.classes and config.subset is None:
        return None
    chosen: Integers = np.arange(len(images))
    if config.classes:
        names = images.info.class_names
        unknown = [name for name in config.classes if name not in names]
        if unknown:
            known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"
            raise ValueError(f"classes: {images.path} has no {unknown[0]!r}; it has {known}")
        labels = [names.index(name) for name in config.classes]
        chosen = np.flatnonzero(np.isin(images.index["label"], labels))
    if config.subset is not None:
        if config.subset > len(chosen):
            raise ValueError(f"subset={config.subset} of {len(chosen)} images in {images.path}")
        chosen = chosen[subset(len(chosen), config.subset)]
    if not len(chosen):
        raise ValueError(f"classes={list(config.classes)} have no images in {images.path}")
    return chosen


def _order(
    images: ShardedImages, selection: Integers | None, config: DataConfig, seed: int
) -> Order:
    count = len(images) if selection is None else len(selection)
    bounds = None
    window = config.shuffle_window
    if window is None and images.is_remote:
        window = images.manifest.shuffle_window or None
    if window is not None:
        shards = images.index["shard"] if selection is None else images.index["shard"][selection]
        bounds = np.searchsorted(shards, np.arange(len(images.manifest.shards) + 1))
    order = SampleOrder(count, seed, config.shuffle, config.flip, window, bounds)
    return order if selection is None else SelectedOrder(order, selection)


def _set_seed(seed: int, number: int) -> int:
    """Return the seed of a mix's set; the first set keeps the run's."""
    return seed if number == 0 else int(hash_words(seed, number)[0] >> np.uint64(1))


def _check_alike(sets: Sequence[ShardedImages]) -> None:
    """Raise ValueError unless the sets of a mix have one resolution and one class table."""
    first, *others = (part.info for part in sets)
    for part, info in zip(sets[1:], others, strict=True):
        if info.resolution != first.resolution:
            raise ValueError(
                f"mix: {part.path} has {info.resolution} pixels, {sets[0].path} {first.resolution};"
                " pack them alike"
            )
        if info.class_names != first.class_names:
            raise ValueError(
                f"mix: {part.path} and {sets[0].path} have other class tables;"
                " pack them with the same classes, or --unlabelled"
            )


Stored = TypeVar("Stored")


class Joined(Generic[Stored]):
    """The samples of several sets."""

    def __init__(self, parts: Sequence[Samples[Stored]]) -> None:
        self.path = Path(" + ".join(str(part.path) for part in parts))
        self._samples = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> tuple[Stored, int | None]:
        """Return what is stored of a sample, and its label. Raises BadImage if it is damaged."""
        part, within = self._find(index)
        return part.read(within)

    def locate(self, index: int) -> str:
        """Return where a sample lies, for messages."""
        part, within = self._find(index)
        return f"{part.locate(within)} of {part.path}"

    def close(self) -> None:
        """Close all sets."""
        for part in self._samples:
            part.close()

    def _find(self, index: int) -> tuple[Samples[Stored], int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._samples[number], index - int(self._ends[number]) + len(self._samples[number])


class JoinedImages(Joined[bytes]):
    """The samples of several sets in shards, which are numbered one set behind the other, too."""

    def __init__(self, parts: Sequence[ShardedImages]) -> None:
        super().__init__(parts)
        self._parts = parts
        self._first_shards = np.cumsum([0, *(len(part.manifest.shards) for part in parts)])

    def shards_of(self, samples: Integers) -> Integers:
        """Return the shard that holds each sample."""
        numbers = np.searchsorted(self._ends, samples, side="right")
        shards = np.empty_like(samples)
        for number, part in enumerate(self._parts):
            rows = np.flatnonzero(numbers == number)
            within = samples[rows] - (self._ends[number] - len(part))
            shards[rows] = self._first_shards[number] + part.shards_of(within)
        return shards

    def num_bytes(self, shard: int) -> int:
        """Return the size of a remote shard, 0 of a local one."""
        part, within = self._find_shard(shard)
        return part.num_bytes(within)

    def fetch(self, shard: int) -> None:
        """Have a remote shard in the local cache. Raises Unreachable if it cannot be had."""
        part, within = self._find_shard(shard)
        part.fetch(within)

    def _find_shard(self, shard: int) -> tuple[ShardedImages, int]:
        number = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        return self._parts[number], shard - int(self._first_shards[number])
