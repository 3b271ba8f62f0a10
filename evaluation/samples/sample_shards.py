"""Samples stored as tar shards that are a packed set, which evaluation and training can read.

While samples are drawn, each batch is a small tar of its own, so finished batches survive a kill.
At the end the batches are joined into shards of a fixed number of batches, so that the shards'
bytes do not depend on the ranks, and index and manifest are written as
`relaywave data pack` does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from data_pipelines.pack.finish import join, shard_name
from data_pipelines.pack.shard_writer import ShardRecord, ShardWriter
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.sources.base import Entry, Listing
from data_pipelines.sources.lister.archives import tar_files
from dist_train.runtime.world import World
from evaluation.image_sets.files import encode_image
from evaluation.samples.generate import GeneratedImages
from models.safe_files.atomic import atomic_file, remove_ours
from models.safe_files.regular import open_file

PARTS = ".batches"
PART_NAME = re.compile(r"\d{9,}\.tar")


class SampleShards:
    """Samples in tar shards of whole batches; seeds cannot be added later.

    Args:
        generated: The samples.
        sample_dir: Where they are stored.
        shard_images: Images per shard, rounded to whole batches.
    """

    def __init__(self, generated: GeneratedImages, sample_dir: Path, shard_images: int) -> None:
        if shard_images < 1:
            raise ValueError(f"--shard-images={shard_images} must be positive")
        self._generated, self._dir = generated, sample_dir
        batches = generated.spec.batches()
        each = max(1, round(shard_images / generated.spec.batch_size))
        self._shards = [batches[i : i + each] for i in range(0, len(batches), each)]
        self._shard_of = {b.start: n for n, shard in enumerate(self._shards) for b in shard}
        self.layout: dict[str, Any] = {
            "kind": "shards",
            "shard_images": each * generated.spec.batch_size,
            "seeds": generated.identity["seeds"],
        }

    def holds(self, batch: range) -> bool:
        """Tell whether a batch is on disk, alone or in its shard."""
        return self._part(batch).exists() or self._path(self._shard_of[batch.start]).exists()

    def write(self, batch: range, images: Tensor) -> None:
        """Write a batch as a tar of its own."""
        self._part(batch).parent.mkdir(parents=True, exist_ok=True)
        codec = self._generated.spec.post.codec
        self._write_tar(self._part(batch), batch, (encode_image(image, codec) for image in images))

    def finish(self, world: World) -> None:
        """Join the batches to shards, each on one rank, and write index and manifest."""
        (self._dir / "shards").mkdir(exist_ok=True)
        owned = range(world.rank, len(self._shards), world.size)
        parts = world.gather_objects({number: self._join(number) for number in owned})
        if world.rank == 0:
            records: dict[int, ShardRecord] = {n: r for part in parts for n, r in part.items()}
            self._write_set([records[number] for number in range(len(self._shards))])
            remove_ours(self._dir / PARTS, PART_NAME)
        world.barrier()

    def read(self, index: int) -> Tensor:
        """Return a sample, uint8 [3, H, W]."""
        return self._images.decode(index)

    @functools.cached_property
    def _images(self) -> ShardedImages:
        return ShardedImages(self._dir)

    def _join(self, number: int) -> ShardRecord:
        """Write a shard from its batches (or, after a kill, again from itself); drop these."""
        batches, path = self._shards[number], self._path(number)
        sources = [path] if path.exists() else [self._part(batch) for batch in batches]
        indices = range(batches[0].start, batches[-1].stop)
        shard = self._write_tar(path, indices, _images_of(sources))
        for batch in batches:
            self._part(batch).unlink(missing_ok=True)
        return shard

    def _write_tar(self, path: Path, indices: range, encoded: Iterator[bytes]) -> ShardRecord:
        """Write samples as a tar with their seeds as names."""
        with atomic_file(path) as file:
            writer = ShardWriter(file)
            for index, data, label in zip(indices, encoded, self._labels(indices), strict=True):
                writer.add(self._key(index), data, label)
            digest = writer.finish()
        edge = self._generated.sampler.resolution
        sizes, samples = {edge: writer.num_bytes}, {edge: writer.samples}
        return ShardRecord(sizes, {edge: digest}, samples, list(indices), [])

    def _write_set(self, records: Sequence[ShardRecord]) -> None:
        """Write index and manifest; the manifest comes last and makes the set complete."""
        indices = range(len(self._generated))
        labels = self._labels(indices)
        entries = [Entry(self._key(i), label, 0) for i, label in zip(indices, labels, strict=True)]
        names = tuple(map(str, range(self._generated.sampler.label_dim)))
        identity = self._generated.identity
        request = {
            "kind": "samples",
            "source": {"path": identity["models"][-1]["path"], "samples": identity},
            "options": {
                "image_format": self._generated.spec.post.codec,
                "shard_images": self.layout["shard_images"],
                "keep_duplicates": True,
            },
        }
        dirs = {self._generated.sampler.resolution: self._dir}
        join(records, Listing(entries, names), dirs, request, max_skips=None)

    def _labels(self, indices: range) -> list[int]:
        labels = self._generated.labels(indices)
        return [-1] * len(indices) if labels is None else labels.tolist()

    def _key(self, index: int) -> str:
        return f"{self._generated.spec.seeds[index]:06d}"

    def _path(self, number: int) -> Path:
        return self._dir / shard_name(number)

    def _part(self, batch: range) -> Path:
        return self._dir / PARTS / f"{batch.start:09d}.tar"


def _images_of(paths: Sequence[Path]) -> Iterator[bytes]:
    """Yield the encoded images of tar files in order."""
    for path in paths:
        with open_file(path) as file:
            for member in tar_files(path):
                if not member.name.endswith(".cls"):
                    file.seek(member.offset_data)
                    yield file.read(member.size)
