"""Checkpoints: all state that a run needs to resume, by parameter name, sharded and atomic.

A checkpoint is a directory `checkpoints/<images seen>/` with one safetensors file per rank of
*parameter shards* (ranges of flattened parameters: weights, Adam moments, EMA), one JSON index per
file with its size and SHA-256, and `checkpoint.json`, the marker, written last. Shards carry names
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
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dist_train.engine.shards import ParameterShard
from dist_train.runtime.world import World
from models.safe_files.transient import file_sha256

FORMAT_VERSION = 2
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


def committed(run_dir: Path) -> list[Path]:
    """Return the run's committed checkpoints, oldest first."""
    return sorted(marker.parent for marker in run_dir.glob(f"checkpoints/[0-9]*/{MARKER}"))


def read_metric(path: Path) -> float | None:
    """Return the metric that a committed checkpoint was written with, None if it cannot be read."""
    try:
        metric: float | None = json.loads((path / MARKER).read_text())["metric"]
    except (OSError, ValueError, KeyError):
        return None
    return metric


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
    paths = sorted(run_dir.glob("checkpoints/[0-9]*")) if world.rank == 0 else None
    candidates = world.broadcast_object(paths)  # with those that have lost their marker
    problems: list[str] = []
    for path in reversed(candidates):
        mine = check_files(path, world, contents=contents)
        found: list[str] = [*itertools.chain(*world.gather_objects(mine))]
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


def check_files(path: Path, world: World, *, contents: bool = True) -> list[str]:
    """Return what is wrong with this rank's share of a checkpoint's files."""
    try:
        marker = json.loads((path / MARKER).read_text())
        files = sorted(marker["files"].items())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return [f"{path}/{MARKER} cannot be read ({error})"] if world.rank == 0 else []
    if marker["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {marker['format_version']}, this relaywave reads"
            f" {FORMAT_VERSION}; use the relaywave that wrote it"
        )
    problems = []
    for name, index in files[world.rank :: world.size]:
        file = path / name
        if not file.exists():
            problems.append(f"{file} is missing")
        elif file.stat().st_size != index["size"]:
            problems.append(f"{file} has {file.stat().st_size} bytes, expected {index['size']}")
        elif contents and file_sha256(file) != index["sha256"]:
            problems.append(f"{file} does not match its SHA-256")
    return problems


class CheckpointReader:
    """Reads ranges of named tensors from a whole checkpoint, whatever ranks wrote it.

    Args:
        path: A checkpoint found by `find_newest_complete`.
    """

    def __init__(self, path: Path) -> None:
        marker = json.loads((path / MARKER).read_text())
        self.path = path
        self.state = TrainState(
            **{f.name: marker[f.name] for f in fields(TrainState) if f.name in marker}
        )
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
