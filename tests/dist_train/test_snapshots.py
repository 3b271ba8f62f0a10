"""Snapshots and grids that cannot be written: left out with a warning, but not at the end."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from models.safe_files import transient
from models.snapshot import newest_snapshot
from tests.dist_train.test_faults import _config, _fit
from tests.dist_train.test_trainer import WHOLE
from tests.ranks import run_ranks
from tests.tiny import BATCH

SETTINGS = (f"checkpoint.snapshot_every_images={2 * BATCH}", "logging.grid_seeds=2")


def _check(root: Path) -> None:
    from dist_train import snapshots
    from dist_train.checkpoint.format import CheckpointError, StorageError
    from dist_train.runtime.world import init_world

    world = init_world()
    broken: set[int] = {0, 2 * BATCH}
    original = snapshots.write_snapshot

    def write_snapshot(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if int(path.name) in broken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, *arguments, **keywords)

    no_grids = mock.patch.object(
        snapshots, "atomic_file", side_effect=OSError(errno.EROFS, "Read-only file system")
    )
    with (
        mock.patch.object(snapshots, "write_snapshot", write_snapshot),
        mock.patch.object(transient, "DELAYS", (0.0,)),
    ):
        with no_grids:
            _fit(root / "middle", _config(*SETTINGS))
        world.barrier()
        written = sorted(int(path.name) for path in (root / "middle" / "snapshots").iterdir())
        assert written == [4 * BATCH, WHOLE]
        broken.add(WHOLE)
        with pytest.raises(StorageError, match=r"snapshot .*48 could not be written: .*No space"):
            _fit(root / "end", _config(*SETTINGS))
        world.barrier()
        broken.clear()
        _fit(root / "end", _config(*SETTINGS))
        world.barrier()
        assert newest_snapshot(root / "end").name == f"{WHOLE:012d}"
        assert (root / "end" / "grids" / f"{WHOLE:012d}.png").exists()
    foreign = root / "foreign" / "snapshots" / f"{WHOLE:012d}" / "thesis.tex"

    def put_beside(*arguments: Any, **keywords: Any) -> Any:
        foreign.parent.mkdir(parents=True, exist_ok=True)
        foreign.touch()
        return original(*arguments, **keywords)

    put_in_between = mock.patch.object(snapshots, "write_snapshot", put_beside)
    rejected = pytest.raises(CheckpointError, match="holds other things than a snapshot")
    with put_in_between, rejected as caught:
        _fit(root / "foreign", _config(*SETTINGS))
    assert not isinstance(caught.value, StorageError)
    assert foreign.exists()
    world.barrier()


@pytest.mark.distributed
def test_only_the_last_snapshot_must_be_written(tmp_path: Path) -> None:
    run_ranks(2, _check, tmp_path)
