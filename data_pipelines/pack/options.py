"""What determines the content of packed sets, besides their source: options and selections."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_pipelines.images import ORIGINAL, Filter, ImageFormat
from data_pipelines.packed.beton import import_ffcv
from data_pipelines.sources.base import Entry, Listing, name_bytes

ORIGINAL_EDGE = 400
"""Edge of an image of about as many bytes as an original of ImageNet, to choose the shard size."""


class PackError(ValueError):
    """Packing cannot continue; the message is one line. What was finished stays."""


class NothingUsable(PackError):  # noqa: N818 (what was found)
    """No image can be used, or too few: what was written is of no use to any command."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """The options that determine the content of a set.

    Attributes:
        resolution: Edge of the stored images in pixels. ORIGINAL keeps the files of the source.
            Several make one set each, in one pass over the source.
        filter: `lanczos` cuts the centred square, then resizes it, as RDM's tools do; `bilinear`
            resizes the shorter side, then cuts, as WaveDiff's loaders do.
        image_format: `png` and `webp` are lossless, `jpeg` is smaller. Original images keep theirs
            if it is JPEG or WebP, and else become PNG.
        quality: JPEG quality, 1..95.
        shard_images: Source items per shard; null gives shards of roughly 128 MB.
        limit: Take only the first items of the source.
        subset: Take at most this many items, from each class its share.
        holdout: Put this many items, from each class its share, into a set of their own.
        min_edge: Skip images whose shorter side has fewer pixels.
        labelled: Store the classes; otherwise the set is unlabelled.
        keep_duplicates: Keep images of equal pixels; null keeps them in published benchmark sets
            only, whose counts are known, and skips all but the first elsewhere.
    """

    resolution: int | tuple[int, ...]
    filter: Filter = "lanczos"
    image_format: ImageFormat = "png"
    quality: int = 95
    shard_images: int | None = None
    limit: int | None = None
    subset: int | None = None
    holdout: int | None = None
    min_edge: int = 16
    labelled: bool = True
    keep_duplicates: bool | None = None

    def __post_init__(self) -> None:
        for name in ("min_edge", "shard_images", "limit", "subset", "holdout"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PackError(f"{name}={value} must be positive")
        if not self.resolutions or min(self.resolutions) < 0:
            raise PackError(f"resolution={self.resolution} must be positive")
        if self.resolutions == (ORIGINAL,) and self.image_format != "png":
            raise PackError(
                f"format={self.image_format}: original images keep their own format;"
                " leave --format out, or give a resolution"
            )
        if self.resolutions == (ORIGINAL,) and self.filter != "lanczos":
            raise PackError(
                f"filter={self.filter}: original images are not resized; leave --filter out,"
                " or give a resolution"
            )
        if len(set(self.resolutions)) < len(self.resolutions):
            raise PackError(f"resolution={self.resolution} names one size twice")
        if not 1 <= self.quality <= 95:
            raise PackError(f"quality={self.quality} must be in 1..95")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """All stored resolutions."""
        return (self.resolution,) if isinstance(self.resolution, int) else self.resolution

    def resolved(self, published: bool) -> PackOptions:
        """Return the options with the source's defaults in place of null."""
        largest = ORIGINAL_EDGE if ORIGINAL in self.resolutions else max(self.resolutions)
        per_shard = max(64, min(16384, 2**28 // (3 * largest**2 // 2 + 1)))
        keep = published if self.keep_duplicates is None else self.keep_duplicates
        return replace(
            self,
            resolution=self.resolutions,
            shard_images=self.shard_images or per_shard,
            keep_duplicates=keep,
        )


def select(listing: Listing, options: PackOptions) -> Listing:
    """Return what is packed of a listing, the hold-out included.

    Raises:
        PackError: The subset would leave nothing.
    """
    entries = listing.entries[: options.limit]
    if options.subset is not None and options.subset < len(entries):
        chosen = stratified(entries, options.subset, "subset")
        entries = [entry for place, entry in enumerate(entries) if place in chosen]
    return replace(listing, entries=entries)


def stratified(entries: Sequence[Entry], count: int, purpose: str) -> set[int]:
    """Choose `count` positions such that each class has its share, to within one.

    Within a class the choice is by a hash of the name: it does not depend on the order, and differs
    between purposes.

    Raises:
        PackError: There are not more than `count` entries.
    """
    if count >= len(entries):
        raise PackError(f"{purpose}={count} of {len(entries)} items leaves none; take fewer")
    by_class: dict[int, list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        by_class[entry.label].append(place)
    chosen: set[int] = set()
    seen = 0
    for label in sorted(by_class):
        places = sorted(
            by_class[label], key=lambda place: choice_hash(purpose, entries[place].name)
        )
        before = seen * count // len(entries)
        seen += len(places)
        chosen.update(places[: seen * count // len(entries) - before])
    return chosen


def choice_hash(purpose: str, name: str) -> bytes:
    """Return what the choice by names is sorted by, for a subset or a hold-out."""
    return hashlib.blake2b(name_bytes(f"{purpose}/{name}"), digest_size=16).digest()


def check_beton_options(options: PackOptions) -> None:
    """Raise ValueError, before anything is packed, if the result could not become a beton."""
    import_ffcv()
    if ORIGINAL in options.resolutions:
        raise ValueError("FFCV needs images of one size; give a resolution, or --output webdataset")
