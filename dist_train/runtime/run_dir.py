"""The run directory: one configuration, one writer at a time.

run_dir/config.json      resolved once, compared on every later start
run_dir/metrics.jsonl    one line per logging interval
run_dir/checkpoints/     state to resume from
run_dir/snapshots/       EMA weights to sample from
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

import torch

from dist_train.config import RunConfig
from dist_train.precision import has_bfloat16, settle_precision
from dist_train.runtime.world import World
from models.config_io import ConfigError, differences, read_config, to_json, write_config

HARMLESS = frozenset(
    {"total_images", "micro_batch_size", "sharding", "checkpoint", "logging", "divergence",
     "compute.cudnn_benchmark", "compute.channels_last", "compute.compile", "data.path",
     "data.backend", "data.workers", "data.prefetch", "objective.unet.recompute_blocks",
     "objective.generator.recompute_blocks", "objective.discriminator.recompute_blocks"}
)  # fmt: skip
"""Settings that may change within a run: they alter cost and length, not what a step learns."""


FORMAT_VERSION = 2
"""Of a run directory; a newer one is rejected. Runs of version 1 have flat settings."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""How file systems say that they have no locks."""


class RunDirError(RuntimeError):
    """A run directory that cannot be used; the message says why."""


class RunDirBusyError(RunDirError):
    """Another process is training in this run directory."""


def enter_run_dir(
    run_dir: Path, config: RunConfig, world: World, allow_changes: bool
) -> tuple[RunLock | None, RunConfig]:
    """Lock the run directory (rank 0) and settle the configuration, alike on all ranks. Collective.

    Raises:
        RunDirError: On all ranks, for any reason that rank 0 had.
    """
    lock, problem = None, None
    if world.rank == 0:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            lock = RunLock(run_dir)
            config = settle_config(run_dir, config, allow_changes, world.device)
        except (ValueError, OSError, RunDirError) as error:
            problem = str(error)
    problem, config = world.broadcast_object((problem, config))
    if problem is not None:
        raise RunDirError(problem)
    return lock, config


def settle_config(
    run_dir: Path,
    config: RunConfig,
    allow_changes: bool = False,
    device: torch.device | None = None,
    correct: bool = False,
) -> RunConfig:
    """Write the run's configuration, if `validate_config` accepts it, and return it."""
    asked, config = config, validate_config(run_dir, config, allow_changes, device, correct)
    existing = _binding_config(run_dir, asked, device, correct)
    began_as = FORMAT_VERSION if existing is None else _first_format(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    versions = {"format_version": FORMAT_VERSION, "began_as": began_as}
    (run_dir / "format.json").write_text(json.dumps(versions) + "\n")
    write_config(config, run_dir / "config.json")
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
        ConfigError: The run has other settings (they are listed).
    """
    check_format(run_dir)
    existing = _binding_config(run_dir, config, device, correct)
    if existing is not None:
        config = _with_compute_of(existing, config, _first_format(run_dir))
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
    path = run_dir / "config.json"
    existing = read_config(RunConfig, path) if path.exists() else None
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
            else "add --allow-changes to resume with them (they do not alter what is learnt)"
        )
        raise ConfigError(f"{run_dir} was started with other settings ({listing}); {advice}")


def check_format(run_dir: Path) -> None:
    """Raise ConfigError if the run directory was written by a newer relaywave."""
    version = _formats(run_dir)["format_version"]
    if version > FORMAT_VERSION:
        raise ConfigError(
            f"{run_dir} has run directory format {version}, this relaywave knows {FORMAT_VERSION};"
            " use the relaywave that wrote it, or a newer one"
        )


def _first_format(run_dir: Path) -> int:
    """Return the format that a run directory was started in."""
    versions = _formats(run_dir)
    return versions.get("began_as", versions["format_version"])


def _formats(run_dir: Path) -> dict[str, int]:
    path = run_dir / "format.json"
    versions: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    return {"format_version": 1, **versions}


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
            self._file: IO[str] = open(run_dir / "lock", "a+")  # noqa: SIM115 - until release()
        except OSError as error:
            raise RunDirError(f"{run_dir} cannot be written: {error.strerror}") from None
        deadline = time.monotonic() + patience
        while not _lock(self._file):
            if time.monotonic() > deadline:
                owner = _read_owner(self._file)
                self._file.close()
                raise RunDirBusyError(
                    f"{run_dir} is in use by {owner}; stop it, or choose another run directory"
                )
            time.sleep(0.2)
        self._file.seek(0)
        self._file.truncate()
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.ctime()}
        self._file.write(json.dumps(me))
        self._file.flush()

    @staticmethod
    def owner(run_dir: Path) -> str | None:
        """Return who trains in the directory now, or None; changes nothing."""
        try:
            with open(run_dir / "lock") as file:
                return None if _lock(file, fcntl.LOCK_SH) else _read_owner(file)
        except FileNotFoundError:
            return None

    def release(self) -> None:
        """Let others train in the directory."""
        self._file.close()


def _lock(file: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    """Try to take a lock; False if another process holds it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{file.name}: the file system has no locks; start one run only", file=sys.stderr)
    return True


def _read_owner(file: IO[str]) -> str:
    """Return "pid 12 on host since ..." as the owner wrote it."""
    file.seek(0)
    try:
        return "pid {pid} on {host} since {since}".format(**json.loads(file.read()))
    except (ValueError, KeyError):
        return "another process"
