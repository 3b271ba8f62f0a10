"""The packed sets of a configuration as one numbered collection of samples, with its order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_pipelines.images import ORIGINAL
from data_pipelines.packed.beton import check_beton
from data_pipelines.packed.joined import JoinedImages
from data_pipelines.packed.manifest import DatasetInfo
from data_pipelines.packed.prefetch import ShardPrefetcher
from data_pipelines.packed.reader import DEFAULT_CACHE, ShardedImages
from data_pipelines.packed.remote import FileCache
from data_pipelines.pipeline import Backend, DataConfig
from data_pipelines.sample_order import (
    Integers,
    MixedOrder,
    Order,
    SampleOrder,
    SelectedOrder,
    classes_per_batch,
    hash_words,
    quotas,
    subset,
)
from models.safe_files.documents import canonical_json


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
        ValueError: A set is missing or damaged, or the settings do not match the sets.
        Unreachable: A remote set cannot be read.
    """
    cache = _cache(config)
    paths = [config.path, *(other.path for other in config.mix)]
    sets = tuple(ShardedImages(path, cache=cache) for path in paths)
    for images in sets:
        _check_backend(images, config.backend)
    selected = [(images, _selection(images, config.classes, config.subset)) for images in sets]
    orders = tuple(
        _order(images, chosen, config, _set_seed(seed, number))
        for number, (images, chosen) in enumerate(selected)
    )
    factor = box_factor(sets[0].info.resolution, config.resolution, config.path)
    samples: ShardedImages | JoinedImages = sets[0]
    order: Order = orders[0]
    digests = [_digest(images, chosen) for images, chosen in selected]
    windows = [_windows(images, chosen, config) for images, chosen in selected]
    info = replace(sets[0].info, digest=digests[0], order=_windows_digest(windows))
    if len(sets) > 1:
        _check_alike(sets)
        weights = [config.weight, *(other.weight for other in config.mix)]
        samples = JoinedImages(sets)
        order = MixedOrder(orders, tuple(map(len, sets)), quotas(weights), seed)
        info = replace(info, digest=_joint_digest(digests, weights))
    counts = [len(part) if chosen is None else len(chosen) for part, chosen in selected]
    info = replace(info, num_images=sum(counts), class_counts=_class_counts(selected))
    prefetcher = _prefetcher(sets, samples, order, cache)
    return OpenedData(sets, samples, order, info, factor, prefetcher)


def _cache(config: DataConfig) -> FileCache:
    path = Path(config.cache) if config.cache else DEFAULT_CACHE.path
    return FileCache(path, int(config.cache_gb * 1e9), config.outage_seconds)


def box_factor(stored: int, resolution: int, path: str) -> int:
    """Return the edge of the boxes that reduce images of a stored edge to a resolution.

    It is 1 for sets of images of any size, which are resized instead.

    Raises:
        ValueError: The stored edge is no multiple of the resolution.
    """
    if stored == ORIGINAL:
        return 1
    if stored % resolution:
        raise ValueError(
            f"resolution={resolution} does not divide the {stored} pixels of {path};"
            f" set it to {stored} or a divisor, or pack the set at {resolution}"
        )
    return stored // resolution


def _check_backend(images: ShardedImages, backend: Backend) -> None:
    """Raise ValueError if a backend cannot read a set."""
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
        check_beton(images.path, images.manifest)


def _selection(
    images: ShardedImages, classes: Sequence[str], subset_size: int | None
) -> Integers | None:
    """Return the samples that the class filter and the subset leave, None for all."""
    if not classes and subset_size is None:
        return None
    chosen: Integers = np.arange(len(images))
    if classes:
        names = images.info.class_names
        unknown = [name for name in classes if name not in names]
        if unknown:
            known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"
            raise ValueError(f"classes: {images.path} has no {unknown[0]!r}; it has {known}")
        labels = [names.index(name) for name in classes]
        chosen = np.flatnonzero(np.isin(images.index["label"], labels))
    if subset_size is not None:
        if subset_size > len(chosen):
            raise ValueError(f"subset={subset_size} of {len(chosen)} images in {images.path}")
        chosen = chosen[subset(len(chosen), subset_size)]
    if not len(chosen):
        raise ValueError(f"classes={list(classes)} have no images in {images.path}")
    return chosen


def _order(
    images: ShardedImages, selection: Integers | None, config: DataConfig, seed: int
) -> Order:
    count = len(images) if selection is None else len(selection)
    window, bounds = _windows(images, selection, config)
    order = SampleOrder(count, seed, config.shuffle, config.flip, window, bounds)
    return order if selection is None else SelectedOrder(order, selection)


def _windows(
    images: ShardedImages, selection: Integers | None, config: DataConfig
) -> tuple[int | None, Integers | None]:
    """Return the window of a set's shuffle, None for all images, and where its shards begin."""
    window = config.shuffle_window
    if window is None and images.is_remote:
        window = images.manifest.shuffle_window or None
    if window is None or not config.shuffle:
        return None, None
    return window, _shard_bounds(images, selection)


def _shard_bounds(images: ShardedImages, selection: Integers | None) -> Integers:
    """Return where each shard's selected samples start, and the end, int64 [shards + 1]."""
    shards = images.index["shard"] if selection is None else images.index["shard"][selection]
    return np.searchsorted(shards, np.arange(len(images.manifest.shards) + 1))


def mixing(path: Path, batch_size: int) -> tuple[float, float]:
    """Return how many classes a batch of a labelled set holds, by the two default shuffles.

    Args:
        path: Directory of the set.
        batch_size: Global batch size, at most the set's size.

    Returns:
        Classes per batch if all images are shuffled with each other, as for local sets, and if they
        are shuffled within the manifest's window, as for remote ones.
    """
    images = ShardedImages(path)
    labels, window = images.index["label"], images.manifest.shuffle_window or None
    bounds = _shard_bounds(images, None)
    orders = [SampleOrder(len(images), seed=0, window=w, bounds=bounds) for w in (None, window)]
    in_full, in_window = (classes_per_batch(order, labels, batch_size) for order in orders)
    images.close()
    return in_full, in_window


def _windows_digest(windows: Sequence[tuple[int | None, Integers | None]]) -> str:
    """Return what identifies the windows of all sets, "" if there are none."""
    if all(window is None for window, _ in windows):
        return ""
    listed = [[window, [] if first is None else first.tolist()] for window, first in windows]
    return hashlib.sha256(canonical_json(listed)).hexdigest()


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


def _class_counts(
    selected: Sequence[tuple[ShardedImages, Integers | None]],
) -> tuple[int, ...]:
    """Return how many of the selected samples of all sets each class has."""
    classes = len(selected[0][0].info.class_names)
    counts = np.zeros(classes, np.int64)
    for images, chosen in selected if classes else ():
        if chosen is None:  # the index need not be read for that
            counts += images.manifest.class_counts
        else:
            counts += np.bincount(images.index["label"][chosen], minlength=classes)
    return tuple(counts.tolist())


def _digest(images: ShardedImages, selection: Integers | None) -> str:
    """Return what identifies the selected samples of a set: all of them have the set's digest."""
    if selection is None or len(selection) == len(images):
        return images.info.digest
    identity = canonical_json({"digest": images.info.digest, "samples": len(selection)})
    return hashlib.sha256(identity + np.asarray(selection, "<i8").tobytes()).hexdigest()


def _joint_digest(digests: Sequence[str], weights: Sequence[float]) -> str:
    """Return what identifies a mix: its sets, in order, and how often each is drawn from."""
    return hashlib.sha256(canonical_json([list(digests), weights])).hexdigest()


def _prefetcher(
    sets: Sequence[ShardedImages],
    samples: ShardedImages | JoinedImages,
    order: Order,
    cache: FileCache,
) -> ShardPrefetcher | None:
    """Return the prefetcher of remote sets, which leaves room for one more shard in the cache."""
    remote = [part for part in sets if part.is_remote]
    if not remote:
        return None
    largest = max(shard.num_bytes for part in remote for shard in part.manifest.shards)
    return ShardPrefetcher(samples, order, cache.max_bytes - largest)
