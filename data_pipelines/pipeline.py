"""The interface between image sets and what consumes images: the settings, batches, pipelines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Protocol

import torch
from torch import Tensor

from data_pipelines.images import Resize
from data_pipelines.packed.manifest import DatasetInfo
from data_pipelines.remote_files import OUTAGE_SECONDS, check_no_credentials, is_remote
from data_pipelines.shard_urls import names_tars
from models.plugins import Registry


@dataclass(frozen=True, kw_only=True)
class MixedSet:
    """A further set that a pipeline draws from.

    Attributes:
        path: Directory of packed shards, of the same resolution and classes as the first set.
        weight: How often it is drawn from, relative to the other sets.
    """

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} must be positive")


@dataclass(frozen=True)
class BackendKind:
    """A backend of a plugin.

    Attributes:
        build: Returns the pipeline of (settings, the run's seed, the rank's share, its device).
        describe: Returns what it would deliver: on login nodes too, before anything is queued.
    """

    build: Callable[[DataConfig, int, Share, torch.device], ImagePipeline]
    describe: Callable[[DataConfig], DatasetInfo]


OURS = ("dali", "pillow", "ffcv", "webdataset", "synthetic")
BACKENDS: Registry[BackendKind | None] = Registry("data backend", BackendKind, dict.fromkeys(OURS))
"""All backends; None for our own, which backends/build.py makes."""
Backend = Annotated[str, BACKENDS]
LABEL = re.compile(r"cls|txt|json:.+")
READ_BY_SYNTHETIC = frozenset({"backend", "resolution", "flip", "shuffle"})
"""Settings of data that generated images depend on."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where training images come from and how they are delivered.

    Attributes:
        path: Directory of a packed set (`relaywave data pack`), or its URL: http(s)://, s3://,
            gs://, az://, hf://, or `pipe:COMMAND {}`. For the backend `webdataset`: tars, as
            `train-{0000..0899}.tar`, a directory of them, URLs, or `pipe:COMMAND`.
        backend: `dali` (decodes on the GPU if there is one), `pillow` (reads the same sets on the
            CPU), `ffcv` (the set's `.beton`), `webdataset` (streams any tars, through the library
            of that name; given a packed set, it is `pillow`, as it was once called), or `synthetic`
            (generated images, for tests and dry runs); or one of a plugin.
        resolution: Edge of the delivered images in pixels. Shards of a larger resolution that this
            divides are reduced by box averaging; original images are cropped and resized.
        flip: Flip each visit of an image horizontally with probability 1/2.
        shuffle: Visit the images in a new random order each epoch; otherwise in file order.
        shuffle_window: Shuffle the shards, and the images within windows of this many, so that
            few shards are in use at a time; null shuffles all images with each other, those of
            a remote set within the window that its manifest names, those of tars within 4096.
        classes: Names of the classes to draw from (labels stay as they are); empty for all.
        subset: Draw from this many images of each set, always the same ones; null for all.
        weight: With `mix`: how often this set is drawn from, relative to the others.
        mix: Further sets to draw from.
        cache: Directory that caches the shards of remote sets; "" is $RELAYWAVE_CACHE (which jobs
            set to the node's local disk), or ~/.cache/relaywave/shards without it.
        cache_gb: Size of the cache, in 10^9 bytes.
        outage_seconds: How long to try to read what is remote while it does not answer; then
            training ends with 74, and the same command resumes from the last checkpoint.
        num_classes: For tars: number of classes; null leaves the labels out.
        label: For tars: the member of a sample that is its class: `cls`, `txt`, or `json:KEY`.
        ffcv_cache_gb: For the backend `ffcv`: cache this much of the file in this process, in 10^9
            bytes (for network mounts); null relies on the operating system's cache.
        resize: Which Lanczos filter resizes original images, with the backends `pillow` and
            `webdataset`: `pillow`, exactly as `pack` does, or `torch`, faster and up to 2 of
            255 levels off.
        workers: Threads of this rank that read and decode.
        prefetch: Micro-batches prepared ahead.
        max_corrupt: Fraction of damaged samples in the set, met by one rank, above which a run
            stops; below it, each is replaced by the next one in the order and logged. 0 tolerates
            none, more than 0 at least one.
    """

    path: str = ""
    backend: Backend = "dali"
    resolution: int
    flip: bool = False
    shuffle: bool = True
    shuffle_window: int | None = None
    classes: tuple[str, ...] = ()
    subset: int | None = None
    weight: float = 1.0
    mix: tuple[MixedSet, ...] = ()
    cache: str = ""
    cache_gb: float = 100.0
    outage_seconds: float = OUTAGE_SECONDS
    num_classes: int | None = None
    label: str = "cls"
    ffcv_cache_gb: float | None = None
    resize: Resize = "pillow"
    workers: int = 1
    prefetch: int = 2
    max_corrupt: float = 1e-3

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(f"resolution={self.resolution} must be positive")
        for name in ("workers", "prefetch", "shuffle_window", "subset", "num_classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name in ("weight", "cache_gb", "ffcv_cache_gb", "outage_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive")
        if self.resize != "pillow" and self.backend not in ("pillow", "webdataset"):
            raise ValueError(
                f"resize={self.resize!r} is a setting of backend='pillow' and 'webdataset', not"
                f" {self.backend!r}; leave it out, or set data.backend=pillow"
            )
        if not LABEL.fullmatch(self.label):
            raise ValueError(f"label={self.label!r} is not cls, txt or json:KEY")
        if not 0 <= self.max_corrupt < 1:
            raise ValueError(f"max_corrupt={self.max_corrupt} must be in [0, 1)")
        for path in (self.path, *(other.path for other in self.mix)):
            check_no_credentials(path)

    @property
    def streams_tars(self) -> bool:
        """Whether the backend is `webdataset`, and the path one of tars, not of a packed set."""
        return self.backend == "webdataset" and names_tars(self.path)

    def unread(self) -> dict[str, str]:
        """Return the settings that this backend, or these sets, have no use for."""
        if self.backend == "synthetic":
            names = {field.name for field in fields(self)} - READ_BY_SYNTHETIC
            why = "data.backend=synthetic generates its images; add data.backend=dali, pillow"
            return dict.fromkeys(sorted(names), f"{why} or ffcv")
        found: dict[str, str] = {}
        if self.streams_tars:
            why = "data.backend=webdataset streams tars as they are; pack them, or leave it out"
            of_sets = ("classes", "subset", "mix", "weight", "cache", "cache_gb", "ffcv_cache_gb")
            return dict.fromkeys(of_sets, why) | self._unread_order()
        found |= dict.fromkeys(("num_classes", "label"), "a packed set has its own; leave it out")
        if self.backend != "ffcv":
            found["ffcv_cache_gb"] = f"data.backend={self.backend} has no such cache; leave it out"
        if not any(map(is_remote, (self.path, *(other.path for other in self.mix)))):
            why = "only remote sets (URLs) are cached; leave it out"
            found |= {"cache": why, "cache_gb": why, "outage_seconds": why}
        if not self.mix:
            found["weight"] = "there is one set only; add data.mix"
        return found | self._unread_order()

    def _unread_order(self) -> dict[str, str]:
        why = "data.shuffle=false; leave one of them out"
        return {} if self.shuffle else {"shuffle_window": why}


@dataclass(frozen=True)
class ImageBatch:
    """A micro-batch of images.

    Attributes:
        images: uint8 RGB [B, 3, H, W], on the pipeline's device.
        labels: int64 [B] on the same device, or None for unlabelled sets.
        positions: Position of each sample in the global, endless order.
    """

    images: Tensor
    labels: Tensor | None
    positions: tuple[int, ...]


class ImagePipeline(Protocol):
    """Delivers one rank's share of the global sample order.

    Position p of the endless order names one sample: epoch p // num_images, and within it the
    p % num_images-th of that epoch's permutation. Which image and which flip that is depends on
    (seed, p) alone. The k-th micro-batch after `start` of rank r holds the positions
    start + (k * world_size + r) * micro_batch_size + 0..micro_batch_size-1, so a pipeline's
    complete state is one integer, from which any number of ranks can resume.
    """

    info: DatasetInfo
    corrupt: dict[int, str]
    """Reason by sample index of the damaged samples that this rank has met so far."""

    def batches(self, start: int) -> Iterator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""

    def close(self) -> None:
        """Release threads, files and device memory; the pipeline is not used afterwards."""


@dataclass(frozen=True)
class Share:
    """Which micro-batches of the global order belong to a rank.

    Attributes:
        rank: The rank.
        world_size: Number of ranks.
        micro_batch_size: Samples of a micro-batch.
        accumulation_steps: Micro-batches of each rank in a global batch.
    """

    rank: int
    world_size: int
    micro_batch_size: int
    accumulation_steps: int = 1

    @property
    def global_batch(self) -> int:
        """Samples of a global batch."""
        return self.world_size * self.micro_batch_size * self.accumulation_steps

    def positions(self, start: int, k: int) -> range:
        """Return the global positions of this rank's k-th micro-batch after `start`."""
        first = start + (k * self.world_size + self.rank) * self.micro_batch_size
        return range(first, first + self.micro_batch_size)
