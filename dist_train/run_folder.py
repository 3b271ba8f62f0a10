"""The run folder: one configuration, one writer at a time.

run_dir/config.json      resolved once, compared on every later start
run_dir/metrics.jsonl    one line per logging interval
run_dir/checkpoints/     state to resume from
run_dir/snapshots/       EMA weights to sample from
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO

from dist_train.config import RunConfig
from models.config_io import ConfigError, differences, read_config, to_json, write_config

HARMLESS = frozenset(
    {"total_images", "micro_batch_size", "zero_stage", "log_images", "checkpoint_images",
     "snapshot_images", "keep_checkpoints", "wandb_project", "nodes", "gpus_per_node", "compile",
     "channels_last", "data.path", "data.backend", "data.workers", "data.prefetch"}
)  # fmt: skip
"""Settings that may change within a run: they alter cost and length, not what a step learns."""


class RunFolderBusyError(RuntimeError):
    """Another process is training in this run folder."""


def settle_config(run_dir: Path, config: RunConfig, allow_changes: bool = False) -> None:
    """Write the run's configuration, or check that it is the one that the run was begun with.

    Raises:
        ConfigError: The folder belongs to other settings (they are listed).
    """
    path = run_dir / "config.json"
    if path.exists():
        changed = differences(to_json(read_config(RunConfig, path)), to_json(config))
        harmful = changed.keys() - HARMLESS
        if changed and (harmful or not allow_changes):
            listing = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items())
            advice = (
                "use another run folder"
                if harmful
                else "add --allow-changes to go on with them (they do not alter what is learnt)"
            )
            raise ConfigError(f"{run_dir} was begun with other settings ({listing}); {advice}")
    run_dir.mkdir(parents=True, exist_ok=True)
    write_config(config, path)


class RunLock:
    """An exclusive lock on a run folder, held by rank 0 for as long as it lives.

    It is an flock, which the kernel releases with the process, so a killed run leaves none behind.

    Args:
        run_dir: The run folder.
        patience: Seconds to wait for a predecessor that is still saving.

    Raises:
        RunFolderBusyError: Another process still holds the lock after that time.
    """

    def __init__(self, run_dir: Path, patience: float = 60.0) -> None:
        self._file: IO[str] = open(run_dir / "lock", "a+")  # noqa: SIM115 - held until release()
        deadline = time.monotonic() + patience
        while not self._try():
            if time.monotonic() > deadline:
                self._file.seek(0)
                owner = self._file.read().strip() or "another process"
                self._file.close()
                raise RunFolderBusyError(
                    f"{run_dir} is in use by {owner}; stop it, or choose another run folder"
                )
            time.sleep(0.2)
        self._file.seek(0)
        self._file.truncate()
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.ctime()}
        self._file.write(json.dumps(owner))
        self._file.flush()

    def release(self) -> None:
        """Let others train in the folder."""
        self._file.close()

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
