"""TOML files that users write for themselves: where they are, and how they are read."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from models.safe_files.regular import open_file
from models.safe_files.transient import retried
from models.safe_files.typed_json import ConfigError, from_json

T = TypeVar("T")
MAX_BYTES = 1 << 20


def user_file(name: str, variable: str) -> Path:
    """Return where a user's file is, whether it exists or not.

    That is what the environment `variable` names, else `name` in $XDG_CONFIG_HOME/relaywave, else
    in ~/.config/relaywave.
    """
    if named := os.environ.get(variable):
        return Path(named).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "relaywave" / name


def read_toml(path: Path, annotation: type[T] | Any, what: str) -> T:
    """Read a TOML file as a value of `annotation`, by the rules of `from_json`.

    Args:
        path: The file.
        annotation: What it holds: a dataclass, or e.g. `dict[str, str]`.
        what: Its kind, for messages, e.g. `a site profile`.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or has an unknown key or wrong value.
    """
    try:
        text = retried(lambda: _text(path), f"reading {path}")
        content: T = from_json(annotation, tomllib.loads(text), path.name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path} cannot be read as {what}: {reason}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as {what}: {error}") from None
    return content


def _text(path: Path) -> str:
    """Return the text of a file. Raises ValueError if it is no UTF-8, or too large."""
    with open_file(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return content.decode()
