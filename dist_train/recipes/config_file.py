"""A run's settings: of a recipe, of a file (`--config`) and of the command line, in this order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dist_train.config import RunConfig
from dist_train.recipes.registry import find_recipe
from models.config_io import ConfigError, from_json, override, to_json
from models.plugins import imported, load_recorded
from models.safe_files.documents import DocumentError, read_object
from models.safe_files.user_toml import read_toml


def resolve_config(recipe: str | None, file: Path | None, overrides: Sequence[str]) -> RunConfig:
    """Return the settings that a command line asks for.

    A file as `--print-config` prints it, or as a run records it, has a `type` and is complete; one
    without is a part of that, and changes a recipe.

    Args:
        recipe: Name of the recipe; None takes the file's.
        file: JSON or, if its name ends with .toml, TOML, where the text "null" is JSON's null.
        overrides: `key=value`, above both.

    Raises:
        ConfigError: The recipe is unknown or missing, or a setting is unknown or impossible.
    """
    if file is None:
        if recipe is None:
            raise ConfigError("name a recipe (`relaywave train list`), or a file by --config")
        return override(find_recipe(recipe)(), overrides)
    settings = _read(file)
    named = settings.pop("recipe", None)
    if recipe is not None and named not in (None, recipe):
        raise ConfigError(f"{file} is of the recipe {named!r}, not {recipe!r}; leave one out")
    if "type" in settings:
        load_recorded(settings.get("imports"), file)
        document = settings | {"recipe": named or ""}
        config: RunConfig = from_json(RunConfig, document, str(file))
        return override(replace(config, imports=imported()), overrides)
    if recipe is None and not isinstance(named, str):
        raise ConfigError(f"{file} has no recipe that its settings change; add one, or name RECIPE")
    try:
        return _changed(find_recipe(recipe or str(named))(), settings, overrides)
    except ConfigError as error:
        raise ConfigError(f"{error} (with the settings of {file})") from None


def _changed(base: RunConfig, settings: Mapping[str, Any], overrides: Sequence[str]) -> RunConfig:
    """Return a recipe's settings, changed by a file's where the command line has none."""
    given = [text.partition("=")[0] for text in overrides]
    changes = [
        f"{key}={json.dumps(value)}"
        for key, value in _changes(to_json(base), settings)
        if not any(key == other or key.startswith(f"{other}.") for other in given)
    ]
    return override(base, [*changes, *overrides])


def _read(file: Path) -> dict[str, Any]:
    """Return the settings of a file. Raises ConfigError if it has none."""
    if file.suffix == ".toml":
        read: dict[str, Any] = read_toml(file, dict[str, Any], "settings of a run")
        return {key: _with_nulls(value) for key, value in read.items()}
    try:
        return read_object(file)
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from None
    except DocumentError as error:
        raise ConfigError(f"--config {error}") from None


def _with_nulls(value: Any) -> Any:
    """Return a value of a TOML file as JSON would have it."""
    if isinstance(value, dict):
        return {key: _with_nulls(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_nulls(entry) for entry in value]
    return None if value == "null" else value


def _changes(base: Any, settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and value of each setting in a part of a configuration."""
    for name, value in settings.items():
        present = base.get(name)
        has_groups = isinstance(present, dict) and bool(present)
        if has_groups and isinstance(value, dict) and "type" not in value:
            yield from _changes(present, value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
