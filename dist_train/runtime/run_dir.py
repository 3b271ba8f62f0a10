"""The run directory: one configuration, one writer at a time.

run_dir/config.json      resolved once, compared on every later start
run_dir/data.json        which images it is trained on, compared as well
run_dir/metrics.jsonl    one line per logging interval
run_dir/events.jsonl     starts, ends and roll-backs, for reports
run_dir/checkpoints/     state to resume from
run_dir/snapshots/       EMA weights to sample from
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import torch

from data_pipelines.packed.manifest import DatasetInfo
from dist_train.config import RunConfig
from dist_train.precision import has_bfloat16, settle_precision
from dist_train.runtime.run_data import DATA, check_data, record_data
from dist_train.runtime.run_files import (
    CONFIG,
    FORMAT_VERSION,
    REMEDY,
    RunFormat,
    check_may_start,
    is_run,
    read_format,
    read_settings,
    write_settings,
)
from dist_train.runtime.world import World
from models.command_line import describe
from models.config_io import ConfigError, differences, from_json, to_json
from models.families import without_sampling
from models.plugins import load_recorded
from models.safe_files.locks import FileLock, read_owner, try_lock

T = TypeVar("T")
logger = logging.getLogger(__name__)

HARMLESS = frozenset(
    {"total_images", "micro_batch_size", "sharding", "checkpoint", "logging", "divergence",
     "imports",
     "compute.cudnn_benchmark", "compute.channels_last", "compute.compile", "data.path",
     "data.backend", "data.workers", "data.prefetch", "objective.unet.recompute_blocks",
     "objective.generator.recompute_blocks", "objective.discriminator.recompute_blocks"}
)  # fmt: skip
"""Settings that may change within a run: they alter cost and length, not what a step learns."""


class RunDirError(RuntimeError):
    """A run directory that cannot be used; the message says why."""


class RunDirBusyError(RunDirError):
    """Another process is training in this run directory."""


class RunDir:
    """A run directory that this process group works in: rank 0 holds its lock.

    Nothing but the lock is written before `begin`. A run that is rejected before that leaves
    nothing behind.

    Args:
        path: The directory, which may not exist.
        config: The configuration that is asked for.
        world: The process group. Making it is collective, as are all methods.
        allow_changes: Whether harmless settings may differ.

    Attributes:
        config: The settings that the run has: those that were asked for, with its precision.
            Whoever settles `micro_batch_size=auto` sets it before `begin`, which records that.
        micro_batch_size: What `auto` became when the run began; None before that.

    Raises:
        RunDirError: On all ranks, for any reason that rank 0 had.
    """

    def __init__(self, path: Path, config: RunConfig, world: World, allow_changes: bool) -> None:
        self._path, self._world, self._asked = path, world, config
        self._allow_changes = allow_changes
        self._lock: RunLock | None = None
        self._made: list[Path] = []
        self._began = False
        self.config: RunConfig = self._on_rank_0(self._enter)
        self.micro_batch_size: int | None = self._on_rank_0(self._read_micro_batch_size)

    def begin(self, info: DatasetInfo) -> None:
        """Write the settings and what identifies the data: from here on it is a run.

        Raises:
            RunDirError: They cannot be written.
        """
        self._on_rank_0(lambda: self._write(info))
        self._began = True

    def leave(self) -> None:
        """Let others train in the directory; if the run was rejected, remove what was made."""
        if self._lock is not None:
            self._lock.release()
        if not self._began:
            for path in self._made:
                _remove_if_empty(path)

    def _enter(self) -> RunConfig:
        path = self._path
        validate_config(path, self._asked, self._allow_changes, self._world.device)
        possible = [path / "lock", path / "checkpoints", path, *path.parents]
        self._made = [entry for entry in possible if not entry.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(path)
            # Again: another process may have trained meanwhile.
            return validate_config(path, self._asked, self._allow_changes, self._world.device)
        except BaseException:
            self.leave()
            raise

    def _read_micro_batch_size(self) -> int | None:
        trains = any(self._path.glob("snapshots/[0-9]*"))
        return read_format(self._path).micro_batch_size if trains else None

    def _write(self, info: DatasetInfo) -> None:
        size, asked = self.config.micro_batch_size, self._asked.micro_batch_size
        chosen = size if asked == "auto" and isinstance(size, int) else None
        settle_config(
            self._path,
            self._asked,
            self._allow_changes,
            self._world.device,
            micro_batch_size=self.micro_batch_size or chosen,
        )
        if not check_data(self._path, info):
            if any(self._path.glob("snapshots/[0-9]*")):
                print(f"{self._path / DATA}: recorded the set that the run is trained on")
            record_data(self._path, info)

    def _on_rank_0(self, action: Callable[[], T]) -> T:
        """Return on all ranks what an action returned on rank 0, or raise what it raised there."""
        result, problem = None, None
        if self._world.rank == 0:
            try:
                result = action()
            except (ValueError, OSError, RunDirError) as error:
                problem = describe(error)
        problem, result = self._world.broadcast_object((problem, result))
        if problem is not None:
            raise RunDirError(problem)
        return cast(T, result)


def _remove_if_empty(path: Path) -> None:
    """Remove a lock, or an empty directory."""
    with contextlib.suppress(OSError):
        path.unlink() if path.name == "lock" else path.rmdir()


def read_run_config(run_dir: Path) -> RunConfig:
    """Read the configuration of a run, and import the plugins that it records.

    One whose sampler is rejected now is read with the sampler's defaults, which is said.

    Raises:
        ConfigError: The directory is no run, or its config.json is damaged or was changed.
        PluginError: A plugin has changed since it was recorded, or cannot be imported.
    """
    document = read_settings(run_dir)
    load_recorded(document.get("imports"), run_dir / CONFIG)
    try:
        return from_json(RunConfig, document, "it")
    except (ConfigError, RecursionError) as error:
        problem = f"{run_dir / CONFIG} does not parse: {error}"
    others = without_sampling(document)
    if others is not None:
        with contextlib.suppress(ConfigError, RecursionError):
            config: RunConfig = from_json(RunConfig, others, "it")
            logger.warning("%s; the sampler's defaults are used, for grids", problem)
            return config
    raise ConfigError(f"{problem}; {REMEDY}")


def settle_config(
    run_dir: Path,
    config: RunConfig,
    allow_changes: bool = False,
    device: torch.device | None = None,
    correct: bool = False,
    micro_batch_size: int | None = None,
) -> RunConfig:
    """Write the run's configuration, if `validate_config` accepts it, and return it.

    Args as `validate_config`, and:
        micro_batch_size: What `auto` became; None keeps what is recorded.
    """
    asked, config = config, validate_config(run_dir, config, allow_changes, device, correct)
    existing = _binding_config(run_dir, asked, device, correct)
    recorded = read_format(run_dir) if existing else RunFormat(began_as=FORMAT_VERSION)
    micro_batch_size = micro_batch_size or recorded.micro_batch_size
    run_dir.mkdir(parents=True, exist_ok=True)
    write_settings(run_dir, to_json(config), recorded.began_as, micro_batch_size)
    return config


def validate_config(
    run_dir: Path,
    config: RunConfig,
    allow_changes: bool = False,
    device: torch.device | None = None,
    correct: bool = False,
) -> RunConfig:
    """Check that a configuration is the one that the run was started with; writes nothing.

    Args:
        run_dir: The run directory.
        config: The configuration that is asked for.
        allow_changes: Whether harmless settings may differ.
        device: Where the networks will compute; it settles the precision. None, for instance on a
            login node, leaves that to the first process that trains.
        correct: Whether, without a device, a recipe's settings may be corrected in a run that has
            not made its first step. (A process that trains may always do so.)

    Returns:
        The configuration, with the precision that the run was started with.

    Raises:
        ConfigError: The run has other settings (they are listed), or the directory is no run's.
    """
    check_may_start(run_dir)
    existing = _binding_config(run_dir, config, device, correct)
    if existing is not None:
        config = _with_compute_of(existing, config, read_format(run_dir).began_as)
    if device is not None:
        config = settle_precision(config, has_bfloat16(device))
        existing = existing and settle_precision(existing, has_bfloat16(device))
    if existing is not None:
        _compare(run_dir, existing, config, allow_changes)
    return config


def _binding_config(
    run_dir: Path, config: RunConfig, device: torch.device | None, correct: bool
) -> RunConfig | None:
    """Return the settings that bind the run, None if those asked for may take their place."""
    existing = read_run_config(run_dir) if is_run(run_dir) else None
    replaces = device is not None or (correct and existing and existing.recipe == config.recipe)
    trains = any(run_dir.glob("snapshots/[0-9]*"))  # else it was rejected before its first step
    return None if replaces and not trains else existing


def _with_compute_of(existing: RunConfig, config: RunConfig, began_as: int) -> RunConfig:
    """Return settings with what was settled when the run began.

    That is what `auto` became. A run of format 1 also keeps its precision, TF32 and cuDNN's choice
    where the recipe names others by now: recipes did not pin them then.
    """
    was, wanted = existing.compute, config.compute
    if was.precision != "auto" and (wanted.precision == "auto" or began_as == 1):
        wanted = replace(wanted, precision=was.precision)
    if began_as == 1:
        wanted = replace(wanted, tf32=was.tf32, cudnn_benchmark=was.cudnn_benchmark)
    config = replace(config, compute=wanted)
    return config if wanted.precision == "auto" else settle_precision(config, bfloat16=False)


def _compare(run_dir: Path, existing: RunConfig, config: RunConfig, allow_changes: bool) -> None:
    """Raise ConfigError, listing the differences, unless they are harmless and allowed."""
    changed = differences(to_json(existing), to_json(config))
    harmful = {key for key in changed if not _is_harmless(key)}
    if changed and (harmful or not allow_changes):
        listed = ["recipe"] if "recipe" in changed else list(changed)  # it explains all others
        pairs = [(key, *changed[key]) for key in listed]
        listing = "; ".join(f"{key}: {old!r} -> {new!r}" for key, old, new in pairs)
        advice = (
            "use another run directory"
            if harmful
            else "add --allow-changes to resume with other code"
            if "imports" in changed
            else "add --allow-changes to resume with them (they do not alter what is learnt)"
        )
        raise ConfigError(f"{run_dir} was started with other settings ({listing}); {advice}")


def _is_harmless(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in HARMLESS)


class RunLock:
    """An exclusive lock on a run directory, held by rank 0 for as long as it lives.

    It is an flock, which the kernel releases with the process, so a killed run leaves none behind
    whatever the file says. Where the file system has no locks, a warning is all that there is.

    Args:
        run_dir: The run directory.
        patience: Seconds to wait for a predecessor that is still saving.

    Raises:
        RunDirBusyError: Another process still holds the lock after that time.
        RunDirError: The directory cannot be written.
    """

    def __init__(self, run_dir: Path, patience: float = 60.0) -> None:
        try:
            self._lock = FileLock(run_dir / "lock", stays=True, unlocked="start one run only")
        except OSError as error:
            raise RunDirError(f"{run_dir} cannot be written: {error.strerror}") from None
        if not self._lock.take(patience):
            owner = self._lock.owner
            self._lock.release()
            raise RunDirBusyError(
                f"{run_dir} is in use by {owner}; stop it, or choose another run directory"
            )

    @staticmethod
    def owner(run_dir: Path) -> str | None:
        """Return who trains in the directory now, or None; changes nothing."""
        try:
            with open(run_dir / "lock") as file:
                return None if try_lock(file, fcntl.LOCK_SH) else read_owner(file)
        except FileNotFoundError:
            return None

    def release(self) -> None:
        """Let others train in the directory."""
        self._lock.release()
