"""Checkpoints: all state that a run needs to resume, by parameter name, sharded and atomic.

A checkpoint is a directory `checkpoints/<images seen>/` with one safetensors file per rank of
*parameter shards* (ranges of flattened parameters: weights, Adam moments, EMA), and
`checkpoint.json`, the marker, written last: the clock, the size and SHA-256 of each file, and a
checksum of the marker itself (those of older versions have none, and are read). Shards carry names
and offsets, so neither the number of ranks nor the ZeRO stage is baked in: any rank of a later run
reads just the ranges that it holds.

Why not torch.distributed.checkpoint (as of torch 2.13): it has no content hashes, so that one
flipped byte loads silently (docs/reference/deepspeed.md#5.2), its metadata is a pickle, and only
ShardedTensor, which a collective builds for each tensor, can describe ranges that begin and end
inside a parameter.

This file reads; writer.py writes.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dist_train.engine.shards import ParameterShard
from dist_train.runtime.world import World
from models.command_line import EXIT_STORAGE
from models.safe_files.documents import DocumentError, Format
from models.safe_files.transient import file_sha256
from models.snapshot import SHA256

MARKER = "checkpoint.json"
NAME = re.compile(r"[0-9]{12,}")
"""Of a checkpoint's directory: the images seen. Others are not ours."""
TOO_LARGE = 1 << 62
LOSS_SCALE = frozenset({"scale", "skipped", "skipped_in_a_row", "finite_in_a_row"})


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or cannot be read; the message says what to do."""


class StorageError(CheckpointError):
    """Storage failed for too long; the last complete checkpoint is kept."""

    exit_code = EXIT_STORAGE


@dataclass(frozen=True)
class TrainState:
    """What a checkpoint restores besides tensors.

    Attributes:
        images_seen: The clock of training: all the state of data pipeline, noise and schedules.
        step: Passes over all updates.
        updates: Optimizer updates by network.
        loss_scales: State of the loss scale by network.
        data_offset: Images of the global order that roll-backs skipped.
        metric: Value of the metric that the best checkpoint is chosen by.
        data_digest: What identifies the training data; "" in checkpoints of older versions.
    """

    images_seen: int
    step: int
    updates: dict[str, int]
    loss_scales: dict[str, dict[str, float]] = field(default_factory=dict)
    data_offset: int = 0
    metric: float | None = None
    data_digest: str = ""


@dataclass(frozen=True)
class ShardFile:
    """Size in bytes and SHA-256 of one rank's file."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        if not 0 <= self.size < TOO_LARGE:
            raise ValueError(f"size={self.size} is negative or too large")
        if not SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256={self.sha256[:80]!r} is no SHA-256")


@dataclass(frozen=True, kw_only=True)
class Marker(TrainState):
    """What checkpoint.json holds: the state, and the ranks' files by name."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    files: dict[str, ShardFile]

    def __post_init__(self) -> None:
        """Check what even a marker without a checksum must fulfil."""
        for name in ("images_seen", "step", "data_offset"):
            if not 0 <= getattr(self, name) < TOO_LARGE:
                raise ValueError(f"{name}={getattr(self, name)} is negative or too large")
        if self.images_seen % self.step if self.step else self.images_seen:
            raise ValueError(f"images_seen={self.images_seen} is no multiple of step={self.step}")
        for name, count in self.updates.items():
            if not 0 <= count <= self.step:
                raise ValueError(f"{count} updates of {name[:80]!r} in {self.step} steps")
        for name, scale in self.loss_scales.items():
            fits = scale.keys() >= LOSS_SCALE and name in self.updates
            if not fits or not all(0 <= v < math.inf for v in scale.values()):
                raise ValueError(f"loss_scales of {name[:80]!r} are not those of a network")
        if not self.files or self.files.keys() != {shard_name(r) for r in range(len(self.files))}:
            raise ValueError(f"files are not those of ranks 0 to {len(self.files) - 1}")

    def state(self) -> TrainState:
        """Return what is restored."""
        return TrainState(**{f.name: getattr(self, f.name) for f in fields(TrainState)})


MARKER_FORMAT = Format(
    schema=Marker, version=2, remedy="restore it from a backup, or leave it: an older one is used"
)


def shard_name(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank_{rank:05d}.safetensors"


def checkpoint_path(run_dir: Path, images_seen: int) -> Path:
    """Return the directory of a checkpoint."""
    return run_dir / "checkpoints" / f"{images_seen:012d}"


def committed(run_dir: Path) -> list[Path]:
    """Return the run's committed checkpoints, oldest first."""
    return [path for path in _candidates(run_dir) if (path / MARKER).exists()]


def _candidates(run_dir: Path) -> list[Path]:
    """Return what is called like a checkpoint, oldest first, also if it has lost its marker."""
    paths = (run_dir / "checkpoints").glob("[0-9]*")
    return sorted((p for p in paths if NAME.fullmatch(p.name)), key=lambda path: int(path.name))


def read_marker(path: Path) -> Marker:
    """Read a checkpoint's marker.

    Raises:
        DocumentError: It is missing or damaged, or belongs to another checkpoint.
    """
    try:
        marker = MARKER_FORMAT.read(path / MARKER)
    except FileNotFoundError:
        raise DocumentError(f"{path / MARKER} cannot be read: it is missing") from None
    if path.name != f"{marker.images_seen:012d}":
        raise DocumentError(
            f"{path / MARKER} is of {marker.images_seen} images: the directory was renamed, or the"
            " marker is another checkpoint's"
        )
    return marker


def read_metric(path: Path) -> float | None:
    """Return the metric that a committed checkpoint was written with, None if it cannot be read."""
    try:
        return read_marker(path).metric
    except DocumentError:
        return None


def find_newest_complete(
    run_dir: Path, world: World, *, contents: bool = True
) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint, and why newer ones were skipped. Collective.

    Every file is hashed before anything is loaded, the work shared among the ranks, and all ranks
    come to the same answer; without `contents` only sizes are compared, for a first look. None
    means that the run has no checkpoint at all.

    Raises:
        CheckpointError: There are checkpoints, but all are damaged: starting afresh would silently
            throw the run away.
    """
    candidates = world.broadcast_object(_candidates(run_dir) if world.rank == 0 else None)
    problems: list[str] = []
    for path in reversed(candidates):
        found = find_problems(path, world, contents=contents)
        if not found:
            return path, problems
        problems += found
    if problems:
        raise CheckpointError(
            f"no checkpoint of {run_dir} is complete: {'; '.join(problems)}."
            " Restore one from a backup,"
            " or start again in a new run directory"
        )
    return None, []


def find_problems(path: Path, world: World, *, contents: bool = True) -> list[str]:
    """Return what is wrong with a checkpoint; each rank checks its share of the files. Collective.

    Rank 0 alone reads the marker, so that ranks cannot see different ones.
    """
    marker, problem = world.broadcast_object(_try_marker(path) if world.rank == 0 else None)
    if marker is None:
        return [problem]
    mine = sorted(marker.files.items())[world.rank :: world.size]
    found = [_file_problem(path / name, file, contents) for name, file in mine]
    problems = [p for p in itertools.chain(*world.gather_objects(found)) if p is not None]
    if problems or not contents:
        return problems
    opened = world.broadcast_object(_try_reader(path) if world.rank == 0 else None)
    return [] if opened is None else [opened]


def _try_marker(path: Path) -> tuple[Marker | None, str]:
    try:
        return read_marker(path), ""
    except DocumentError as error:
        return None, str(error)


def _file_problem(file: Path, expected: ShardFile, contents: bool) -> str | None:
    """Return what is wrong with a rank's file, if anything."""
    try:
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode):
            return f"{file} is no file"
        if found.st_size != expected.size:
            return f"{file} has {found.st_size} bytes, expected {expected.size}"
        if contents and file_sha256(file) != expected.sha256:
            return f"{file} does not match its SHA-256"
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    return None


def _try_reader(path: Path) -> str | None:
    """Return why a checkpoint whose files are as they were written cannot be used, if so."""
    try:
        CheckpointReader(path)
    except CheckpointError as error:
        return str(error)
    return None


class CheckpointReader:
    """Reads ranges of named tensors from a complete checkpoint, whatever ranks wrote it.

    Args:
        path: A checkpoint found by `find_newest_complete`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pieces: dict[str, list[tuple[int, str, Any]]] = {}
        try:
            marker = read_marker(path)
            for name in sorted(marker.files):
                self._open(path / name)
        except DocumentError as error:
            raise CheckpointError(str(error)) from None
        self.state = marker.state()
        groups = {tensor.partition("/")[0] for tensor in self._pieces}
        networks = {group for group in groups if "." not in group}
        if networks != marker.updates.keys():
            raise CheckpointError(
                f"{path} holds tensors of {_listed(networks)}, but its marker counts updates of"
                f" {_listed(marker.updates)}"
            )

    def _open(self, file: Path) -> None:
        """Take note of the ranges that a file holds. Raises CheckpointError if it is not ours."""
        try:
            opened = safe_open(file, framework="pt")
            keys: list[str] = opened.keys()  # type: ignore[no-untyped-call]
            for key in keys:
                piece = opened.get_slice(key)  # type: ignore[no-untyped-call]
                tensor, _, start = key.rpartition("@")
                if not start.isdecimal() or len(piece.get_shape()) != 1:
                    raise CheckpointError(f"{file} holds {key[:80]!r}, which is no shard")
                self._pieces.setdefault(tensor, []).append((int(start), key, opened))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from None

    @torch.no_grad()
    def read(self, tensor: str, start: int, out: Tensor) -> None:
        """Fill the 1-D `out` with elements start, start+1, ... of a flattened tensor.

        Args:
            tensor: `<group>/<kind>/<parameter>`, for instance `denoiser/exp_avg/out_conv.weight`.
            start: First element.
            out: Destination, any device.

        Raises:
            CheckpointError: The checkpoint does not hold all of the range.
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

    def restore(self, group: str, shards: Sequence[ParameterShard]) -> None:
        """Overwrite shards (weights and moments) with the state of a group."""
        for shard in shards:
            for kind, values in {"weight": shard.weight, **shard.moments}.items():
                self.read(f"{group}/{kind}/{shard.name}", shard.start, values)

    @torch.no_grad()
    def restore_parameters(self, group: str, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite whole parameters, by name, with the weights of a group."""
        for name, parameter in parameters.items():
            flat = torch.empty(parameter.numel(), dtype=parameter.dtype)
            self.read(f"{group}/weight/{name}", 0, flat)
            parameter.copy_(flat.view(parameter.shape))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(name[:80] for name in names)) or "nothing"
