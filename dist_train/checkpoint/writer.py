"""Writing checkpoints: asynchronous, atomic, and agreed upon by all ranks.

A thread copies the state while the loop runs the next step's forward and backward passes, which
leave it alone; only the update waits for the copy. The thread then writes and hashes. When every
rank has reported its file as written, at a step boundary, rank 0 commits, again in a thread. The
format is that of format.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_train.checkpoint.format import (
    MARKER,
    MARKER_FORMAT,
    CheckpointError,
    TrainState,
    committed,
    read_metric,
)
from dist_train.config import CheckpointConfig
from dist_train.engine.shards import ParameterShard
from dist_train.runtime.world import World


class CheckpointWriter:
    """Writes one rank's part of checkpoints in the background, and prunes old ones.

    Args:
        run_dir: The run directory, shared by all ranks.
        world: The process group.
        kept: Which checkpoints stay.
    """

    def __init__(self, run_dir: Path, world: World, kept: CheckpointConfig) -> None:
        self._dir = run_dir / "checkpoints"
        self._world = world
        self._kept = kept
        self._buffer = StateBuffer(world.device)
        self._copied = threading.Event()
        self._copied.set()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._state: TrainState | None = None
        if world.rank == 0:
            self._dir.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
        world.barrier()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was started and not all ranks have agreed yet that it is written."""
        return self._state is not None

    @property
    def written(self) -> bool:
        """Whether this rank's file of the pending checkpoint is written."""
        return self.pending and self._thread is not None and not self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether this rank could not write, for instance because the disk is full."""
        return self._error is not None

    def begin(self, state: TrainState, groups: Mapping[str, Iterable[ParameterShard]]) -> None:
        """Start copying and writing this rank's shards.

        They must stay as they are until `wait_for_copy` has returned.

        Args:
            state: Progress to record.
            groups: Owned shards by name ("denoiser", "denoiser.ema", ...).

        Raises:
            CheckpointError: As `finish`, of the previous checkpoint.
        """
        self.finish()
        tensors = {
            f"{group}/{kind}/{shard.name}@{shard.start}": values
            for group, shards in groups.items()
            for shard in shards
            for kind, values in {"weight": shard.weight, **shard.moments}.items()
        }
        self._state = state
        self._copied.clear()
        self._start(lambda: self._write(state, tensors))

    def wait_for_copy(self) -> None:
        """Return as soon as the shards may change."""
        self._copied.wait()

    def commit(self) -> None:
        """Have rank 0 make the pending checkpoint count, once `written` was true on every rank."""
        assert self._state is not None
        if self._world.rank == 0:
            state = self._state
            self._start(lambda: self._commit(state))
        self._state = None

    def finish(self) -> None:
        """Wait until what was started is committed. Collective.

        Raises:
            CheckpointError: A rank could not write; earlier checkpoints are untouched.
        """
        self._join()
        if self.pending:
            self.commit()
            self._join()

    def _start(self, work: Callable[[], None]) -> None:
        """Do something in a thread, and keep its error."""

        def target() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=target, name="checkpoint")
        self._thread.start()

    def _join(self) -> None:
        """Wait for all ranks' threads, and raise on all ranks what went wrong on one. Collective.

        Raises:
            CheckpointError: A rank could not write.
        """
        if self._thread is not None:
            self._thread.join()
        failures = self._world.gather_objects(None if self._error is None else str(self._error))
        for rank, failure in enumerate(failures):
            if failure is not None:
                self._state, self._thread, self._error = None, None, None
                if self._world.rank == 0:
                    self._remove_leftovers()
                raise CheckpointError(
                    f"rank {rank} could not write its checkpoint to {self._dir}: {failure};"
                    " the previous checkpoint is kept: make room and run the same command again"
                )

    def _remove_leftovers(self) -> None:
        """Free the space of checkpoints that were abandoned."""
        for leftover in self._dir.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _temporary(self, state: TrainState) -> Path:
        return self._dir / f".{state.images_seen:012d}.tmp"

    def _write(self, state: TrainState, tensors: Mapping[str, Tensor]) -> None:
        """Copy, write and index this rank's part."""
        try:
            self._buffer.take(tensors)
        finally:
            self._copied.set()
        temporary = self._temporary(state)
        temporary.mkdir(exist_ok=True)
        file = temporary / f"rank_{self._world.rank:05d}.safetensors"
        _write_json(file.with_suffix(".json"), self._buffer.write(file))

    def _commit(self, state: TrainState) -> None:
        """Write the marker, give the directory its name, and delete what need not stay."""
        temporary = self._temporary(state)
        indices = sorted(temporary.glob("rank_*.json"))
        if len(indices) != self._world.size:
            raise CheckpointError(
                f"{temporary} holds the files of {len(indices)} ranks, expected {self._world.size}:"
                " is the run directory shared by all nodes?"
            )
        files = {i.with_suffix(".safetensors").name: json.loads(i.read_text()) for i in indices}
        for index in indices:
            index.unlink()
        MARKER_FORMAT.write(temporary / MARKER, {**asdict(state), "files": files})
        _fsync(temporary)
        final = self._dir / f"{state.images_seen:012d}"
        if final.exists():  # the same state was saved before a restart
            shutil.rmtree(final)
        temporary.replace(final)
        _fsync(self._dir)
        self._prune()

    def _prune(self) -> None:
        paths = {int(path.name): path for path in committed(self._dir.parent)}
        metrics = {images: read_metric(path) for images, path in paths.items()}
        for images in expendable(metrics, self._kept):
            shutil.rmtree(paths[images])


def expendable(checkpoints: Mapping[int, float | None], kept: CheckpointConfig) -> list[int]:
    """Return the images of the checkpoints that no rule keeps, oldest first.

    Kept are the newest, those that first reached a multiple of `keep_every_images`, and with
    `keep_best` the one with the lowest metric (the newest of equals).

    Args:
        checkpoints: Metric (None: unknown) by images seen.
        kept: The rules; whatever one of them keeps, stays.
    """
    images = sorted(checkpoints)
    stay = set(images[-kept.keep_last :])
    if interval := kept.keep_every_images:
        first: dict[int, int] = {}
        for n in images:
            if n >= interval:
                first.setdefault(n // interval, n)
        stay |= set(first.values())
    known = {n: m for n, m in checkpoints.items() if m is not None and math.isfinite(m)}
    if kept.keep_best is not None and known:
        stay.add(min(known, key=lambda n: (known[n], -n)))
    return [n for n in images if n not in stay]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
    _fsync(path)


def _fsync(path: Path) -> None:
    """Force a file's (or directory's) content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


CHUNK = 1 << 24
"""Bytes that are hashed and written at a time; both let the training thread run meanwhile."""
ALIGNMENT = 8
"""Of the data in a safetensors file."""


class StateBuffer:
    """A flat float32 buffer in the host's memory, and the names of what is in it.

    Args:
        device: Where the tensors to come live. For a GPU the buffer is pinned, so that the copy is
            queued among the kernels, before those that come later, and nobody waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._header = b""
        self._flat = torch.empty(0)
        self._copied: torch.cuda.Event | None = None

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy float32 tensors; what is done to them after this has returned does not matter."""
        sizes = [tensor.numel() for tensor in tensors.values()]
        if sum(sizes) != len(self._flat):
            pinned = self._device.type == "cuda"
            self._flat = torch.empty(sum(sizes), pin_memory=pinned)
        self._header = _header({name: tensor.shape for name, tensor in tensors.items()})
        parts = torch.split(self._flat, sizes)
        places = [
            part.view(tensor.shape) for part, tensor in zip(parts, tensors.values(), strict=True)
        ]
        if places:
            with torch.no_grad():
                torch._foreach_copy_(places, list(tensors.values()), non_blocking=True)
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(self._device))

    def write(self, path: Path) -> dict[str, int | str]:
        """Write a safetensors file, durably; returns its `size` and `sha256`.

        The hash is of what is in memory, not of what was read back: a disk that lies is found out.
        """
        if self._copied is not None:
            self._copied.synchronize()
        data = self._flat.numpy().data.cast("B") if len(self._flat) else memoryview(b"")
        digest = hashlib.sha256(self._header)
        with open(path, "wb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(self._header))
            for start in range(0, len(data), CHUNK):
                chunk = data[start : start + CHUNK]
                digest.update(chunk)
                _write_all(file.fileno(), chunk)
            os.fsync(file.fileno())
        return {"size": len(self._header) + len(data), "sha256": digest.hexdigest()}


def _header(shapes: Mapping[str, torch.Size]) -> bytes:
    """Return what precedes the data: the length of a JSON text, and that text."""
    entries, start = {}, 0
    for name, shape in shapes.items():
        end = start + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_all(descriptor: int, data: memoryview) -> None:
    """Write everything: one call may write less, for instance just before a disk is full."""
    while data:
        data = data[os.write(descriptor, data) :]
