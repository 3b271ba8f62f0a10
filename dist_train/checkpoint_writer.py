"""Writing checkpoints: asynchronous, atomic, and agreed upon by all ranks.

The state is copied, training goes on, a thread writes and hashes, and rank 0 commits at the step
boundary at which every rank has reported its file as written. The format is checkpoint.py's.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dist_train.checkpoint import (
    FORMAT_VERSION,
    MARKER,
    CheckpointError,
    TrainState,
    committed,
    read_metric,
)
from dist_train.distributed import World
from dist_train.fragments import Fragment
from dist_train.retention import Retention
from models.snapshot import file_sha256


class CheckpointWriter:
    """Writes one rank's part of checkpoints in the background, and prunes old ones.

    Args:
        run_dir: The run folder, shared by all ranks.
        world: The process group.
        retention: Which checkpoints stay.
    """

    def __init__(self, run_dir: Path, world: World, retention: Retention) -> None:
        self._folder = run_dir / "checkpoints"
        self._world = world
        self._retention = retention
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._state: TrainState | None = None
        if world.rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(".*.tmp"):
                shutil.rmtree(leftover)
        world.barrier()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was begun and is not committed yet."""
        return self._state is not None

    @property
    def written(self) -> bool:
        """Whether this rank's thread has ended; `commit` or `finish` is next."""
        return self._thread is not None and not self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether this rank could not write, for instance because the disk is full."""
        return self._error is not None

    def begin(self, state: TrainState, groups: Mapping[str, Iterable[Fragment]]) -> None:
        """Copy this rank's fragments and start writing them; training may go on at once.

        Args:
            state: Progress to record.
            groups: Owned fragments by name ("denoiser", "denoiser.ema", ...).
        """
        self.finish()
        tensors = {
            f"{group}/{kind}/{fragment.name}@{fragment.start}": values.detach().to("cpu", copy=True)
            for group, fragments in groups.items()
            for fragment in fragments
            for kind, values in {"weight": fragment.weight, **fragment.moments}.items()
        }
        self._state = state
        self._thread = threading.Thread(target=self._write, args=(tensors,), name="checkpoint")
        self._thread.start()

    def commit(self) -> None:
        """Make the pending checkpoint count, once every rank's `written` was true. Collective."""
        assert self._state is not None
        if self._world.rank == 0:
            self._write_marker(self._state)
            self._prune()
        self._state = None

    def finish(self) -> None:
        """Wait for the pending checkpoint, if any, and commit it. Collective.

        Raises:
            CheckpointError: A rank could not write; earlier checkpoints are untouched.
        """
        if not self.pending:
            return
        assert self._thread is not None
        self._thread.join()
        failures = self._world.gather_objects(None if self._error is None else str(self._error))
        for rank, failure in enumerate(failures):
            if failure is not None:
                self._discard()
                raise CheckpointError(
                    f"rank {rank} could not write its checkpoint to {self._folder}: {failure};"
                    " the previous checkpoint is kept: make room and run the same command again"
                )
        self.commit()

    def _discard(self) -> None:
        """Give up the pending checkpoint and free its space."""
        assert self._state is not None
        if self._world.rank == 0:
            shutil.rmtree(self._temporary(self._state), ignore_errors=True)
        self._state, self._thread, self._error = None, None, None

    def _temporary(self, state: TrainState) -> Path:
        return self._folder / f".{state.images_seen:012d}.tmp"

    def _write(self, tensors: dict[str, Tensor]) -> None:
        """Write, sync and index this rank's file (in the thread)."""
        assert self._state is not None
        try:
            folder = self._temporary(self._state)
            folder.mkdir(exist_ok=True)
            file = folder / f"rank_{self._world.rank:05d}.safetensors"
            save_file(tensors, file)
            _fsync(file)
            index = {"size": file.stat().st_size, "sha256": file_sha256(file)}
            _write_json(file.with_suffix(".json"), index)
        except BaseException as error:
            self._error = error

    def _write_marker(self, state: TrainState) -> None:
        folder = self._temporary(state)
        indices = sorted(folder.glob("rank_*.json"))
        if len(indices) != self._world.size:
            raise CheckpointError(
                f"{folder} holds the files of {len(indices)} ranks, expected {self._world.size}:"
                " is the run folder shared by all nodes?"
            )
        files = {i.with_suffix(".safetensors").name: json.loads(i.read_text()) for i in indices}
        for index in indices:
            index.unlink()
        marker = {"format_version": FORMAT_VERSION, **asdict(state), "files": files}
        _write_json(folder / MARKER, marker)
        final = self._folder / f"{state.images_seen:012d}"
        if final.exists():  # the same state was saved before a restart
            shutil.rmtree(final)
        folder.replace(final)
        _fsync(self._folder)

    def _prune(self) -> None:
        paths = {int(path.name): path for path in committed(self._folder.parent)}
        metrics = {images: read_metric(path) for images, path in paths.items()}
        for images in self._retention.expendable(metrics):
            shutil.rmtree(paths[images])


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
    _fsync(path)


def _fsync(path: Path) -> None:
    """Force a file's (or folder's) content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
