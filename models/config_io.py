"""Configurations: written to files and read from them, and typed `key=value` overrides.

A configuration is a tree of keyword-only dataclasses; how they become JSON and are read from it is
in safe_files/typed_json.py. A class lists settings that have moved in `RENAMED`, from the old name
to the new one: files written with the old names are read, and overrides that use them are rejected
with the new name. What a new name alone cannot express, a static method `upgrade` of the class does
to what a file holds.

A class whose settings are not read in all circumstances has a method `unread() -> {name: why}`: the
names of those that nothing reads with the others as they are (dotted, if they are in a group), and
what to change instead. An override of such a setting is rejected: what is accepted has an effect.

It lives in `models`, the lowest layer, because a snapshot carries its objective's configuration.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from models.safe_files.atomic import atomic_file
from models.safe_files.documents import DocumentError, RepeatedKey, parse_json, read_object
from models.safe_files.typed_json import ConfigError, did_you_mean, from_json, to_json

__all__ = [
    "ConfigError",
    "did_you_mean",
    "differences",
    "from_json",
    "override",
    "read_config",
    "require_finite",
    "to_json",
    "write_config",
]

T = TypeVar("T")


def write_config(config: Any, path: Path) -> None:
    """Write a configuration as indented JSON, atomically."""
    with atomic_file(path) as file:
        file.write(json.dumps(to_json(config), indent=2).encode() + b"\n")


def read_config(annotation: type[T], path: Path) -> T:
    """Read a configuration of the given class from a JSON file.

    Raises:
        ConfigError: The file is not JSON, or does not fit the class.
    """
    try:
        value = read_object(path)
    except (OSError, DocumentError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from None
    return from_json(annotation, value, path.name)


def override(config: T, assignments: Sequence[str]) -> T:
    """Return `config` with dotted `key=value` assignments applied, e.g. `data.resolution=64`.

    Values are JSON where they parse as such (`0.5`, `true`, `null`, `[1,2]`, `{"type": ...}`) and
    plain text otherwise. All assignments are applied before the dataclasses validate themselves,
    so that settings that only fit together can be changed together.

    Raises:
        ConfigError: An unknown key (lists the known ones), a wrong type, an impossible combination,
            a key that is given twice, or one that nothing reads.
    """
    document = to_json(config)
    keys: list[str] = []
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise ConfigError(f"{assignment!r} is not an override; write key=value")
        _reject_renamed(config, key)
        _reject_repeated(key, keys)
        _assign(document, key, _parse_value(key, text))
        keys.append(key)
    changed: T = from_json(type(config), document, type(config).__name__)
    _reject_unread(changed, keys)
    return changed


def unread_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, why) of the settings that nothing reads, with all others as they are."""
    if dataclasses.is_dataclass(config):
        unread: Mapping[str, str] = config.unread() if hasattr(config, "unread") else {}
        yield from ((prefix + name, why) for name, why in unread.items())
        config = vars(config)
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from unread_settings(value, f"{prefix}{name}.")


def require_finite(config: Any) -> None:
    """Raise ValueError if a number among a dataclass's own settings is NaN or infinite."""
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{setting.name}={value} must be a finite number")


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old, new)} of the settings in which two JSON documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in {**old, **new}:
            found |= differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return {} if old == new else {prefix: (old, new)}


def _reject_repeated(key: str, before: Sequence[str]) -> None:
    """Raise ConfigError if a key, or a setting within it, was assigned before."""
    for other in before:
        if _is_within(other, key):
            twice = "is given twice" if other == key else f"would replace {other}, given before it"
            raise ConfigError(f"setting {key} {twice}; keep one of them")


def _reject_unread(config: Any, keys: Sequence[str]) -> None:
    """Raise ConfigError if one of the keys has a value of its own, but nothing reads it."""
    for name, why in unread_settings(config):
        given = any(_is_within(name, key) or _is_within(key, name) for key in keys)
        if given and (value := _own_value(config, name.split("."))) is not None:
            raise ConfigError(f"{name}={value} has no effect: {why}")


def _is_within(name: str, group: str) -> bool:
    return name == group or name.startswith(f"{group}.")


def _own_value(config: Any, names: Sequence[str]) -> str | None:
    """Return a setting's value as JSON, None if it is the field's default."""
    first, *others = names
    value = config[first] if isinstance(config, Mapping) else getattr(config, first)
    if others:
        return _own_value(value, others)
    field = next(field for field in dataclasses.fields(config) if field.name == first)
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    return None if value == default else json.dumps(to_json(value))


def _parse_value(key: str, text: str) -> Any:
    try:
        return parse_json(text)
    except RepeatedKey as error:
        raise ConfigError(f"setting {key}: {error}") from None
    except (ValueError, RecursionError):
        return text


def _reject_renamed(config: Any, dotted_key: str) -> None:
    """Reject an override that uses a setting's old name.

    Raises:
        ConfigError: Names the new one.
    """
    node, names = config, dotted_key.split(".")
    for depth, name in enumerate(names):
        new_name = getattr(node, "RENAMED", {}).get(name)
        if new_name is not None:
            now = ".".join([*names[:depth], new_name, *names[depth + 1 :]])
            raise ConfigError(f"setting {dotted_key!r} was renamed; write {now}=...")
        node = node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)


def _assign(document: dict[str, Any], dotted_key: str, value: Any) -> None:
    *parents, last = dotted_key.split(".")
    node: Any = document
    for depth, name in enumerate([*parents, last]):
        adds = depth == len(parents) and isinstance(value, dict)
        if adds and isinstance(node, dict) and "type" not in node:
            break  # another entry of a dict, such as an average or an optimizer
        if not isinstance(node, dict) or name not in node or name == "type":
            known = ", ".join(k for k in node if k != "type") if isinstance(node, dict) else "none"
            place = ".".join(dotted_key.split(".")[:depth]) or "the configuration"
            raise ConfigError(
                f"unknown setting {dotted_key!r}: {place} has the settings {known}"
                + did_you_mean(dotted_key, _dotted_keys(document))
            )
        if depth < len(parents):
            node = node[name]
    node[last] = value


def _dotted_keys(document: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all settings, groups of settings included."""
    keys = []
    for name, value in document.items():
        if name != "type":
            keys.append(prefix + name)
            if isinstance(value, dict):
                keys += _dotted_keys(value, f"{prefix}{name}.")
    return keys
