"""`config.json` and `format.json` of a run, and what else its directory holds; without torch.

format.json has the checksum of config.json: jobs read their settings from there, and one changed
digit would train something else.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from models.plugins import load_recorded
from models.safe_files.documents import (
    DocumentError,
    Format,
    checksum,
    read_object,
    replace_document,
)
from models.safe_files.trees import check_tree
from models.safe_files.typed_json import ConfigError, from_json

logger = logging.getLogger(__name__)

CONFIG, FORMAT = "config.json", "format.json"
FORMAT_VERSION = 2
"""Of a run directory; a newer one is rejected. Runs of version 1 have flat settings."""
ENTRIES = frozenset(
    {CONFIG, FORMAT, "data.json", "events.jsonl", "lock", "metrics.jsonl", "checkpoints",
     "snapshots", "ema", "grids", "hangs", "profile", "tensorboard", "wandb", "wandb_id",
     "loggers.lock", "slurm", "evaluation"}
)  # fmt: skip
"""What a run directory may hold before a run is started in it."""
MAX_BYTES, MAX_ENTRIES, MAX_DEPTH = 1 << 24, 100_000, 50
"""Bounds of a configuration."""
LARGEST = 1 << 63
REMEDY = "restore it from a backup, or use another run directory"


@dataclass(frozen=True, kw_only=True)
class RunFormat:
    """What format.json holds besides the version of the layout.

    Attributes:
        began_as: The layout's version when the run was started.
        config_checksums: Checksum of config.json; while it is being replaced, of both.
        micro_batch_size: What `auto` became when the run began; null if it has not.
    """

    IGNORES_UNKNOWN: ClassVar[bool] = True
    began_as: int = 1
    config_checksums: tuple[str, ...] = ()
    micro_batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What those need of a run's settings who only watch it."""

    IGNORES_UNKNOWN: ClassVar[bool] = True
    recipe: str = ""
    total_images: int

    def __post_init__(self) -> None:
        if self.total_images < 1:
            raise ValueError(f"total_images={self.total_images} must be positive")


_FORMAT = Format(
    schema=RunFormat,
    version=FORMAT_VERSION,
    oldest=1,
    remedy="restore it from a backup; if config.json is as the run was started with, the file can"
    " be removed: it is written again",
)


def is_run(path: Path) -> bool:
    """Whether a directory is that of a run."""
    return (path / CONFIG).exists()


def check_is_run(path: Path) -> None:
    """Raise ConfigError, saying what is there instead, unless a directory is that of a run."""
    if is_run(path):
        return
    if not path.is_dir():
        raise ConfigError(f"{path} is not a run directory: there is no such directory")
    runs = sorted(config.parent.name for config in path.glob(f"*/{CONFIG}"))
    hint = f"; runs in it are {', '.join(runs[:5])}" if runs else ""
    raise ConfigError(f"{path} is not a run directory: it has no {CONFIG}{hint}")


def check_may_start(run_dir: Path) -> None:
    """Check that a directory is a run's, or may become one; nothing is written.

    Raises:
        ConfigError: It holds other things, or a run that has lost its configuration.
    """
    if is_run(run_dir) or not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is no directory; name another one for the run")
    names = sorted(entry.name for entry in run_dir.iterdir())
    foreign = [name for name in names if name not in ENTRIES and not name.startswith(".nfs")]
    if foreign:
        some = ", ".join(map(ascii, foreign[:3])) + (", ..." if len(foreign) > 3 else "")
        raise ConfigError(
            f"{run_dir} holds other things than a run ({some}) and is left as it is; name another"
            " directory for the run"
        )
    for name in ("checkpoints", "snapshots"):
        if any((run_dir / name).glob("[0-9]*")):
            raise ConfigError(
                f"{run_dir} has {name}, but no {CONFIG}: {CONFIG} was lost; restore it from a"
                " backup, or use another run directory"
            )


def read_summary(run_dir: Path) -> RunSummary:
    """Read a run's recipe and length. Raises ConfigError as `read_settings`."""
    document = read_settings(run_dir)
    try:
        return from_json(RunSummary, document | {"type": "RunSummary"}, "it")
    except ConfigError as error:
        raise ConfigError(f"{run_dir / CONFIG} does not parse: {error}; {REMEDY}") from None


def read_settings(run_dir: Path) -> dict[str, Any]:
    """Read a run's config.json, and compare it with its checksum.

    Raises:
        ConfigError: The directory is no run, or the file is damaged or was changed.
    """
    path = run_dir / CONFIG
    try:
        document = read_object(path, MAX_BYTES)
        check_tree(document, MAX_ENTRIES, MAX_DEPTH)
        _check_numbers(document)
    except FileNotFoundError:
        check_is_run(run_dir)
        raise
    except DocumentError as error:
        raise ConfigError(f"{error}; {REMEDY}") from None
    except ValueError as error:  # too deep, too many, or too large
        raise ConfigError(f"{path} holds no settings: {error}; {REMEDY}") from None
    known = read_format(run_dir).config_checksums
    if known and checksum(document) not in known:
        raise ConfigError(
            f"{path} was changed after the run wrote it (its checksum in {FORMAT} does not match);"
            " restore it from a backup, and change settings by `relaywave train`"
        )
    return document


def import_recorded(run_dir: Path) -> None:
    """Import the plugins of a run that is to be resumed, so that its recipe is known.

    Raises:
        ConfigError: As `read_settings`.
        PluginError: A plugin has changed since it was recorded, or cannot be imported.
    """
    if is_run(run_dir):
        load_recorded(read_settings(run_dir).get("imports"), run_dir / CONFIG)


def _check_numbers(value: Any) -> None:
    """Raise ValueError if a number anywhere in a document is not finite, or too large."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            _check_numbers(entry)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    elif isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError("a number in it is too large")


def write_settings(
    run_dir: Path, document: Mapping[str, Any], began_as: int, micro_batch_size: int | None = None
) -> None:
    """Write config.json and format.json. A kill in between leaves a run that can be read."""
    chosen = {} if micro_batch_size is None else {"micro_batch_size": micro_batch_size}

    def note(checksums: Sequence[str]) -> None:
        fields = {"began_as": began_as, "config_checksums": checksums, **chosen}
        _FORMAT.write(run_dir / FORMAT, fields)

    replace_document(run_dir / CONFIG, document, note)


def read_format(run_dir: Path) -> RunFormat:
    """Read format.json; a run without one, or with an empty one, is of version 1.

    A kill while older versions wrote it left it empty.

    Raises:
        ConfigError: It is damaged, or of a newer relaywave.
    """
    path = run_dir / FORMAT
    try:
        if path.stat().st_size == 0 and path.is_file():
            logger.warning("%s is empty; it is written again when the run is resumed", path)
            return RunFormat()
        return _FORMAT.read(path)
    except FileNotFoundError:
        return RunFormat()
    except DocumentError as error:
        raise ConfigError(str(error)) from None
