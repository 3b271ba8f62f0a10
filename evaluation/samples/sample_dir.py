"""Samples stored on disk: written once, on any number of ranks, resumable.

A sample directory holds `samples.json` (models, seeds, settings, whether it is complete) and the
images: single files as EDM and RDM lay them out, with their classes in `dataset.json`, or tar
shards that are a packed set (sample_shards.py).
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from data_pipelines.sources.edm import LABELS
from dist_train.runtime.world import World
from evaluation.detectors.passes import least_sizes
from evaluation.disk import dir_lock, write_bytes
from evaluation.image_sets.files import decode_image, encode_image
from evaluation.image_sets.image_set import (
    AHEAD,
    RECORDS,
    SAMPLES,
    Labels,
    read_samples_manifest,
    stacked,
)
from evaluation.overlap import ahead
from evaluation.progress import Progress
from evaluation.samples.generate import (
    GeneratedImages,
    SampleSpec,
    check_settings,
    post_threads,
    unlike,
)
from evaluation.samples.sample_shards import SampleShards
from models.safe_files.transient import TRANSIENT, retried
from models.snapshot import Snapshot, check_stages

SUFFIX = {"png": "png", "jpeg": "jpg"}


@dataclass(frozen=True)
class SampleRequest:
    """Samples of a model, and where they are stored.

    Attributes:
        snapshots: The model, or a relay's stages in order.
        spec: Which samples are drawn.
        sample_dir: Directory that they are stored in, None to store none.
        shard_images: Images per tar shard (rounded to whole batches), None for single files.
    """

    snapshots: tuple[Snapshot, ...]
    spec: SampleSpec
    sample_dir: Path | None = None
    shard_images: int | None = None

    def __post_init__(self) -> None:
        if self.shard_images is not None and self.sample_dir is None:
            raise ValueError("--shard-images needs a directory of images: add --keep-images DIR")
        if self.snapshots:
            check_settings([snapshot.objective for snapshot in self.snapshots], self.spec)

    def with_batch_size(self, size: int) -> SampleRequest:
        """Return the samples with another batch size."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, batch_size=size))


def open_samples(request: SampleRequest, world: World) -> GeneratedImages | StoredSamples:
    """Return samples as an image set: drawn on demand, or written to their directory first.

    Raises:
        ValueError: The directory holds other samples, or another job is writing it.
    """
    generated = GeneratedImages(request.snapshots, request.spec, world.device)
    if request.sample_dir is None:
        return generated
    samples = StoredSamples(generated, request.sample_dir, request.shard_images)
    samples.write(world)
    return samples


def check_samples(request: SampleRequest) -> None:
    """Raise ValueError if `open_samples` would, on whatever device, before anything is drawn.

    That is: stages that do not fit each other, damaged weights, a directory of other samples.
    """
    check_stages([snapshot.objective for snapshot in request.snapshots])
    for snapshot in request.snapshots:
        snapshot.check_weights()
    if request.sample_dir is not None:
        manifest = read_samples_manifest(request.sample_dir)
        device = manifest["identity"]["device"] if manifest else "cpu"
        generated = GeneratedImages(request.snapshots, request.spec, device)
        samples = StoredSamples(generated, request.sample_dir, request.shard_images)
        if problem := samples.difference():
            raise ValueError(problem)


class StoredSamples:
    """Samples stored on disk, as an image set.

    Args:
        generated: The samples.
        sample_dir: Where they are stored.
        shard_images: Images per tar shard (rounded to whole batches), None for single files.
    """

    def __init__(
        self, generated: GeneratedImages, sample_dir: Path, shard_images: int | None
    ) -> None:
        self._generated, self._dir = generated, sample_dir
        self._store: SampleStore = (
            SampleFiles(generated, sample_dir)
            if shard_images is None
            else SampleShards(generated, sample_dir, shard_images)
        )
        self.identity = generated.identity

    def __len__(self) -> int:
        return len(self._generated)

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What their directory records of them, None before they are written."""
        return read_samples_manifest(self._dir)

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, int64 [B], None for unconditional models."""
        return self._generated.labels(indices)

    def name(self, index: int) -> str:
        """Return the name of a sample, its seed."""
        return self._generated.name(index)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 [B, 3, H, W]."""
        return next(self.batches([indices]))

    def batches(self, todo: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the images of each of these batches, decoded ahead of the caller."""
        indices = [i for batch in todo for i in batch]
        depth = AHEAD * max(map(len, todo), default=1)
        return stacked(ahead(self._store.read, indices, depth=depth), todo)

    def write(self, world: World) -> None:
        """Write what is missing, on all ranks; finished files stay.

        Raises:
            ValueError: The directory holds other samples, or another job is writing it.
        """
        with dir_lock(self._dir, world):
            seconds, complete, missing = self._begin(world)
            if missing or not complete:
                seconds += self._write_batches(missing, world)
                at_once = least_sizes({"images_at_once": [self._generated.passes]}, world)
                self._store.finish(world)
                if world.rank == 0:
                    self._write_manifest(complete=True, seconds=seconds, **at_once)
            world.barrier()

    def difference(self) -> str | None:
        """Say why their directory cannot be continued, None if it can."""
        manifest = self.manifest
        if manifest is None:
            return self._others_in_it()
        theirs = {"tf32": manifest["tf32"]} | manifest["identity"]
        if said := unlike(theirs, self.identity):
            what = f"samples of another model or with other settings ({said})"
        elif manifest["layout"] != self._store.layout:
            what = "samples in another layout (files or shards; shards of other seeds or sizes)"
        else:
            return None
        return f"{self._dir} holds {what}; choose another directory, or delete it"

    def _others_in_it(self) -> str | None:
        """Say that a directory without samples holds something else, None if it does not."""
        if self._dir.exists() and not self._dir.is_dir():
            return f"{self._dir} is no directory; choose another one"
        names = sorted(os.listdir(self._dir)) if self._dir.exists() else []
        others = [name for name in names if not name.startswith((".lock", f".{SAMPLES}."))]
        if not others:
            return None
        return (
            f"{self._dir} holds other things than samples ({', '.join(map(ascii, others[:3]))});"
            " choose another directory"
        )

    def _begin(self, world: World) -> tuple[float, bool, list[range]]:
        """Check the directory; return the seconds spent, if it is complete, the missing batches.

        A directory to which seeds are added counts as unfinished again.
        """
        problem, seconds, complete, missing = None, 0.0, False, list[range]()
        if world.rank == 0:
            problem = self.difference()
            if manifest := self.manifest:
                seconds = float(manifest["seconds"])
                same_seeds = manifest["identity"]["seeds"] == self.identity["seeds"]
                complete = manifest["complete"] and same_seeds
            if not problem and not complete:
                self._write_manifest(complete=False, seconds=seconds)
            missing = [b for b in self._generated.spec.batches() if not self._store.holds(b)]
        state = world.broadcast_object((problem, seconds, complete, missing))
        problem, seconds, complete, missing = state
        if problem:
            raise ValueError(problem)
        return seconds, complete, missing

    def _write_batches(self, missing: Sequence[range], world: World) -> float:
        """Draw and write this rank's share of the missing batches; return the seconds it took."""
        post = self._generated.spec.post
        progress = Progress(sum(map(len, missing)), "samples", visible=world.rank == 0)

        def write(drawn: tuple[range, Tensor]) -> int:
            batch, images = drawn
            self._store.write(batch, post.retouched(images))
            return len(batch)

        own = missing[world.rank :: world.size]
        drawn = ((batch, self._generated.draw(batch)) for batch in own)
        for turn, written in enumerate(ahead(write, drawn, threads=post_threads())):
            progress.add(written * min(world.size, len(missing) - turn * world.size))
        world.barrier()
        return progress.seconds if missing else 0.0

    def _write_manifest(self, *, complete: bool, seconds: float, **facts: int) -> None:
        document = {
            **facts,
            "identity": self.identity,
            "layout": self._store.layout,
            "nfe": self._generated.nfe,
            "tf32": self._generated.tf32,
            "complete": complete,
            "seconds": round(seconds, 3),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        RECORDS.write(self._dir / SAMPLES, document)


class SampleStore(Protocol):
    """How samples lie in a directory. Batches are ranges of indices of the spec's seeds."""

    layout: dict[str, Any]
    """What must agree for a directory to be continued."""

    def holds(self, batch: range) -> bool:
        """Tell whether a batch is on disk."""

    def write(self, batch: range, images: Tensor) -> None:
        """Write a batch, uint8 [B, 3, H, W]; called by several threads, each for its batch."""

    def finish(self, world: World) -> None:
        """Complete the directory on all ranks, after the last batch."""

    def read(self, index: int) -> Tensor:
        """Return a sample of a finished directory, uint8 [3, H, W]; called by several threads."""


class SampleFiles:
    """Single files `{seed - seed % 1000:06d}/{seed:06d}.png`; more seeds may be added later."""

    def __init__(self, generated: GeneratedImages, sample_dir: Path) -> None:
        self._generated, self._sample_dir = generated, sample_dir
        self._suffix = SUFFIX[generated.spec.post.codec]
        self.layout: dict[str, Any] = {"kind": "files"}

    def holds(self, batch: range) -> bool:
        """Tell whether all files of a batch exist."""
        return all(self._path(index).exists() for index in batch)

    def write(self, batch: range, images: Tensor) -> None:
        """Write a batch, each file atomically."""
        for index, image in zip(batch, images, strict=True):
            data = encode_image(image, self._generated.spec.post.codec)
            write_bytes(self._path(index), data)

    def finish(self, world: World) -> None:
        """Write the classes of all files, also of earlier seeds, as EDM's `dataset.json`."""
        if world.rank == 0:
            listed = self._sample_dir.glob(f"[0-9]*/[0-9]*.{self._suffix}")
            ours = map(self._path, range(len(self._generated)))  # other ranks': not yet listed
            files = sorted({*listed, *ours})
            names = [path.relative_to(self._sample_dir).as_posix() for path in files]
            labels = self._generated.labels_of([int(path.stem) for path in files])
            pairs = (
                None
                if labels is None
                else [[name, int(label)] for name, label in zip(names, labels, strict=True)]
            )
            write_bytes(self._sample_dir / LABELS, json.dumps({"labels": pairs}).encode())

    def read(self, index: int) -> Tensor:
        """Return a sample, uint8 [3, H, W]."""
        path = self._path(index)
        return decode_image(_read(path), str(path))

    def _path(self, index: int) -> Path:
        seed = self._generated.spec.seeds[index]
        return self._sample_dir / f"{seed - seed % 1000:06d}" / f"{seed:06d}.{self._suffix}"


def _read(path: Path) -> bytes:
    """Read a sample, which another rank may have written just now."""
    errors = TRANSIENT | {errno.ENOENT}
    return retried(path.read_bytes, f"reading {path}", errors=errors)
