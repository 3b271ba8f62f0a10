"""Writing checkpoints: asynchronous, atomic, and agreed upon by all ranks.

A thread copies the state while the loop runs the next step's forward and backward passes, which
leave it alone; only the update waits for the copy. The thread then writes and hashes. When the
threads of all ranks are done, at a step boundary, the ranks exchange sizes and hashes, and rank 0
commits, again in a thread. The format is that of format.py.

A write that fails on any rank, at any of these stages, is given up by all of them: the complete
checkpoints stay as they are, and the then newest state is written after a pause, which doubles with
each failure in a row.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dist_train.checkpoint.format import (
    MARKER,
    MARKER_FORMAT,
    CheckpointError,
    ShardFile,
    StorageError,
    TrainState,
    checkpoint_path,
    committed,
    read_metric,
    shard_name,
)
from dist_train.config import CheckpointConfig
from dist_train.engine.shards import ParameterShard
from dist_train.runtime.world import World
from models.safe_files.atomic import NotOurs, replace_directory, sync_directory, temporary_path

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 3600.0
"""Seconds between a failure and the next attempt, in training."""
LAST_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt when a run ends, and has no time to lose."""
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
FILE = re.compile(r"rank_[0-9]{5}\.safetensors|checkpoint\.json")
UNFINISHED = re.compile(r"\.[0-9]{12,}(\.[0-9a-f]{16})?\.tmp")
UNFINISHED_FILE = re.compile(
    FILE.pattern + r"|rank_[0-9]{5}\.json|\.checkpoint\.json\.[0-9a-f]{16}\.tmp"
)
"""What unfinished checkpoints hold; those of older versions also an index of each rank's file."""


class _Pending(NamedTuple):
    """A checkpoint that was begun; `shards` are the ranks' files, once all are written."""

    state: TrainState
    temporary: Path
    shards: list[ShardFile]


class _OthersFiles(str):
    """A problem that does not pass: something that is not ours has a checkpoint's name."""


class CheckpointWriter:
    """Writes one rank's part of checkpoints in the background, and prunes old ones.

    Args:
        run_dir: The run directory, shared by all ranks.
        world: The process group.
        settings: Which checkpoints stay, and how many may fail.

    Attributes:
        saved: Images seen of the last checkpoint that was committed, or resumed from.

    Raises:
        CheckpointError: A rank may not write the directory, or sees another one than rank 0.
    """

    def __init__(self, run_dir: Path, world: World, settings: CheckpointConfig) -> None:
        self.saved: int | None = None
        self._run_dir, self._dir = run_dir, run_dir / "checkpoints"
        self._world = world
        self._settings = settings
        self._buffer = StateBuffer(world.device)
        self._copied = threading.Event()
        self._copied.set()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._work: Future[ShardFile | None] | None = None
        self._pending: _Pending | None = None
        self._failures, self._problem, self._retry_at = 0, "", math.inf
        self._left_alone: set[Path] = set()
        check_shared(self._dir, world)
        if world.rank == 0:
            self._remove_unfinished()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was begun that is neither committed nor given up."""
        return self._pending is not None

    @property
    def at_rest(self) -> bool:
        """Whether this rank has done what it was to do for the pending checkpoint."""
        return self.pending and (self._work is None or self._work.done())

    @property
    def due(self) -> bool:
        """Whether it is time to write again after a failure; ranks may differ for a moment."""
        return not self.pending and time.monotonic() >= self._retry_at

    @property
    def pausing(self) -> bool:
        """Whether the last checkpoint failed, so that the next one waits until it is `due`."""
        return self._failures > 0

    def begin(self, state: TrainState, groups: Mapping[str, Iterable[ParameterShard]]) -> None:
        """Start copying and writing this rank's shards, after `finish`. Collective.

        They must stay as they are until `wait_for_copy` has returned.

        Args:
            state: Progress to record.
            groups: Owned shards by name ("denoiser", "denoiser.ema", ...).
        """
        self.finish()
        tensors = {
            f"{group}/{kind}/{shard.name}@{shard.start}": values
            for group, shards in groups.items()
            for shard in shards
            for kind, values in {"weight": shard.weight, **shard.moments}.items()
        }
        final = checkpoint_path(self._run_dir, state.images_seen)
        temporary = self._dir / self._world.broadcast_object(temporary_path(final).name)
        self._pending = _Pending(state, temporary, [])
        self._copied.clear()
        self._work = self._thread.submit(self._write, temporary, tensors)

    def wait_for_copy(self) -> None:
        """Return as soon as the shards may change."""
        self._copied.wait()

    def settle(self) -> None:
        """Commit, or give up, what all ranks are `at_rest` with; warn of a failure. Collective.

        Raises:
            StorageError: Too many checkpoints in a row could not be written.
            CheckpointError: Something other than storage went wrong.
        """
        self._settle()
        if self._failures >= self._settings.max_failures:
            raise StorageError(self._last_words(f"{self._failures} times in a row"))

    def finish(self) -> None:
        """Wait until what was begun is committed, or given up. Collective."""
        while self._pending is not None:
            self._settle()

    def save(self, state: TrainState, groups: Mapping[str, Iterable[ParameterShard]]) -> None:
        """Have a state on disk before returning, unless it is there already. Collective.

        Raises:
            StorageError: It could not be written, in several attempts.
            CheckpointError: Files of others are in the way, which no attempt would change.
        """
        self.finish()
        for pause in (0.0, *LAST_PAUSES):
            if self.saved == state.images_seen:
                return
            time.sleep(pause)
            self.begin(state, groups)
            self.finish()
            if isinstance(self._problem, _OthersFiles):
                raise CheckpointError(f"the last checkpoint could not be written: {self._problem}")
        if self.saved != state.images_seen:
            raise StorageError(self._last_words(f"in {1 + len(LAST_PAUSES)} attempts"))

    def _last_words(self, attempts: str) -> str:
        kept = "the last complete one is kept" if committed(self._run_dir) else "there is none yet"
        return (
            f"no checkpoint could be written {attempts}: {self._problem}; {kept}:"
            " make room or repair the storage, and run the same command again"
        )

    def _settle(self) -> None:
        """Wait for all ranks, tell each other how it went, and take the next step. Collective."""
        assert self._pending is not None
        pending, written = self._pending, None
        problem: str | CheckpointError | None = None
        try:
            written = None if self._work is None else self._work.result()
        except NotOurs as error:
            problem = _OthersFiles(f"rank {self._world.rank}: {error}")
        except OSError as error:
            problem = f"rank {self._world.rank}: {error}"
        except Exception as error:
            problem = CheckpointError(f"rank {self._world.rank} failed to save: {error!r}")
        self._work = None
        outcomes = self._world.gather_objects((written, problem))
        problems = [problem for _, problem in outcomes if problem is not None]
        if problems:
            self._give_up(pending, problems)
        elif not pending.shards:
            self._commit_later(pending, [shard for shard, _ in outcomes])
        else:
            self.saved = pending.state.images_seen
            self._pending, self._failures, self._retry_at = None, 0, math.inf
            self._problem = ""

    def _give_up(self, pending: _Pending, problems: list[str | CheckpointError]) -> None:
        """Leave the complete checkpoints as they are, and set the time of the next attempt.

        Raises:
            CheckpointError: It was nothing that another attempt could mend.
        """
        others = [problem for problem in problems if isinstance(problem, _OthersFiles)]
        self._pending, self._problem = None, others[0] if others else str(problems[0])
        self._failures += 1
        pause = min(FIRST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE)
        self._retry_at = time.monotonic() + pause
        if self._world.rank == 0:
            self._remove_unfinished()
        for problem in problems:
            if isinstance(problem, CheckpointError):
                raise problem
        if self._world.rank == 0:
            logger.warning(
                "the checkpoint at %s images could not be written (%s), failure %d of %d in a row;"
                " training continues, and the state is written again after %g s",
                f"{pending.state.images_seen:,}", self._problem, self._failures,
                self._settings.max_failures, pause,
            )  # fmt: skip

    def _write(self, temporary: Path, tensors: Mapping[str, Tensor]) -> ShardFile:
        """Copy and write this rank's part."""
        try:
            self._buffer.take(tensors)
        finally:
            self._copied.set()
        temporary.mkdir(exist_ok=True)
        return self._buffer.write(temporary / shard_name(self._world.rank))

    def _commit_later(self, pending: _Pending, shards: list[ShardFile]) -> None:
        self._pending = pending._replace(shards=shards)
        if self._world.rank == 0:
            self._work = self._thread.submit(self._commit, self._pending)

    def _commit(self, pending: _Pending) -> None:
        """Write the marker, give the directory its name, and delete what need not stay."""
        state, temporary, shards = pending
        files = {shard_name(rank): shard for rank, shard in enumerate(shards)}
        for name, shard in files.items():
            _check_visible(temporary / name, shard)
        fields = {**asdict(state), "files": {name: asdict(shard) for name, shard in files.items()}}
        MARKER_FORMAT.write(temporary / MARKER, fields)
        final = checkpoint_path(self._run_dir, state.images_seen)
        replace_directory(temporary, final, is_checkpoint, "a checkpoint")
        self._prune(state.images_seen)

    def _prune(self, newest: int) -> None:
        """Delete what no rule keeps; checkpoints after the newest are those that were skipped."""
        paths = {int(path.name): path for path in committed(self._run_dir)}
        metrics = {n: read_metric(path) for n, path in paths.items() if n <= newest}
        for images in expendable(metrics, self._settings):
            self._remove(paths[images], FILE)

    def _remove_unfinished(self) -> None:
        """Free the space of checkpoints that were given up, here or by a killed process."""
        with contextlib.suppress(OSError):
            for path in self._dir.iterdir():
                if UNFINISHED.fullmatch(path.name):
                    self._remove(path, UNFINISHED_FILE)

    def _remove(self, path: Path, ours: re.Pattern[str]) -> None:
        """Remove a directory that holds only files called so; say once of others that they stay."""
        try:
            if holds_only(path, ours):
                for file in sorted(path.iterdir()):  # first the marker: without it, it counts not
                    file.unlink()
                path.rmdir()
                return
            problem = "it holds other things than a checkpoint"
        except OSError as error:
            problem = str(error)
        if path not in self._left_alone:
            self._left_alone.add(path)
            logger.warning("%s is not removed: %s", path, problem)


def check_shared(directory: Path, world: World) -> None:
    """Check, by files of no bytes, that all ranks can write a directory, the same one. Collective.

    Raises:
        CheckpointError: On all ranks, what one of them cannot do. Troubles that may pass are none.
    """
    problem = None
    try:
        if world.rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{directory} cannot be made: {error.strerror}"
    probe = directory / world.broadcast_object(temporary_path(directory / "probe").name)
    mine = probe.with_name(f"{probe.name}{world.rank}")
    try:
        if problem is None:
            mine.touch()
    except OSError as error:
        if error.errno in FORBIDDEN:
            problem = f"rank {world.rank} cannot write {directory}: {error.strerror}"
    made = world.gather_objects(mine.exists())
    if made[0] and not probe.with_name(f"{probe.name}0").exists():
        problem = (
            f"rank {world.rank} sees another {directory} than rank 0: put the run directory on"
            " storage that all nodes share"
        )
    problems = [p for p in world.gather_objects(problem) if p is not None]
    with contextlib.suppress(OSError):
        mine.unlink(missing_ok=True)
    if problems:
        raise CheckpointError(problems[0])


def is_checkpoint(path: Path) -> bool:
    """Tell whether a directory holds nothing but what a checkpoint has."""
    return holds_only(path, FILE)


def holds_only(path: Path, names: re.Pattern[str]) -> bool:
    """Tell whether a directory, no link, holds nothing but files of these names, no links."""
    if path.is_symlink() or not path.is_dir():
        return False
    with os.scandir(path) as entries:
        return all(
            names.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            for entry in entries
        )


def _check_visible(file: Path, shard: ShardFile) -> None:
    """Raise OSError if rank 0 does not see a rank's file; it is opened, which updates NFS' view."""
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
    if size != shard.size:
        raise OSError(errno.EIO, f"{size} bytes are there of the {shard.size} written", str(file))


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

    def write(self, path: Path) -> ShardFile:
        """Write a safetensors file, durably; returns its size and hash.

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
        sync_directory(path.parent)
        return ShardFile(len(self._header) + len(data), digest.hexdigest())


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
