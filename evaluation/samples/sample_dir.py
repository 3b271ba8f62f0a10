"""Samples kept on disk: written once, on any number of ranks, resumable.

A folder of samples holds `samples.json` (models, seeds, settings, whether it is complete) and the
images: single files as EDM and RDM lay them out, with their classes in `dataset.json`, or PNG
shards that are a packed set (kept_shards.py).
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dist_train.runtime.world import World
from evaluation.image_sets.files import DATASET_LABELS, decode_image
from evaluation.image_sets.grid import encode_image, write_bytes
from evaluation.image_sets.image_set import SAMPLES, Labels
from evaluation.progress import Progress
from evaluation.samples.generate import GeneratedImages, made_by
from evaluation.samples.sample_shards import SampleShards

SUFFIX = {"png": "png", "jpeg": "jpg"}


class SampleStore(Protocol):
    """How samples lie in a folder. Batches are ranges of indices of a plan's seeds."""

    layout: dict[str, Any]
    """What must agree for a folder to be continued."""

    def holds(self, batch: range) -> bool:
        """Tell whether a batch is on disk."""

    def write(self, batch: range, images: Tensor) -> None:
        """Write a batch, uint8 [B, 3, H, W]."""

    def finish(self, world: World) -> None:
        """Complete the folder on all ranks, after the last batch."""

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return samples of a finished folder, uint8 [B, 3, H, W]."""


class SampleFiles:
    """Single files `{seed - seed % 1000:06d}/{seed:06d}.png`; more seeds may be added later."""

    def __init__(self, generated: GeneratedImages, folder: Path) -> None:
        self._generated, self._folder = generated, folder
        self._suffix = SUFFIX[generated.plan.post.codec]
        self.layout: dict[str, Any] = {"kind": "files"}

    def holds(self, batch: range) -> bool:
        """Tell whether all files of a batch exist."""
        return all(self._path(index).exists() for index in batch)

    def write(self, batch: range, images: Tensor) -> None:
        """Write a batch, each file atomically."""
        for index, image in zip(batch, images, strict=True):
            data = encode_image(image, self._generated.plan.post.codec)
            write_bytes(self._path(index), data)

    def finish(self, world: World) -> None:
        """Write the classes of all files, also of earlier seeds, as EDM's `dataset.json`."""
        if world.rank == 0:
            files = sorted(self._folder.glob(f"[0-9]*/[0-9]*.{self._suffix}"))
            names = [path.relative_to(self._folder).as_posix() for path in files]
            labels = self._generated.labels_of([int(path.stem) for path in files])
            pairs = (
                None
                if labels is None
                else [[name, int(label)] for name, label in zip(names, labels, strict=True)]
            )
            write_bytes(self._folder / DATASET_LABELS, json.dumps({"labels": pairs}).encode())

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return these samples, uint8 [B, 3, H, W]."""
        paths = [self._path(index) for index in indices]
        return torch.stack([decode_image(path.read_bytes(), str(path)) for path in paths])

    def _path(self, index: int) -> Path:
        seed = self._generated.plan.seeds[index]
        return self._folder / f"{seed - seed % 1000:06d}" / f"{seed:06d}.{self._suffix}"


class KeptImages:
    """Generated images that are kept on disk, as an image set."""

    def __init__(self, generated: GeneratedImages, store: SampleStore) -> None:
        self._generated, self._store = generated, store
        self.identity = generated.identity
        self.nfe = generated.nfe

    def __len__(self) -> int:
        return len(self._generated)

    def labels(self, indices: Sequence[int]) -> Labels | None:
        """Return the classes of these indices, int64 [B], None for unconditional models."""
        return self._generated.labels(indices)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices, uint8 [B, 3, H, W]."""
        return self._store.read(indices)


def write_samples(
    generated: GeneratedImages, folder: Path, world: World, *, shard_images: int | None = None
) -> KeptImages:
    """Write all samples of a plan to `folder`, on all ranks; what is there is kept.

    Args:
        generated: The samples.
        folder: Where they are kept.
        world: The ranks that share the work.
        shard_images: Images per tar shard (rounded to whole batches); None keeps single files.

    Raises:
        ValueError: The folder holds other samples, or another job is writing it.
    """
    store = _store(generated, folder, shard_images)
    kept = KeptImages(generated, store)
    with folder_lock(folder, world):
        seconds, complete = _begin(kept, store.layout, folder, world)
        batches = generated.plan.batches()
        missing = world.broadcast_object([b for b in batches if not store.holds(b)])
        if missing or not complete:
            seconds += _write_batches(generated, store, missing, world)
            store.finish(world)
        if world.rank == 0:
            _write_manifest(kept, store.layout, folder, complete=True, seconds=seconds)
        world.barrier()
    return kept


def _store(generated: GeneratedImages, folder: Path, shard_images: int | None) -> SampleStore:
    if shard_images is None:
        return SampleFiles(generated, folder)
    return SampleShards(generated, folder, shard_images)


def check_folder(generated: GeneratedImages, folder: Path, shard_images: int | None) -> None:
    """Refuse a folder of other samples, wherever they were drawn. Raises ValueError."""
    layout = _store(generated, folder, shard_images).layout
    manifest = read_samples_manifest(folder)
    if manifest is None:
        return
    identity = generated.identity | {"device": manifest["identity"]["device"]}
    if problem := _difference(manifest, identity, layout, folder):
        raise ValueError(problem)


def _write_batches(
    generated: GeneratedImages, store: SampleStore, missing: Sequence[range], world: World
) -> float:
    """Make this rank's share of the missing batches; return the seconds that it took."""
    progress = Progress(sum(map(len, missing)), "samples", visible=world.rank == 0)
    for turn, batch in enumerate(missing[world.rank :: world.size]):
        store.write(batch, generated.plan.post.retouched(generated.draw(batch)))
        progress.add(len(batch) * min(world.size, len(missing) - turn * world.size))
    world.barrier()
    return progress.seconds if missing else 0.0


@contextmanager
def folder_lock(folder: Path, world: World) -> Iterator[None]:
    """Hold a folder for this job (or until it dies). Raises ValueError if another job holds it."""
    problem = None
    lock = None
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 - held until the end of the block
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            problem = (
                f"{folder} is being written by another job; wait for it, or use another folder"
            )
    problem = world.broadcast_object(problem)
    try:
        if problem:
            raise ValueError(problem)
        yield
    finally:
        if lock:
            lock.close()


def _begin(
    kept: KeptImages, layout: dict[str, Any], folder: Path, world: World
) -> tuple[float, bool]:
    """Check what the folder holds; return the seconds spent on it so far and if it is complete.

    A folder to which seeds are added counts as unfinished again.
    """
    problem, seconds, complete = None, 0.0, False
    if world.rank == 0:
        manifest = read_samples_manifest(folder)
        if manifest:
            problem = _difference(manifest, kept.identity, layout, folder)
            seconds = float(manifest["seconds"])
            same_seeds = manifest["identity"]["seeds"] == kept.identity["seeds"]
            complete = manifest["complete"] and same_seeds
        if not problem and not complete:
            _write_manifest(kept, layout, folder, complete=False, seconds=seconds)
    problem, seconds, complete = world.broadcast_object((problem, seconds, complete))
    if problem:
        raise ValueError(problem)
    return seconds, complete


def _difference(
    manifest: dict[str, Any], identity: dict[str, Any], layout: dict[str, Any], folder: Path
) -> str | None:
    """Say why a folder cannot be continued, None if it can."""
    if made_by(manifest["identity"]) != made_by(identity):
        what = "samples of another model or with other settings"
    elif manifest["layout"] != layout:
        what = "samples in another layout (files or shards; shards of other seeds or sizes)"
    else:
        return None
    return f"{folder} holds {what}; choose another folder, or delete it"


def _write_manifest(
    kept: KeptImages, layout: dict[str, Any], folder: Path, *, complete: bool, seconds: float
) -> None:
    document = {
        "identity": kept.identity,
        "layout": layout,
        "nfe": kept.nfe,
        "complete": complete,
        "seconds": round(seconds, 3),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_bytes(folder / SAMPLES, json.dumps(document, indent=2).encode())


def read_samples_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder of samples, None if it has none."""
    path = folder / SAMPLES
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text())
    return document
