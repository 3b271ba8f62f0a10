"""A million samples: opening, resuming and ordering cost no more than for a few."""

from __future__ import annotations

import dataclasses
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.backends.build import build_pipeline
from data_pipelines.packed.manifest import (
    INDEX_ROW,
    read_index,
    read_manifest,
    write_index,
    write_manifest,
)
from data_pipelines.pipeline import DataConfig, Share
from tests.data_sets import packed_set, write_class_dirs

SAMPLES = 1_000_000


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose index names the samples of a small one again and again."""
    path = tmp_path_factory.mktemp("million")
    packed_set(write_class_dirs(path / "source"), path / "set")
    manifest = read_manifest(path / "set")
    index = np.array(read_index(path / "set", manifest))
    large = np.resize(index, SAMPLES)
    large = large[np.argsort(large["shard"], kind="stable")].astype(INDEX_ROW)
    sha256 = write_index(path / "set", large)
    write_manifest(
        path / "set", dataclasses.replace(manifest, num_images=SAMPLES, index_sha256=sha256)
    )
    return path / "set"


@pytest.mark.parametrize("backend", ["dali", "pillow"])
@pytest.mark.parametrize("window", [None, 10_000])
@pytest.mark.parametrize("start", [0, 10**13 + 7])
def test_first_batch_comes_at_once(
    million: Path, backend: str, window: int | None, start: int
) -> None:
    config = DataConfig(
        path=str(million), backend=backend, resolution=32, flip=True, shuffle_window=window
    )
    begin = time.perf_counter()
    pipeline = build_pipeline(config, seed=0, share=Share(3, 8, 16))
    batches = pipeline.batches(start)
    batch = next(batches)
    assert time.perf_counter() - begin < 5
    assert batch.positions[0] == start + 48
    batches.close()
    pipeline.close()


def test_order_needs_no_memory_per_sample(million: Path) -> None:
    config = DataConfig(path=str(million), backend="pillow", resolution=32)
    tracemalloc.start()
    pipeline = build_pipeline(config, seed=0, share=Share(0, 1, 16))
    batches = pipeline.batches(10**9)
    next(batches)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    batches.close()
    pipeline.close()
    assert peak < 2 * SAMPLES  # bytes; the index is mapped, not read
