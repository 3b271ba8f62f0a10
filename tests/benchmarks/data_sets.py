"""The packed sets that the data benchmark streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.images import ORIGINAL
from data_pipelines.pack.options import PackOptions
from data_pipelines.packed.beton import write_beton
from data_pipelines.packed.manifest import (
    BETON,
    INDEX_ROW,
    read_index,
    read_manifest,
    write_index,
    write_manifest,
)
from data_pipelines.sources.kinds import make_source
from tests.data_sets import pack, packed_set, write_class_dirs

THREADS = 2
SAMPLES = 1_000_000


def packed_sets(source: Path, work_dir: Path, edge: int) -> Iterator[tuple[str, Path]]:
    """Yield title and path of the sets packed at an edge, with their betons."""
    for image_format in ("jpeg", "png"):
        options = PackOptions(resolution=(64, 256), image_format=image_format)
        sets = pack(
            make_source("folder", source), work_dir / image_format, options, workers=THREADS
        )
        for path, manifest in sets.items():
            if manifest.resolution == edge:
                write_beton(path)
                yield f"{edge} {image_format}", path


def originals(source: Path, work_dir: Path) -> Path:
    """Return the set of the source's own files."""
    options = PackOptions(resolution=ORIGINAL)
    pack(make_source("folder", source), work_dir / "original", options, workers=THREADS)
    return work_dir / "original"


def million(work_dir: Path) -> Path:
    """Return a set whose index names the samples of a small one again and again."""
    path = work_dir / "million"
    if not (path / BETON).exists():
        if not path.exists():
            packed_set(write_class_dirs(work_dir / "million-source"), path, resolution=8)
        manifest = read_manifest(path)
        if manifest.num_images != SAMPLES:
            large = np.resize(np.array(read_index(path, manifest)), SAMPLES)
            large = large[np.argsort(large["shard"], kind="stable")].astype(INDEX_ROW)
            sha256 = write_index(path, large)
            manifest = dataclasses.replace(manifest, num_images=SAMPLES, index_sha256=sha256)
            write_manifest(path, manifest)
        write_beton(path)
    return path
