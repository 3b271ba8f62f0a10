"""Checkpoints: all state that a run needs to go on, by parameter name, sharded and atomic.

A checkpoint is a folder `checkpoints/<images seen>/` with one safetensors file per rank of
*fragments* (ranges of flattened parameters: weights, Adam moments, EMA), one JSON index per file
with its size and SHA-256, and `checkpoint.json`, the marker, written last. Fragments carry names
and offsets, so neither the number of ranks nor the ZeRO stage is baked in: any rank of a later run
reads just the ranges that it holds.

Why not torch.distributed.checkpoint: ZeRO's partitions are uneven 1-D ranges that its sharded
tensors cannot describe, its metadata is a pickle, and it has no content hashes; one flipped byte
would load silently (spec/FIELD.md sections 4e and 4i).

Writing is asynchronous: the state is copied, training goes on, a thread writes and hashes, and
rank 0 commits at the step boundary at which every rank has reported its file as written.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dist_train.distributed import World
from dist_train.engines import Fragment
from models.snapshot import file_sha256

FORMAT_VERSION = 1
MARKER = "checkpoint.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or cannot be read; the message says what to do."""


@dataclass(frozen=True)
class TrainState:
    """What a checkpoint restores besides tensors.

    Attributes:
        images_seen: The clock of training: all the state of data pipeline, noise and schedules.
        step: Passes over all updates.
        updates: Optimizer updates by network.
    """

    images_seen: int
    step: int
    updates: dict[str, int]


class CheckpointWriter:
    """Writes one rank's part of checkpoints in the background, and prunes old ones.

    Args:
        run_dir: The run folder, shared by all ranks.
        world: The process group.
        keep: How many newest checkpoints stay.
    """

    def __init__(self, run_dir: Path, world: World, keep: int) -> None:
        self._folder = run_dir / "checkpoints"
        self._world = world
        self._keep = keep
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
        marker = {"format_version": FORMAT_VERSION, **state.__dict__, "files": files}
        _write_json(folder / MARKER, marker)
        final = self._folder / f"{state.images_seen:012d}"
        if final.exists():  # the same state was saved before a restart
            shutil.rmtree(final)
        folder.replace(final)
        _fsync(self._folder)

    def _prune(self) -> None:
        for old in committed(self._folder.parent)[: -self._keep]:
            shutil.rmtree(old)


def committed(run_dir: Path) -> list[Path]:
    """Return the run's committed checkpoints, oldest first."""
    return sorted(marker.parent for marker in run_dir.glob(f"checkpoints/[0-9]*/{MARKER}"))


def find_newest_whole(run_dir: Path, world: World) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint, and why newer ones were passed over. Collective.

    Every file is hashed before anything is loaded, the work shared among the ranks, and all ranks
    come to the same answer. None means that the run has no checkpoint at all.

    Raises:
        CheckpointError: There are checkpoints, but all are damaged: starting afresh would silently
            throw the run away.
    """
    candidates = world.broadcast_object(committed(run_dir) if world.rank == 0 else None)
    problems: list[str] = []
    for path in reversed(candidates):
        found: list[str] = [*itertools.chain(*world.gather_objects(_check_files(path, world)))]
        if not found:
            return path, problems
        problems += found
    if problems:
        raise CheckpointError(
            f"no checkpoint of {run_dir} is whole: {'; '.join(problems)}."
            " Restore one from a backup,"
            " or start again in a new run folder"
        )
    return None, []


def _check_files(path: Path, world: World) -> list[str]:
    """Return the problems of this rank's share of a checkpoint's files."""
    try:
        marker = json.loads((path / MARKER).read_text())
        files = sorted(marker["files"].items())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return [f"{path}/{MARKER} cannot be read ({error})"] if world.rank == 0 else []
    if marker["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {marker['format_version']}, this relaywave reads up to"
            f" {FORMAT_VERSION}; use the relaywave that wrote it"
        )
    problems = []
    for name, index in files[world.rank :: world.size]:
        file = path / name
        if not file.exists():
            problems.append(f"{file} is missing")
        elif file.stat().st_size != index["size"]:
            problems.append(f"{file} has {file.stat().st_size} bytes, expected {index['size']}")
        elif file_sha256(file) != index["sha256"]:
            problems.append(f"{file} does not match its SHA-256")
    return problems


class CheckpointReader:
    """Reads ranges of named tensors from a whole checkpoint, whatever ranks wrote it.

    Args:
        path: A checkpoint found by `find_newest_whole`.
    """

    def __init__(self, path: Path) -> None:
        marker = json.loads((path / MARKER).read_text())
        self.path = path
        self.state = TrainState(marker["images_seen"], marker["step"], marker["updates"])
        self._pieces: dict[str, list[tuple[int, str, Any]]] = {}
        for name in sorted(marker["files"]):
            try:
                file = safe_open(path / name, framework="pt")
            except SafetensorError as error:
                raise CheckpointError(f"{path / name} cannot be read: {error}") from None
            keys: list[str] = file.keys()  # type: ignore[no-untyped-call]
            for key in keys:
                tensor, _, start = key.rpartition("@")
                self._pieces.setdefault(tensor, []).append((int(start), key, file))

    @torch.no_grad()
    def read(self, tensor: str, start: int, out: Tensor) -> None:
        """Fill the 1-D `out` with elements start, start+1, ... of a flattened tensor.

        Args:
            tensor: `<group>/<kind>/<parameter>`, for instance `denoiser/exp_avg/out_conv.weight`.
            start: First element.
            out: Destination, any device.

        Raises:
            CheckpointError: The checkpoint does not hold the whole range.
        """
        filled, end = 0, start + out.numel()
        for first, key, file in self._pieces.get(tensor, []):
            piece = file.get_slice(key)
            size = piece.get_shape()[0]
            low, high = max(start, first), min(end, first + size)
            if low < high:
                out[low - start : high - start].copy_(piece[low - first : high - first])
                filled += high - low
        if filled != out.numel():
            raise CheckpointError(
                f"{self.path} holds {filled} of the {out.numel()} values of {tensor} from {start}:"
                " it belongs to another architecture"
            )

    def restore(self, group: str, fragments: Sequence[Fragment]) -> None:
        """Overwrite fragments (weights and moments) with the state of a group."""
        for fragment in fragments:
            for kind, values in {"weight": fragment.weight, **fragment.moments}.items():
                self.read(f"{group}/{kind}/{fragment.name}", fragment.start, values)

    @torch.no_grad()
    def restore_parameters(self, group: str, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrite whole parameters, by name, with the weights of a group."""
        for name, parameter in parameters:
            flat = torch.empty(parameter.numel(), dtype=parameter.dtype)
            self.read(f"{group}/weight/{name}", 0, flat)
            parameter.copy_(flat.view(parameter.shape))


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
