"""What a shell may insert for RECIPE and key=value: recipes, their settings, and values of these.

Reading the recipes means importing torch, which takes longer than a shell should wait. What they
say is stored in a file until the code changes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from models import plugins
from models.safe_files.atomic import atomic_file

CODE = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "data_pipelines", "dist_train")
"""Where recipes and the classes of their settings are."""

Settings = dict[str, list[str]]
"""Dotted names of settings, each with its possible values, [] if there is no short list of them."""


def complete_recipe(prefix: str, **_: object) -> list[str]:
    """Return the names of recipes."""
    return [name for name in known_recipes() if name.startswith(prefix)]


def complete_setting(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the settings of the recipe on the command line as `key=`, or their `key=value`."""
    settings = known_recipes().get(getattr(parsed_args, "recipe", ""), {})
    key, separator, _value = prefix.partition("=")
    if separator:
        return [f"{key}={value}" for value in settings.get(key, ())]
    return [f"{name}=" for name in settings if name.startswith(prefix)]


def known_recipes() -> dict[str, Settings]:
    """Return all recipes and their settings, from the stored file unless the code has changed."""
    root = os.environ.get("RELAYWAVE_CACHE") or Path.home() / ".cache" / "relaywave"
    path = Path(root) / "completion.json"
    code = _state_of_code()
    stored = None
    with contextlib.suppress(OSError, ValueError):
        stored = json.loads(path.read_text())
    if not isinstance(stored, dict) or stored.get("code") != code:
        stored = {"code": code, "recipes": _read_recipes()}
        with contextlib.suppress(OSError):  # a home that cannot be written to
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(json.dumps(stored).encode())
    recipes: dict[str, Settings] = stored["recipes"]
    return recipes


def _state_of_code() -> list[Any]:
    """Return a value that changes when the code is edited or is at another place."""
    times = [path.stat().st_mtime_ns for name in PACKAGES for path in (CODE / name).rglob("*.py")]
    return [str(CODE), len(times), max(times), *plugins.installed()]


def _read_recipes() -> dict[str, Settings]:
    from dist_train.recipes import RECIPES

    with contextlib.suppress(plugins.PluginError):
        plugins.load()
    return {name: dict(_settings(recipe())) for name, recipe in sorted(RECIPES.items())}


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the dotted name of each setting and its possible values."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{name}.")
        elif isinstance(value, Mapping) and value:
            for key, item in value.items():
                if dataclasses.is_dataclass(item):
                    yield from _settings(item, f"{name}.{key}.")
        else:
            yield name, _choices(hints[field.name])


def _choices(annotation: Any) -> list[str]:
    """Return the possible values of a type as key=value has them, [] if there is no short list."""
    if annotation is bool:
        return ["true", "false"]
    if annotation is type(None):
        return ["null"]
    if typing.get_origin(annotation) is Annotated:  # names that plugins can add to
        base, registry = typing.get_args(annotation)
        return [*registry] if base is str else []
    if typing.get_origin(annotation) is Literal:
        return [str(value) for value in typing.get_args(annotation)]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        choices = [_choices(member) for member in typing.get_args(annotation)]
        return [value for values in choices for value in values] if all(choices) else []
    return []
